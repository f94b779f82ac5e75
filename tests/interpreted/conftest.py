"""Tests in this folder run kernels under triton's interpreter, which is chosen when triton is first imported."""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    if not INTERPRETED:
        reason = "needs TRITON_INTERPRET=1 before triton is imported; tests/kernels/test_interpreted.py sets it"
        for item in items:
            if "interpreted" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))
