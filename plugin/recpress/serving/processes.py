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


def stubs_of(server: int) -> dict[int, tuple[str, int]]:
    """Model and version of each stub of the process ``server`` that is alive, by its process id."""
    found: dict[int, tuple[str, int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) != server or state in "ZX":
                continue
            program, model_file, *_ = _command(path)
        except (OSError, ValueError):
            continue
        version = Path(model_file).parent
        if Path(program).name == STUB and version.name.isdecimal():
            found[int(path.name)] = version.parent.name, int(version.name)
    return found


def serving(repository: Path) -> list[Process] | None:
    """The server on ``repository`` and its living stubs; empty without a server, None without ``/proc``."""
    if not Path("/proc/self/stat").exists():
        return None
    found = []
    for server in _servers_on(str(repository.resolve())):
        found.append(Process(server, "", None, *_costs(server)))
        found += [Process(pid, *served, *_costs(pid)) for pid, served in stubs_of(server).items()]
    return found


def _servers_on(repository: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = _command(path)
        except OSError:
            continue
        if Path(command[0]).name == _SERVER and _FLAG + repository in command:
            found.append(int(path.name))
    return found


def _command(process: Path) -> list[str]:
    return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names that ``smaps_rollup`` gives them, such as ``Pss`` and ``Anonymous``.

    Raises:
        OSError: the process is gone, or another user's.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {key: 1024 * int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines)}


def _costs(pid: int) -> tuple[float, float]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan"), float("nan")
    try:
        return float(memory_of(pid)["Pss"]), cpu
    except (OSError, KeyError):
        return float("nan"), cpu
