"""Control a running server: load models, and ask which versions it serves.

The server lets nobody use model control without its key, a header's value. :class:`Server` notes address and key in a
file that only its user can read, by which :func:`find_server` finds the server of a repository on the same machine.
"""

import http.client
import json
import os
import re
import tempfile
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from recpress.errors import ServerError

KEY_HEADER = "recpress-key"
GRPC_KEY_HEADER = "triton-grpc-protocol-" + KEY_HEADER
FOLDER_PREFIX = "recpress-server-"
_RECORD = "server.json"
_KEY = re.compile(r"[A-Za-z0-9_.~+/=-]{16,256}")


@dataclass(frozen=True)
class Version:
    """One version of a model as the server lists it: ``state`` is READY, UNAVAILABLE, LOADING or UNLOADING."""

    model: str
    version: int
    state: str


@dataclass(frozen=True)
class Control:
    """The endpoints of a server, and the key to its model control.

    Args:
        address: ``host:port`` of HTTP.
        key: what the server was started with.
        grpc: ``host:port`` of gRPC without TLS, or None. Over HTTP the server loads a model in one of the threads that
            also answer requests, and whoever shares it waits as long (3.8 s, where over gRPC nobody waits).
    """

    address: str
    key: str
    grpc: str | None = None

    def load(self, model: str, *, timeout_s: float = 120.0) -> None:
        """Let the server load ``model`` as its folder is now; returns when that is done.

        Versions that did not change are kept as they are, those that are no longer asked for are unloaded when their
        requests are answered. When a version does not load, what was loaded serves on.

        Raises:
            ServerError: a version does not load, or the server cannot be reached or refuses the key.
        """
        self._change("load", model, timeout_s)

    def unload(self, model: str, *, timeout_s: float = 120.0) -> None:
        """Let the server forget ``model``.

        Raises:
            ServerError: the server cannot be reached or refuses the key.
        """
        self._change("unload", model, timeout_s)

    def versions(self, *, timeout_s: float = 10.0) -> list[Version]:
        """All versions of all models that the server knows of.

        Raises:
            ServerError: the server cannot be reached or refuses the key.
        """
        listed = json.loads(self._call("v2/repository/index", timeout_s))
        known = (entry for entry in listed if str(entry.get("version", "")).isdecimal())
        return [Version(e["name"], int(e["version"]), e.get("state", "UNAVAILABLE")) for e in known]

    def executions(self, model: str, version: int, *, timeout_s: float = 10.0) -> int:
        """How many batches a version has executed since it was loaded.

        Raises:
            ServerError: the server cannot be reached, or does not serve the version.
        """
        answer = json.loads(self._call(f"v2/models/{model}/versions/{version}/stats", timeout_s, "GET"))
        return sum(int(stats["execution_count"]) for stats in answer["model_stats"])

    def _change(self, what: str, model: str, timeout_s: float) -> None:
        if self.grpc is None:
            self._call(f"v2/repository/models/{model}/{what}", timeout_s)
            return
        import tritonclient.grpc as grpc
        from tritonclient.utils import InferenceServerException

        with grpc.InferenceServerClient(self.grpc) as client:
            call = client.load_model if what == "load" else client.unload_model
            try:
                call(model, headers={GRPC_KEY_HEADER: self.key}, client_timeout=timeout_s)
            except InferenceServerException as error:
                if "restricted" in error.message():
                    raise self._other_key() from None
                raise ServerError(f"the server at {self.grpc} refuses: {_reason(error.message())}") from None

    def _other_key(self) -> ServerError:
        text = "it was started with another key; give that one, by --key-file"
        return ServerError(f"the server at {self.address} refuses model control: {text}")

    def _call(self, path: str, timeout_s: float, method: str = "POST") -> bytes:
        data = b"" if method == "POST" else None
        request = urllib.request.Request(
            f"http://{self.address}/{path}", data=data, headers={KEY_HEADER: self.key}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 403:
                raise self._other_key() from None
            raise ServerError(f"the server at {self.address} refuses: {_reason(_error_in(error.read()))}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"the server at {self.address} cannot be reached over HTTP for {path} ({error}); is it running?"
            ) from None


def _error_in(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def _reason(text: str) -> str:
    """What the server says, without the trace of our own backend."""
    return text.split("\n\nAt:")[0].strip() or "it does not say why"


def read_key(path: Path) -> str:
    """The key in a file.

    Raises:
        ServerError: it cannot be read, or holds no key.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"the key file {path} cannot be read ({error})") from None
    if not _KEY.fullmatch(key):
        raise ServerError(f"{path} holds no key; give 16 to 256 letters, digits or any of _.~+/=- on one line")
    return key


@dataclass(frozen=True)
class Running:
    """What a server's file says: the process that started it, its repository, and what :class:`Control` holds."""

    pid: int
    repository: str
    address: str
    key: str
    grpc: str | None


def write_record(folder: Path, running: Running) -> None:
    """Note a running server in its own temporary folder, for its user alone."""
    descriptor = os.open(folder / _RECORD, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(running), file)


def find_server(repository: Path) -> Control | None:
    """The running server of this user and machine that serves ``repository``, or None.

    Raises:
        ServerError: there are several.
    """
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/{_RECORD}"):
        try:
            if path.stat().st_uid != os.getuid() or path.is_symlink():
                continue
            running = Running(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if running.repository == str(repository.resolve()) and Path(f"/proc/{running.pid}").exists():
            found.append(Control(running.address, running.key, running.grpc))
    if len(found) > 1:
        addresses = ", ".join(sorted(control.address for control in found))
        raise ServerError(f"{repository} is served by several servers ({addresses}); name one, by --server")
    return found[0] if found else None
