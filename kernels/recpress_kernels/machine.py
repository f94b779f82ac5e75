"""What figures were measured on."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, or where Linux does not know it its architecture, and its cores: ``EPYC 9354, 2 cores``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    return f"{name}, {cores} core{'s' * (cores > 1)}"
