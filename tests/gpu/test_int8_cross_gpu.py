"""int8_cross on a real GPU: the bits of the reference, of full and of low rank, at every size of batch."""

import pytest
import torch
from support.cross_oracle import cross_operands

import recpress_kernels as rk
from recpress_kernels.int8_cross import reference


@pytest.mark.parametrize("m", [1, 3, 16, 17, 300, 4096])
@pytest.mark.parametrize(("k", "rank"), [(13, None), (429, None), (1024, None), (429, 64), (1024, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_to_the_bit(dtype, k, rank, m):
    operands = cross_operands(m, k, rank, dtype)
    given = rk.int8_cross(*(o if o is None else o.cuda() for o in operands)).cpu()
    torch.testing.assert_close(given, reference.int8_cross(*operands), rtol=0, atol=0)
