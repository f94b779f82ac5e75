"""2:4 on sparse tensor cores of a real GPU: both ops on fragments, and what only hardware can settle, the metadata.

Times beside torch's own 2:4 (``to_sparse_semi_structured``) and dense matmul are printed: ``pytest -s tests/gpu``.
"""

from dataclasses import replace

import pytest
import torch
from support.int8_linear_oracle import Operands, expected, operands
from support.sparse24_oracle import Layer, canonical, dense, half_layer
from support.timing import seconds
from torch.sparse import to_sparse_semi_structured

from recpress_kernels import int8_linear, int8_sparse24_linear_fragments, sparse24_linear, sparse24_linear_fragments
from recpress_kernels.formats.sparse24_gpu import FragmentWeight, pack
from recpress_kernels.int8_linear.cuda import pad_rows
from recpress_kernels.sparse24_linear import fragments

M, K, N = (1, 3, 8, 35, 300), (4, 60, 132, 479, 1024), (1, 17, 300, 1024)
LAYERS = ((1024, 1024), (1024, 512), (512, 256), (4096, 4096))
BATCHES = (1, 16, 64, 256, 1024, 4096)


@pytest.fixture(autouse=True)
def sparse_tensor_cores():
    if not (support := fragments.form(torch.device("cuda"))):
        pytest.skip(support.reason)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given.cpu(), wanted, rtol=0, atol=0, equal_nan=True)


def int8_layer(m: int, k: int, n: int, **options) -> tuple[Operands, FragmentWeight]:
    k = -(-k // 4) * 4
    values, indices = canonical(n, k)
    return replace(operands(m, k, n, **options), weight=dense(values, indices)), pack(values, indices).to("cuda")


def on_gpu(o: Operands) -> list:
    return [v.cuda() if isinstance(v, torch.Tensor) else v for v in o.all()]


def run_half(o: Layer) -> torch.Tensor:
    bias = None if o.bias is None else o.bias.cuda()
    weight = pack(o.values, o.indices).to("cuda")
    return sparse24_linear_fragments(o.x.cuda(), *weight.operands(), bias, o.activation)


@pytest.mark.parametrize("m", M)
@pytest.mark.parametrize("k", K)
@pytest.mark.parametrize("n", N)
def test_int8_to_the_bit(m, k, n):
    for options in ({}, {"dtype": torch.float16}, {"dtype": torch.uint8, "quantized_out": True}):
        o, weight = int8_layer(m, k, n, activation="relu", **options)
        x, _weight, *rest = on_gpu(o)
        same(int8_sparse24_linear_fragments(x, *weight.operands(), *rest), expected(o))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", M)
@pytest.mark.parametrize("k", K)
@pytest.mark.parametrize("n", N)
def test_halves(m, k, n, dtype):
    o = half_layer(m, k, n, dtype)
    assert o.excess(run_half(o).cpu()) <= 0
    whole = half_layer(m, k, n, dtype, whole=True, activation="relu")
    same(run_half(whole), whole.truth().to(dtype))


def test_canonical_operands_on_a_gpu():
    o = half_layer(9, 133, 40, torch.float16, whole=True, activation="relu")
    given = sparse24_linear(*(v.cuda() if isinstance(v, torch.Tensor) else v for v in vars(o).values()))
    same(given, o.truth().half())


def test_a_flipped_bit_of_metadata_shows():
    o, weight = int8_layer(9, 64, 16)
    x, _weight, *rest = on_gpu(o)
    weight.metadata[0, 0, 5] ^= 1
    assert not torch.equal(int8_sparse24_linear_fragments(x, *weight.operands(), *rest).cpu(), expected(o))


def half_calls(m: int, k: int, n: int) -> dict:
    o = half_layer(m, k, n, torch.float16)
    x, bias, weight = o.x.cuda(), o.bias.cuda(), dense(o.values, o.indices).cuda()
    packed = pack(o.values, o.indices).to("cuda")
    calls = {
        "ours": lambda: sparse24_linear_fragments(x, *packed.operands(), bias),
        "float16 cuBLAS": lambda: torch.nn.functional.linear(x, weight, bias),
    }
    if k % 64 == 0 and n % 64 == 0:
        theirs = to_sparse_semi_structured(weight)
        calls["to_sparse_semi_structured"] = lambda: torch.nn.functional.linear(x, theirs, bias)
    return calls


def int8_calls(m: int, k: int, n: int) -> dict:
    o, weight = int8_layer(m, k, n, dtype=torch.float16)
    x, whole, *rest = on_gpu(o)
    whole = pad_rows(whole)
    return {
        "ours": lambda: int8_sparse24_linear_fragments(x, *weight.operands(), *rest),
        "int8_linear": lambda: int8_linear(x, whole, *rest),
    }


@pytest.mark.parametrize(("k", "n"), LAYERS)
@pytest.mark.parametrize("calls", [int8_calls, half_calls])
def test_times_beside_other_libraries(calls, k, n):
    for m in BATCHES:
        made = calls(m, k, n)
        ours = seconds(made.pop("ours"))
        line = f"{torch.cuda.get_device_name()} {calls.__name__} {m}x{k}x{n}: {ours * 1e6:.1f} µs"
        for name, call in made.items():
            line += f"; {name} takes {seconds(call) / ours:.2f} of it"
        print(line)
