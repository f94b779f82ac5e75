"""Fragment order of 2:4 weights: exactly reversible, and CUTLASS's metadata to the bit."""

from dataclasses import replace

import pytest
import torch
from support.sparse24_oracle import canonical, dense
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import sparse24_gpu as fragments

DTYPES = (torch.int8, torch.float16, torch.bfloat16)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 4), (7, 12), (16, 64), (17, 68), (33, 60), (64, 480)])
def test_unpack_is_the_inverse_of_pack(n, k, dtype):
    values, indices = canonical(n, k, dtype)
    given = fragments.unpack(fragments.pack(values, indices))
    assert same_bits(given[0], values) and same_bits(given[1], indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_metadata_is_that_of_torch(dtype):
    """Of 16 bits torch puts the rows of two tiles between each other; the words are the same."""
    n, k = 64, 256
    values, indices = canonical(n, k, dtype)
    values[values == 0] = 1
    kept, reordered = sparse_semi_structured_from_dense_cutlass(dense(values, indices))
    assert torch.equal(kept, values)
    nibbles = torch.stack([indices & 15, indices >> 4], dim=2).reshape(n, -1)
    given = fragments.metadata_words(nibbles, dtype)
    wanted = reordered.contiguous().view(torch.int32)
    if dtype != torch.int8:
        wanted = wanted.reshape(k // 64, 2, n // 32, 8, 2, 2).permute(
            0, 2, 4, 3, 1, 5
        )  # steps, pair, tile, g, mma, half
    assert torch.equal(given, wanted.reshape(k // 64, n // 16, 32))


def test_bytes_a_weight():
    for dtype, bytes_a_weight in ((torch.int8, 0.625), (torch.float16, 1.125), (torch.bfloat16, 1.125)):
        packed = fragments.pack(*canonical(64, 256, dtype))
        assert (packed.values.numel() + packed.metadata.numel()) * 4 / (64 * 256) == bytes_a_weight


@pytest.mark.parametrize("nibble", [0b0000, 0b0101, 0b0001, 0b0110])
def test_equal_or_falling_places_are_refused(nibble):
    values, indices = canonical(3, 16)
    indices[1, 1] = indices[1, 1] & 15 | nibble << 4
    with pytest.raises(KernelInputError, match="group 3 of output 1"):
        fragments.pack(values, indices)


@pytest.mark.parametrize(
    ("values", "indices", "message"),
    [
        (torch.zeros(3, 5, dtype=torch.int8), torch.full((3, 2), 0x44, dtype=torch.uint8), "multiple of 4"),
        (torch.zeros(3, 4), torch.full((3, 1), 0x44, dtype=torch.uint8), "float32"),
        (torch.zeros(3, 4, dtype=torch.int8), torch.full((3, 2), 0x44, dtype=torch.uint8), "nibble a group"),
        (torch.zeros(0, 4, dtype=torch.int8), torch.zeros(0, 1, dtype=torch.uint8), "shape"),
    ],
)
def test_other_operands_are_refused(values, indices, message):
    with pytest.raises(KernelInputError, match=message):
        fragments.pack(values, indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "mma.sp v0"}, "pack the canonical weight again"),
        ({"in_features": 600}, "values is"),
        ({"out_features": 17}, "values is"),
        ({"sums": None}, "sums is None"),
        ({"dtype": torch.float16}, "values is"),
        ({"dtype": torch.float32}, "allowed are"),
    ],
)
def test_buffers_of_another_order_are_refused(change, message):
    packed = fragments.pack(*canonical(16, 64))
    with pytest.raises(KernelInputError, match=message):
        fragments.unpack(replace(packed, **change))
