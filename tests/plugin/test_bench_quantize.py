"""Quantising a model takes about its own memory, and what it makes; measured in a process of its own."""

import json
import subprocess
import sys

import pytest

from recpress.bench import quantize


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_the_peak_is_the_model_and_its_compressed_form(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "recpress.cli", "bench", "quantize", "--gigabytes", "0.3", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(file.read_text())
    made = found["bytes_after"] / found["bytes_before"]
    # A chunk of the table as float64, and what the allocator keeps, are not less where the model is.
    assert 1 + made / 2 < found["peak_ratio"] < quantize.PEAK_RATIO + 0.1
    assert found["cpu_seconds"] < 0.3 * quantize.SECONDS and made < 0.3
    assert f"peak {found['peak_ratio']:.3f}" in printed
