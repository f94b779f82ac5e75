"""Tests of Triton-language kernels under the interpreter; run with TRITON_INTERPRET=1 set from the start."""

import os

import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") != "1":
        reason = "runs in a process of its own with TRITON_INTERPRET=1 (tests/kernels starts it)"
        for item in items:
            if "interpreted" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))
