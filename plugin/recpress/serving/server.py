"""Start and stop the real NVIDIA Triton Inference Server on a model repository.

>>> with Server("model_repository") as server:
...     print(server.ports.http)
"""

import contextlib
import ctypes
import os
import re
import secrets
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
from recpress.serving.config import CONFIG
from recpress.serving.control import FOLDER_PREFIX, KEY_HEADER, Control, Running, write_record

STOP_TIMEOUT_S = 30.0
RESTART_TIMEOUT_S = 5.0
"""For a server that does not work: one whose stub hangs would wait the whole time for it."""
_GROUP_TIMEOUT_S = 2.0
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
RESTRICTED = "model-repository,shared-memory,trace,logging"
"""What of the server's own endpoints needs the key."""


@dataclass(frozen=True)
class Tls:
    """PEM files for gRPC over TLS: the server's certificate and key, and who signs those of clients, if they need one.

    This server speaks TLS over gRPC alone.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Server:
    """A server process on ``repository``, from :meth:`start` to :meth:`stop`, or as a context manager.

    Args:
        repository: a folder of models, each with its ``config.pbtxt``.
        host: the address to listen on; loopback unless told otherwise.
        ports: where; a 0 takes a free port, and :attr:`ports` then says which.
        key: what a client must send to control models, use shared memory or change traces and logs: 16 characters
            or more; by default a random one, which :attr:`control` holds. The server takes it on its command line,
            where other users of the machine can read it.
        tls: gRPC over TLS; HTTP, which has none in this server, then listens on loopback whatever the host.
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
        key: str | None = None,
        tls: Tls | None = None,
        log: Path | str | None = "",
        ready_timeout_s: float = 60.0,
    ) -> None:
        self.repository = Path(repository)
        self.host, self.ports = host, ports
        self.http_host = host if tls is None else "127.0.0.1"
        self.key, self.tls = key or secrets.token_urlsafe(24), tls
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
        models = models_of(self.repository)
        bundle = find_bundle()
        sweep()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
            self.log = self._folder / "server.log" if self._asked_log == "" else self._asked_log
            lay_out_backends(bundle, self._folder / "backends")
            self._launch(bundle.binary, models, environment(bundle))
            self._wait_until_ready()
            repository = str(self.repository.resolve())
            write_record(self._folder, Running(os.getpid(), repository, **vars(self.control)))
        except BaseException:
            self.stop()
            raise

    def _launch(self, binary: Path, models: list[str], env: dict[str, str]) -> None:
        self.ports = _reserve(self.host, self._wanted)
        http, grpc, metrics = astuple(self.ports)
        command = [
            str(binary),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={self._folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            # Completion would start every model twice; config.pbtxt is whole.
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            # Else one version that does not load makes a server that serves all others say that it is not ready.
            "--strict-readiness=false",
            f"--http-restricted-api={RESTRICTED}:{KEY_HEADER}={self.key}",
            f"--grpc-restricted-protocol={RESTRICTED}:{KEY_HEADER}={self.key}",
            *_tls_flags(self.tls),
            f"--http-address={self.http_host}",
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
                preexec_fn=die_with_parent,
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

    def restart(self) -> None:
        """Stop what is left of the server and start it again on the same ports, with the same key.

        Raises:
            ServerError: as :meth:`start`.
        """
        self._wanted = self.ports
        self.stop(RESTART_TIMEOUT_S)
        self.start()

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self.process.wait()

    def is_ready(self) -> bool:
        """Whether the server says that it is up, which it is not before all its models are loaded."""
        return http_ready(self.url("http"))

    @property
    def control(self) -> Control:
        """To load models and list versions."""
        return Control(self.url("http"), self.key, self.url("grpc") if self.tls is None else None)

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

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the server and remove what it leaves: processes, shared memory, temporary files. Safe to repeat.

        Requests under way are answered, but after ``timeout_s`` seconds the server is killed.
        """
        process, self.process = self.process, None
        try:
            if process is not None:
                _terminate(process, timeout_s)
        finally:
            for path in self.shared_memory():
                path.unlink(missing_ok=True)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def shared_memory(self) -> list[Path]:
        """This server's files in shared memory: one a stub while it runs, none once it is stopped."""
        return list(_SHARED_MEMORY.glob(self._prefix + "*"))

    def url(self, protocol: str = "http") -> str:
        """``host:port`` for a client of ``"http"``, ``"grpc"`` or ``"metrics"``."""
        host = self.http_host if protocol == "http" else self.host
        return f"{_reachable(host)}:{getattr(self.ports, protocol)}"


def models_of(repository: Path) -> list[str]:
    """The names of the models in ``repository``, at least one.

    Raises:
        RepositoryError: it is not there, or holds none.
    """
    if not repository.is_dir():
        raise RepositoryError(f"no model repository at {repository}; make one with: recpress package")
    paths = [path for path in repository.iterdir() if not path.name.startswith(".")]
    models = sorted(path.name for path in paths if (path / CONFIG).is_file())
    if not models:
        raise RepositoryError(f"{repository} holds no model (no */{CONFIG}); add one with: recpress package")
    return models


def _tls_flags(tls: Tls | None) -> list[str]:
    if tls is None:
        return []
    for path in (tls.certificate, tls.key, tls.client_ca):
        if path is not None and not path.is_file():
            raise ServerError(f"no file {path} for TLS; give PEM files of the certificate and of its key")
    mutual = [] if tls.client_ca is None else ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={tls.client_ca}"]
    pair = [f"--grpc-server-cert={tls.certificate}", f"--grpc-server-key={tls.key}"]
    return ["--grpc-use-ssl=true", *pair, *mutual]


def http_ready(address: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at ``host:port`` answers its readiness endpoint with 200."""
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=timeout_s) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def sweep() -> None:
    """Remove shared memory and temporary folders of servers whose parent process is gone; no others'."""
    left = [(path, path.name.split("_")[1]) for path in _SHARED_MEMORY.glob(f"{_PREFIX}_*")]
    folders = Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*-*")
    left += [(path, path.name.removeprefix(FOLDER_PREFIX).split("-")[0]) for path in folders]
    for path, owner in left:
        if not owner.isdecimal() or Path(f"/proc/{owner}").exists():
            continue
        with contextlib.suppress(OSError):  # another user's, or swept by another server that starts
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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


def die_with_parent() -> None:
    # Between fork and exec: if this process is killed outright, the kernel stops the server.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _terminate(process: subprocess.Popen, timeout_s: float) -> None:
    """SIGTERM, then SIGKILL to the whole group when it does not end in time or a second interrupt comes."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for_group(process.pid)


def _wait_for_group(group: int) -> None:
    """Wait until the stubs, which are not this process's children, are gone; they were killed, so for a moment."""
    deadline = time.monotonic() + _GROUP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.005)
