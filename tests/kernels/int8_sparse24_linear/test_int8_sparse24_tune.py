"""What `recpress tune` measures of 2:4 on a GPU: both forms are called, on the same layer, and mean the same."""

import torch

from recpress_kernels.int8_sparse24_linear.tune import BATCHES, tune


def test_each_shape_is_measured_in_both_forms_at_each_batch():
    results = []

    def seconds(call) -> float:
        results.append(call())
        return 1e-6 * len(results)

    entries = list(tune("a GPU", seconds, device="cpu", shapes=[(64, 48), (16, 64)]))
    assert [(e.isa, e.n, e.k, e.batch) for e in entries] == [
        ("a GPU", n, k, batch) for n, k in ((64, 48), (16, 64)) for batch in BATCHES
    ]
    assert all(torch.equal(a, b) for a, b in zip(results[0::2], results[1::2], strict=True))
    assert [(e.dense_s, e.sparse24_s) for e in entries[:2]] == [(1e-6, 2e-6), (3e-6, 4e-6)]
