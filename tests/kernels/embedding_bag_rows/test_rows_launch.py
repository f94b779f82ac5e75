"""What the GPU kernels of tables are launched with: how wide rows can be read, and which block they take."""

import pytest

from recpress_kernels.embedding_bag_rows.launch import Kind, choose_bags, choose_rows, kind_of, row_align


@pytest.mark.parametrize(
    ("address", "stride", "width", "reach", "wanted"),
    [
        (4096, 68, 68, 68, 4),  # 64 values of 8 bits
        (4096, 64, 64, 64, 16),  # 60
        (4096, 80, 68, 80, 16),  # padded
        (4096, 80, 68, 79, 4),  # padded, but the last row
        (4100, 64, 64, 64, 4),  # a view that begins 4 bytes later
        (4098, 64, 64, 64, 1),
        (4096, 69, 69, 69, 1),
        (4096, 72, 70, 72, 1),  # the pair is not aligned
        (4096, 36, 36, 36, 4),  # 64 values of 4 bits
    ],
)
def test_how_wide_rows_can_be_read(address, stride, width, reach, wanted):
    assert row_align(address, stride, width, reach) == wanted


def test_the_kind_is_what_tables_have_in_common():
    assert kind_of([8, 8], [4, 16], [64, 32]) == Kind(8, 4, 4, 64)
    assert kind_of([8, 4], [16, 16], [64, 130]) == Kind(0, 16, 2, 130)
    assert kind_of([4], [1], [7]) == Kind(4, 1, 1, 7)


@pytest.mark.parametrize("bits", [8, 4, 0])
@pytest.mark.parametrize("align", [1, 4, 16])
@pytest.mark.parametrize("dim", [1, 16, 64, 65, 256, 1000])
def test_each_thread_has_a_whole_load(bits, align, dim):
    kind = Kind(bits, align, 1, dim)
    for config in (choose_bags(kind), choose_rows(kind, 1), choose_rows(kind, 4096)):
        assert 16 <= config.block_d <= 256 and config.block_d & (config.block_d - 1) == 0
        assert config.block_b & (config.block_b - 1) == 0 and config.num_warps == 1
        codes = config.block_b * config.block_d * (bits or 4) // 8
        assert codes >= 32 * max(4, align) or config.block_b == 1
    assert choose_rows(kind, 4096).block_b >= choose_rows(kind, 1).block_b
