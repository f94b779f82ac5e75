"""int8_linear on a real GPU: the integers of the reference to the bit, by every route, and inside a CUDA graph."""

from dataclasses import replace

import pytest
import torch
from support.int8_linear_oracle import AWKWARD_K, AWKWARD_M, AWKWARD_N, Operands, expected, operands

from recpress_kernels.int8_linear import cuda
from recpress_kernels.int8_linear.launch import Config, halves

FUSED = Config("fused", 16, 32, 128, 4, 3)
LARGE = ((1024, 1024, 1024), (4096, 512, 1000), (257, 479, 1024), (1, 16_384, 64), (16, 1024, 256))


def on_gpu(o: Operands) -> Operands:
    return Operands(*(v.cuda() if isinstance(v, torch.Tensor) else v for v in o.all()))


def run(o: Operands, config: Config | None = None, *, padded: bool = False) -> torch.Tensor:
    moved = on_gpu(o)
    if padded:
        moved = replace(moved, weight=cuda.pad_rows(moved.weight))
    return cuda.int8_linear(*moved.all(), config=config).cpu()


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


def gemm() -> Config:
    device = cuda.device_facts(torch.device("cuda", torch.cuda.current_device()))
    return Config("gemm", 32, 64, 128, 4, 3, halves=halves(device, 32))


@pytest.mark.parametrize("m", AWKWARD_M)
@pytest.mark.parametrize("k", AWKWARD_K)
@pytest.mark.parametrize("n", AWKWARD_N)
def test_awkward_shapes_to_the_bit(m, k, n):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        o = operands(m, k, n, dtype=dtype, activation="relu")
        for config in (None, FUSED, gemm()):
            same(run(o, config), expected(o))


@pytest.mark.parametrize(("m", "k", "n"), LARGE)
@pytest.mark.parametrize("padded", [False, True])
def test_large_shapes_to_the_bit(m, k, n, padded):
    o = operands(m, k, n)
    same(run(o, padded=padded), expected(o))


@pytest.mark.parametrize(("m", "k", "n"), LARGE)
@pytest.mark.parametrize("zero_point", [0, 37])
def test_a_chain_of_quantized_layers_to_the_bit(m, k, n, zero_point):
    o = operands(m, k, n, dtype=torch.uint8, quantized_out=True, activation="relu", zero_point=zero_point)
    same(run(o), expected(o))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "sigmoid", "silu"])
def test_activations(activation):
    o = operands(33, 130, 64, activation=activation)
    torch.testing.assert_close(run(o), expected(o), rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("m", [3, 33])
def test_rows_that_are_not_finite_give_nan_alone(m, static):
    o = operands(m, 130, 7, static=static)
    o.x[1, 129] = float("inf")
    o.x[2, 0] = float("nan")
    y = run(o)
    assert y.isnan().all(dim=1).nonzero().flatten().tolist() == [1, 2]
    same(y, expected(o))


@pytest.mark.parametrize("m", [1, 16, 300])
def test_inside_a_cuda_graph(m):
    o = operands(m, 1024, 256)
    moved = on_gpu(o)
    cuda.int8_linear(*moved.all())  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cuda.int8_linear(*moved.all())
    other = operands(m, 1024, 256, seed=1).x
    moved.x.copy_(other)
    graph.replay()
    same(y.cpu(), expected(replace(o, x=other)))
