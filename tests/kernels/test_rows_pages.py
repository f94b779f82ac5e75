"""Large pages under tables, and outputs that are written past the caches."""

from pathlib import Path

import pytest
import torch
from int8_cases import PATHS, path

import recpress_kernels as rk
from recpress_kernels.embedding_bag_rows import pages, reference
from recpress_kernels.formats.rows import quantize_rows_int4, quantize_rows_int8

needs_pages = pytest.mark.skipif(not pages.PAGE, reason="no large pages on this system")


def large_kb(tensor):
    """Of the mappings that a tensor's storage touches, the kB on large pages."""
    begin = tensor.untyped_storage().data_ptr()
    end, found, inside = begin + tensor.untyped_storage().nbytes(), 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low < end and begin < high
        elif inside and first == "AnonHugePages:":
            found += int(line.split()[1])
    return found


@needs_pages
def test_tables_keep_their_bytes_and_stand_on_large_pages():
    table = torch.randint(0, 256, (3 * pages.PAGE // 68, 68), dtype=torch.uint8)
    before, address = table.clone(), table.data_ptr()
    small = torch.zeros(5, 68, dtype=torch.uint8)
    rk.RowTables([table, small, table[::2]])
    assert table.data_ptr() == address and torch.equal(table, before)
    if not large_kb(table):
        pytest.skip("the system gave no large page: before Linux 6.1, or memory in pieces")
    assert large_kb(table) >= pages.PAGE // 1024


@needs_pages
def test_memory_of_files_is_left_alone(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(pages, "_madvise", lambda *given: told.append(given))
    size = 3 * pages.PAGE // 68 * 68
    Path(tmp_path / "rows").write_bytes(bytes(size))
    for shared in (False, True):
        mapped = torch.from_file(str(tmp_path / "rows"), shared=shared, size=size, dtype=torch.uint8)
        pages.put_under([mapped.view(-1, 68)])
    assert not told
    pages.put_under([torch.zeros(size // 68, 68, dtype=torch.uint8)])
    assert {advice for _, _, advice in told} == {14, 25}


def test_tables_that_lie_side_by_side_are_joined():
    assert pages._together([(90_000, 95_000), (0, 10), (20, 30), (25, 26)]) == [(0, 30), (90_000, 95_000)]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dims, front", [([16, 64, 128], 16), ([16, 64, 128], 3), ([16, 72, 128], 0)])
def test_outputs_past_the_caches_have_the_bits_of_the_reference(name, dims, front):
    """More than 16 MB, in which parts of rows are whole cache lines, or are not."""
    tables = [
        q(torch.randn(50, dim)) for q, dim in zip([quantize_rows_int8, quantize_rows_int4] * 2, dims, strict=False)
    ]
    batch = 20_500
    indices = torch.randint(0, 50, (batch, 3), dtype=torch.int32)
    before = torch.randn(batch, front)
    flat = indices.t().reshape(-1)
    offsets = torch.arange(flat.numel() + 1, dtype=torch.int32)
    want = reference.embedding_bag_rows(tables, flat, offsets, dims=dims)
    assert want.numel() * 4 > 16 << 20
    described = rk.RowTables(tables, dims=dims)
    with path(name):
        assert torch.equal(rk.embedding_bag_rows(described, flat, offsets), want)
        assert torch.equal(rk.look_up_rows(described, indices, before), torch.cat([before, want], dim=1))
