"""Tests in this folder need a GPU; the same kernels are proved without one in tests/interpreted and tests/ptx."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    reason = f"torch {torch.__version__} sees no GPU; tests/interpreted and tests/ptx run these kernels without one"
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))
