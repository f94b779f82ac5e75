"""int8_sparse24_linear on a real GPU, canonical weights: the bits of int8_linear there on what they decompress to."""

import pytest
import torch
from support.sparse24_oracle import canonical, dense

import recpress_kernels as rk
from recpress_kernels.formats.sparse24 import compress


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 4), (8, 17, 13), (35, 64, 479), (64, 256, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_bits_of_the_dense_layer(m, n, k, dtype):
    weight = dense(*canonical(n, -(-k // 4) * 4))[:, :k].contiguous().cuda()
    sparse = compress(weight)
    x, scale, bias = torch.randn(m, k).to(dtype).cuda(), torch.rand(n).cuda() * 0.01, torch.randn(n).cuda()
    given = rk.int8_sparse24_linear(x, sparse.values, sparse.indices, scale, bias, "relu")
    torch.testing.assert_close(given, rk.int8_linear(x, weight, scale, bias, "relu"), rtol=0, atol=0)
