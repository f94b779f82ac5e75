"""Processes that tests start: who is there, what one has said, and where one may listen."""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path


def processes_of(folder: Path) -> dict[int, str]:
    """Command lines, by process, of other running processes that name ``folder``."""
    found = {}
    for path in set(Path("/proc").glob("[0-9]*/cmdline")) - {Path(f"/proc/{os.getpid()}/cmdline")}:
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found[int(path.parent.name)] = line
    return found


def wait_for(process: subprocess.Popen, log: Path, text: str, seconds: float = 60) -> None:
    """Wait until ``process`` has written ``text`` to ``log``."""
    deadline = time.monotonic() + seconds
    while text not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.05)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def open_sockets() -> set[str]:
    """The sockets that this process holds, by the names that ``/proc`` gives them."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()))
    return {target for target in found if target.startswith("socket:")}
