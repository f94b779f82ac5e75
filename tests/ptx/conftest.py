"""Tests in this folder compile kernels, which a process that interprets them cannot."""

import os

import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") == "1":
        for item in items:
            if "ptx" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1 is set: kernels cannot be compiled"))
