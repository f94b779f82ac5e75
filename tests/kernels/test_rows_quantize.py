"""Every instruction set writes the bytes of the torch code; tables larger than memory go through in chunks."""

import functools
import subprocess
import sys

import pytest
import torch
from int8_cases import guarded, path

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import rows
from recpress_kernels.formats.rows import quantize_chunks, quantize_rows_int4, quantize_rows_int8

DIMS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 100, 130]
BITS = {8: quantize_rows_int8, 4: quantize_rows_int4}
GREEDY = functools.partial(quantize_rows_int4, search="greedy")


def hard_table(dim, spread):
    table = (torch.randn(40, dim, generator=torch.Generator().manual_seed(dim)) * spread).clamp(-65504, 65504)
    table[0], table[1], table[2], table[3] = 0.0, -0.0, table[2].abs(), -table[3].abs()
    table[4], table[5], table[6, 0] = 65504.0, -65504.0, -65504.0
    table[7, ::2], table[7, 1::2] = -0.0, 0.0
    table[8], table[9] = torch.linspace(-65504, 65504, dim), torch.linspace(0, 1e-44, dim)
    # Halves of a step, and their neighbours.
    table[10] = torch.arange(dim).remainder(255) + 0.5
    table[11] = torch.nextafter(table[10], torch.zeros(dim))
    return table


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize("quantize", [*BITS.values(), GREEDY], ids=["int8", "int4", "int4-greedy"])
@pytest.mark.parametrize("spread", [1e-9, 1e-7, 1e-3, 1.0, 1e4])
def test_bytes_of_the_torch_code(name, quantize, spread):
    for dim in DIMS:
        table = hard_table(dim, spread)
        with path("torch"):
            want = quantize(table)
        with path(name):
            assert torch.equal(quantize(table), want), dim
            assert torch.equal(quantize(torch.cat([table, table], dim=1)[:, :dim]), want), dim
            assert torch.equal(quantize(guarded(table), out=guarded(torch.zeros_like(want))), want), dim


@pytest.mark.parametrize("name", native.isas())
def test_greedy_decides_between_equal_errors_as_the_torch_code(name):
    """Rows that are their own mirror image: from -1500 to 1500 both pairs of the first move are, and cost the same."""
    generator = torch.Generator().manual_seed(0)
    wide = 1485 - 199.0 * torch.randint(0, 15, (500, 35), generator=generator)
    off = torch.rand(500, 35, generator=generator) * 10.0 ** torch.randint(-4, 3, (500, 35), generator=generator)
    half = torch.cat([torch.full((500, 1), 1500.0), (wide + off).clamp(-1500, 1500)], dim=1)
    table = torch.cat([half, -half], dim=1)[:, torch.randperm(72, generator=generator)]
    with path("torch"):
        want = GREEDY(table)
    with path(name):
        assert torch.equal(GREEDY(table), want)


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 65520.0])
def test_every_place_of_a_bad_value_is_found(name, bad):
    for dim in (1, 5, 33):
        for at in range(dim):
            table = torch.zeros(3, dim)
            table[2, at] = bad
            with path(name), pytest.raises(KernelInputError, match="row 2 "):
                quantize_rows_int8(table)


@pytest.mark.parametrize("bits", BITS)
def test_into_rows_that_lie_apart_and_from_other_dtypes(bits):
    table = torch.randn(30, 10)
    want = BITS[bits](table)
    wide = torch.full((30, 20), 7, dtype=torch.uint8)
    out = wide[:, 3 : 3 + want.shape[1]]
    assert BITS[bits](table, out=out) is out
    assert torch.equal(out, want) and bool((wide[:, :3] == 7).all()) and bool((wide[:, 3 + want.shape[1] :] == 7).all())
    assert torch.equal(BITS[bits](table.t().contiguous().t()), want)
    half = table.half()
    assert torch.equal(BITS[bits](half), BITS[bits](half.float()))


def test_chunks_of_any_size_fill_out():
    table = torch.randn(100, 9)
    for quantize in (*BITS.values(), GREEDY):
        want = quantize(table)
        out = torch.zeros_like(want)
        assert quantize_chunks(iter(table.split([1, 60, 0, 39])), out, quantize) is out
        assert torch.equal(out, want)


@pytest.mark.parametrize(
    "sizes, message", [([5], "chunks hold 5 rows; out has 10"), ([5, 6], "chunk 1 ends at row 11; out has 10 rows")]
)
def test_chunks_must_fill_out(sizes, message):
    with pytest.raises(KernelInputError, match=message):
        quantize_chunks([torch.zeros(n, 4) for n in sizes], torch.zeros(10, 8, dtype=torch.uint8))


def test_a_bad_chunk_is_named():
    chunks = [torch.zeros(5, 4), torch.tensor([[0.0, 0, 0, 0], [0, 0, torch.nan, 0]])]
    with pytest.raises(KernelInputError, match="chunk 1, which begins at row 5: row 1 holds NaN"):
        quantize_chunks(chunks, torch.zeros(7, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    "out", [torch.zeros(3, 9, dtype=torch.uint8), torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(3, 8)]
)
def test_refuses_another_out(out):
    with pytest.raises(KernelInputError, match=r"out is torch.* give uint8 \[3, 8\] on cpu"):
        quantize_rows_int8(torch.zeros(3, 4), out=out)


MAPPED = """
import resource, sys, torch
from recpress_kernels.formats.rows import quantize_rows_int8
count, dim, folder = 1_000_000, 64, sys.argv[1]
table = torch.from_file(f"{folder}/table", shared=True, size=count * dim).view(count, dim)  # a sparse file of zeros
out = torch.from_file(f"{folder}/rows", shared=True, size=count * 68, dtype=torch.uint8).view(count, 68)
table[::1000] = torch.linspace(-1, 1, 64)
quantize_rows_int8(table[:10].clone())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantize_rows_int8(table, out=out)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert torch.equal(out[1000], quantize_rows_int8(table[1000:1001])[0]) and not out[1001].any()
print(grown / (table.nbytes + out.nbytes))
"""


def test_a_memory_mapped_table_takes_no_more_memory_than_its_pages(tmp_path):
    """Pages of mapped files count while they are in use; beyond them there is at most a fifth."""
    ran = subprocess.run([sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) <= 1.2


def test_the_torch_code_is_what_runs_without_the_library(monkeypatch):
    called = []
    monkeypatch.setattr(rows, "_quantize_chunk", lambda *operands: called.append(operands))
    with path("torch"):
        quantize_rows_int8(torch.zeros(3, 4))
    assert called
