"""Start and stop the real NVIDIA Triton Inference Server on a model repository.

>>> with Server("model_repository") as server:
...     print(server.ports.http)
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import astuple, dataclass
from pathlib import Path

from recpress.errors import RepositoryError, ServerError
from recpress.serving.bundle import environment, find_bundle, lay_out_backends
from recpress.serving.repository import CONFIG

STOP_TIMEOUT_S = 30.0
_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "recpress"
_PR_SET_PDEATHSIG = 1
_BUSY = re.compile(r"already in use|Address already|failed to (?:listen|bind)", re.IGNORECASE)


@dataclass(frozen=True)
class Ports:
    """TCP ports of the server; 0 asks for a free one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


ANY_PORTS = Ports(0, 0, 0)


class Server:
    """A server process on ``repository``, from :meth:`start` to :meth:`stop`, or as a context manager.

    Args:
        repository: a folder of models, each with its ``config.pbtxt``.
        host: the address to listen on; loopback unless told otherwise.
        ports: where; a 0 takes a free port, and :attr:`ports` then says which.
        log: file for the server's own output; a temporary one by default, shown when the start fails. None
            leaves it on this process's standard error.
        ready_timeout_s: how long all models may take to load.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        ports: Ports = ANY_PORTS,
        log: Path | str | None = "",
        ready_timeout_s: float = 60.0,
    ) -> None:
        self.repository = Path(repository)
        self.host, self.ports = host, ports
        self.ready_timeout_s = ready_timeout_s
        self.process: subprocess.Popen | None = None
        self._asked_log, self._wanted = log, ports
        self._prefix = f"{_PREFIX}_{os.getpid()}_{uuid.uuid4().hex[:8]}_"
        self._folder: Path | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it is ready with all its models.

        Raises:
            RepositoryError: the repository is not there, or holds no model.
            MissingDependencyError: the server or a part of it is not installed.
            ServerError: a port is busy, a model does not load, or the time is up. Nothing is left running.
        """
        check_repository(self.repository)
        bundle = find_bundle()
        sweep_shared_memory()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="recpress-server-"))
            self.log = self._folder / "server.log" if self._asked_log == "" else self._asked_log
            lay_out_backends(bundle, self._folder / "backends")
            self._launch(bundle.binary, environment(bundle))
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _launch(self, binary: Path, env: dict[str, str]) -> None:
        self.ports = _reserve(self.host, self._wanted)
        http, grpc, metrics = astuple(self.ports)
        command = [
            str(binary),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={self._folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            # Completion would start every model twice; config.pbtxt is whole.
            "--disable-auto-complete-config",
            f"--http-address={self.host}",
            f"--http-port={http}",
            f"--grpc-address={self.host}",
            f"--grpc-port={grpc}",
            f"--metrics-address={self.host}",
            f"--metrics-port={metrics}",
        ]
        with contextlib.ExitStack() as stack:
            output = None if self.log is None else stack.enter_context(Path(self.log).open("wb"))
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while not self.is_ready():
            if self.process.poll() is not None:
                raise ServerError(
                    f"the server stopped while starting (exit code {self.process.returncode}): {self._why()}"
                )
            if time.monotonic() > deadline:
                raise ServerError(f"the server was not ready after {self.ready_timeout_s:.0f} s: {self._why()}")
            time.sleep(0.05)

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self.process.wait()

    def is_ready(self) -> bool:
        """Whether the server says that it and all its models are ready."""
        return http_ready(f"{_reachable(self.host)}:{self.ports.http}")

    def _why(self) -> str:
        if self.log is None:
            return "its output above says why"
        text = Path(self.log).read_text(errors="replace")
        failures = re.findall(r"failed to load '([^']+)' version (\d+): (.*?)\"?\s*$", text, re.MULTILINE)
        if failures:
            return "; ".join(f"model {name}, version {version}: {reason}" for name, version, reason in failures)
        errors = [line for line in text.splitlines() if line.startswith("E") or line.startswith("error")]
        busy = [line for line in errors if _BUSY.search(line)]
        return "\n".join((busy or errors or text.splitlines())[-5:]) or "it said nothing"

    def stop(self) -> None:
        """Stop the server and remove what it leaves: processes, shared memory, temporary files. Safe to repeat."""
        process, self.process = self.process, None
        try:
            if process is not None:
                _terminate(process)
        finally:
            for path in _SHARED_MEMORY.glob(self._prefix + "*"):
                path.unlink(missing_ok=True)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, protocol: str = "http") -> str:
        """``host:port`` for a client of ``"http"``, ``"grpc"`` or ``"metrics"``."""
        return f"{_reachable(self.host)}:{getattr(self.ports, protocol)}"


def check_repository(repository: Path) -> None:
    """Raises RepositoryError unless ``repository`` holds at least one model."""
    if not repository.is_dir():
        raise RepositoryError(f"no model repository at {repository}; make one with: recpress package")
    models = [path for path in repository.iterdir() if (path / CONFIG).is_file()]
    if not models:
        raise RepositoryError(f"{repository} holds no model (no */{CONFIG}); add one with: recpress package")


def http_ready(address: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at ``host:port`` answers its readiness endpoint with 200."""
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=timeout_s) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def sweep_shared_memory() -> None:
    """Remove shared-memory files of servers whose parent process is gone."""
    for path in _SHARED_MEMORY.glob(f"{_PREFIX}_*"):
        owner = path.name.split("_")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            path.unlink(missing_ok=True)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _reserve(host: str, wanted: Ports) -> Ports:
    """``wanted`` with every 0 replaced by a free port, all of them checked to be free."""
    with contextlib.ExitStack() as stack:
        ports = []
        for kind, port in vars(wanted).items():
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                raise ServerError(
                    f"the {kind} port {port} on {host} cannot be used ({error.strerror}); stop what listens there, or "
                    f"give another with --{kind}-port (0 takes a free one)"
                ) from None
            ports.append(probe.getsockname()[1])
    return Ports(*ports)


def _die_with_parent() -> None:
    # Between fork and exec: if this process is killed outright, the kernel stops the server.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _terminate(process: subprocess.Popen) -> None:
    """SIGTERM, then SIGKILL to the whole group when it does not end in time or a second interrupt comes."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
