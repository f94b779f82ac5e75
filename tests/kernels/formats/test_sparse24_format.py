"""The canonical 2:4 form: one form for one weight, exactly reversible, and nothing else taken for it."""

from dataclasses import replace

import pytest
import torch
from support.sparse24_oracle import canonical, dense

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24 import Sparse24, check, compress, decompress

DTYPES = (torch.int8, torch.float16, torch.bfloat16)
SHAPES = [(1, 1), (1, 4), (7, 12), (3, 13), (17, 66), (5, 479), (2, 1024)]


def two_of_four(n: int, k: int, dtype: torch.dtype, *, seed: int = 0, share_of_zeros: float = 0.0) -> torch.Tensor:
    weight = dense(*canonical(n, -(-k // 4) * 4, dtype, seed=seed))[:, :k].contiguous()
    zeros = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < share_of_zeros
    return weight.masked_fill(zeros, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("share_of_zeros", [0.0, 0.5, 1.0])
def test_a_weight_comes_back(n, k, dtype, share_of_zeros):
    weight = two_of_four(n, k, dtype, share_of_zeros=share_of_zeros)
    sparse = compress(weight)
    check(sparse)
    groups = -(-k // 4)
    assert sparse.values.dtype == dtype and sparse.values.shape == (n, 2 * groups)
    assert sparse.indices.shape == (n, -(-groups // 2))
    back = decompress(sparse)
    assert back.dtype == dtype and back.is_contiguous() and torch.equal(back, weight)
    again = compress(back)
    assert torch.equal(again.values, sparse.values) and torch.equal(again.indices, sparse.indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_form_that_the_gpu_kernels_take(dtype):
    values, indices = canonical(9, 60, dtype)
    values[values == 0] = 1
    sparse = compress(dense(values, indices))
    assert torch.equal(sparse.values, values) and torch.equal(sparse.indices, indices)
    assert torch.equal(decompress(sparse), dense(values, indices))


def test_by_hand():
    """Places of groups with two, one and no values other than zero; the last group is padded."""
    weight = torch.tensor([[0, 5, 0, -6, 0, 0, 7, 0, 0, 0, 0, 0, 8]], dtype=torch.int8)
    sparse = compress(weight)
    assert sparse.values.tolist() == [[5, -6, 0, 7, 0, 0, 8, 0]]
    places = [(1, 3), (0, 2), (0, 1), (0, 1)]
    nibbles = [first | second << 2 for first, second in places]
    assert sparse.indices.tolist() == [[nibbles[0] | nibbles[1] << 4, nibbles[2] | nibbles[3] << 4]]
    assert sparse.in_features == 13


def test_bytes_a_weight():
    for dtype, bytes_a_weight in ((torch.int8, 0.625), (torch.float16, 1.125), (torch.bfloat16, 1.125)):
        sparse = compress(two_of_four(64, 256, dtype))
        assert (sparse.values.nbytes + sparse.indices.nbytes) / (64 * 256) == bytes_a_weight


def test_a_zero_of_a_float_is_a_zero_whatever_its_sign():
    weight = torch.tensor([[-0.0, 1.0, -0.0, 2.0]], dtype=torch.float16)
    assert torch.equal(decompress(compress(weight)), weight)


def test_nan_is_kept():
    weight = torch.tensor([[0.0, float("nan"), 0.0, 2.0]], dtype=torch.bfloat16)
    assert decompress(compress(weight)).isnan().tolist() == [[False, True, False, False]]


def test_a_weight_that_is_not_2_to_4_is_refused_by_its_first_group():
    weight = two_of_four(6, 24, torch.int8)
    weight[3, 8:12] = torch.tensor([1, 0, 2, 3])
    weight[4, :4] = 1
    message = r"output 3, group 2 \(inputs 8 to 11\) has 3 values other than zero, at inputs 8, 10, 11; allowed are 2"
    with pytest.raises(KernelInputError, match=message):
        compress(weight)


@pytest.mark.parametrize(
    "weight", [torch.zeros(3, 4), torch.zeros(4, dtype=torch.int8), torch.zeros(3, 0, dtype=torch.int8)], ids=str
)
def test_other_weights_are_refused(weight):
    with pytest.raises(KernelInputError, match="give int8, float16 or bfloat16"):
        compress(weight)


def poked(row: int, column: int, value: int) -> Sparse24:
    sparse = compress(two_of_four(3, 18, torch.int8))
    sparse.indices[row, column] = value
    sparse.values[:, -1] = 7
    return sparse


WRONG = {
    "equal places": (poked(1, 0, 0x40 | 0b0101), "places 1 and 1 in group 0 of output 1"),
    "falling places": (poked(2, 1, 0b0001 << 4 | 0x04), "places 1 and 0 in group 3 of output 2"),
    "a group too many": (poked(0, 2, 0x44), "behind the last of 5 groups"),
    "an input too many": (poked(1, 2, 0b1100), "output 1 keeps a value other than zero at an input beyond"),
    "indices of int8": (
        Sparse24(torch.zeros(3, 4, dtype=torch.int8), torch.zeros(3, 1, dtype=torch.int8), 8),
        "indices is torch.int8",
    ),
    "indices of another shape": (replace(poked(0, 0, 0x44), in_features=18, indices=torch.zeros(3, 2)), "give uint8"),
    "values of float32": (replace(poked(0, 0, 0x44), values=torch.zeros(3, 10)), "values is torch.float32"),
    "values odd": (replace(poked(0, 0, 0x44), values=torch.zeros(3, 9, dtype=torch.int8)), "multiple of 4"),
    "in_features": (replace(poked(0, 0, 0x44), in_features=16), "in_features is 16 .* allowed are 17 to 20"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_of_this_form_is_refused(what):
    sparse, message = WRONG[what]
    with pytest.raises(KernelInputError, match=message):
        check(sparse)
