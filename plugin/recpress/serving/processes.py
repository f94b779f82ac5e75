"""What ``/proc`` says of a server on this machine and of its stubs: who lives, and what memory and CPU they take."""

import os
from dataclasses import dataclass
from pathlib import Path

STUB = "triton_python_backend_stub"
_SERVER = "tritonserver"
_FLAG = "--model-repository="


@dataclass(frozen=True)
class Process:
    """A server (``version`` is None) or the stub of one instance.

    Attributes:
        model, version: what a stub serves.
        pss_bytes: memory, that shared with others counted in parts; NaN where another user's.
        cpu_seconds: CPU time since it began.
    """

    pid: int
    model: str
    version: int | None
    pss_bytes: float
    cpu_seconds: float


def serving(repository: Path) -> list[Process] | None:
    """The server on ``repository`` and its living stubs; empty without a server, None without ``/proc``."""
    if not Path("/proc/self/stat").exists():
        return None
    wanted, table = str(repository.resolve()), _table()
    servers = {
        pid
        for pid, (_, command) in table.items()
        if Path(command[0]).name == _SERVER and any(word == _FLAG + wanted for word in command)
    }
    found = [Process(pid, "", None, *_costs(pid)) for pid in servers]
    for pid, (parent, command) in table.items():
        if parent in servers and Path(command[0]).name == STUB and len(command) > 1:
            version = Path(command[1]).parent
            if version.name.isdecimal():
                found.append(Process(pid, version.parent.name, int(version.name), *_costs(pid)))
    return found


def _table() -> dict[int, tuple[int, list[str]]]:
    """Parent and command line of every process that is alive."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            continue
        if state not in "ZX" and command[0]:
            found[int(path.name)] = int(parent), command
    return found


def _costs(pid: int) -> tuple[float, float]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan"), float("nan")
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        pss = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pss = float("nan")
    return pss, cpu
