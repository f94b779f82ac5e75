"""``recpress doctor``: what is there, what is missing, and what to do about it."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass

from rich.console import Console
from rich.table import Table

from recpress.errors import RecpressError
from recpress.serving.bundle import find_bundle, find_libpython
from recpress.serving.proxy import find_nginx
from recpress.serving.server import Ports

_SHM_BYTES = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; ``ok`` is None for what is optional and absent."""

    what: str
    ok: bool | None
    found: str
    remedy: str = ""


def examine() -> int:
    """Print every finding; 0 when nothing that serving or compressing needs is missing, else 1."""
    findings = [finding for check in CHECKS for finding in check()]
    table = Table("", "what", "found", "remedy")
    for f in findings:
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[yellow]note[/]"}[f.ok]
        table.add_row(mark, f.what, f.found, f.remedy)
    Console().print(table)
    return int(any(f.ok is False for f in findings))


def _python() -> list[Finding]:
    version = sys.version.split()[0]
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return [Finding("Python", fits or None, version, "" if fits else "serving needs Python 3.10 to 3.12")]


def _packages() -> list[Finding]:
    wanted = {
        "torch": ("core", True),
        "triton": ("core", None),
        "numpy": ("core", True),
        "nvidia-pytriton": ("serve", False),
        "tritonclient": ("serve", False),
        "prometheus-client": ("serve", False),
        "matplotlib": ("demo", None),
        "torchmetrics": ("demo", None),
    }
    findings = []
    for name, (extra, needed) in wanted.items():
        try:
            findings.append(Finding(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            target = "recpress" if extra == "core" else f"recpress[{extra}]"
            findings.append(Finding(name, needed and False, "not installed", f"pip install '{target}'"))
    return findings


def _numpy() -> list[Finding]:
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) < 2:
        return []
    note = "its arrays are wrong inside the server (recpress does not use them there); pip install 'numpy<2'"
    return [Finding("numpy 2", None, version, note)]


def _compiler() -> list[Finding]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return [Finding("C++ compiler", None, "none", "apt-get install g++")]
    done = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=False)
    return [Finding("C++ compiler", True, f"{compiler} {done.stdout.strip()}")]


def _kernels() -> list[Finding]:
    from recpress_kernels import native

    status = native.status()
    if status.ok:
        return [Finding("native CPU kernels", True, status.isa)]
    return [Finding("native CPU kernels", None, "int8 layers run through torch, slower", status.reason)]


def _server() -> list[Finding]:
    findings = []
    for what, find in (
        ("libpython", find_libpython),
        ("NVIDIA Triton Inference Server", lambda: find_bundle().binary),
    ):
        try:
            findings.append(Finding(what, True, str(find())))
        except RecpressError as error:
            findings.append(Finding(what, False, "not usable", str(error)))
    return findings


def _nginx() -> list[Finding]:
    try:
        binary = find_nginx()
    except RecpressError as error:
        return [Finding("nginx", None, "not needed but for recpress proxy", str(error))]
    done = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False)
    return [Finding("nginx", True, f"{binary} {done.stderr.strip().removeprefix('nginx version: nginx/')}")]


def _shared_memory() -> list[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return [Finding("/dev/shm", False, str(error), "the server needs shared memory; mount a tmpfs")]
    enough = free >= _SHM_BYTES
    return [Finding("/dev/shm", enough, f"{free >> 20} MiB free", "" if enough else "give it 64 MiB or more")]


def _ports() -> list[Finding]:
    findings = []
    for kind, port in zip(("http", "grpc", "metrics"), astuple(Ports()), strict=True):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                findings.append(Finding(f"{kind} port {port}", True, "free"))
            except OSError as error:
                remedy = f"stop what listens there, or recpress serve --{kind}-port N"
                findings.append(Finding(f"{kind} port {port}", None, error.strerror or "busy", remedy))
    return findings


def _gpu() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        return [Finding("GPU", True, f"{torch.cuda.get_device_name()}, compute capability {capability}")]
    reason = "torch is built without CUDA" if torch.version.cuda is None else "none seen by torch"
    return [Finding("GPU", None, reason, "not needed: the CPU paths are used")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _packages,
    _numpy,
    _compiler,
    _kernels,
    _server,
    _nginx,
    _shared_memory,
    _ports,
    _gpu,
)
