"""What serving adds to a model at batch 1: ``recpress bench overhead [--model FOLDER] [--json FILE]``.

One real server serves the model and, beside it, an identity: a model of the server's own python backend that takes
the same inputs, and answers with them. Its latency is what server, backend, wire and client cost. Requests of one
golden row to both, over gRPC, and the loaded model's call in this process are timed in turn; ``excess`` is what the
model's p50 is above the identity's and the call's together. Then closed-loop clients, each on a connection of its own
and all on one thread of this process, send the same row over HTTP.
"""

import argparse
import contextlib
import re
import selectors
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from recpress.artifact import ragged
from recpress.artifact.load import LoadedModel, load, read_golden
from recpress.bench.closed_loop import caller, encode
from recpress.errors import RepositoryError, ServerError
from recpress.latency import Latency, interleave
from recpress.serving.config import CONFIG, read_config, served_versions, write_config
from recpress.serving.server import Server
from recpress.serving.wire import KINDS
from recpress_kernels.bench import save

MODEL = Path("model_repository/movielens_dlrm")
EXCESS_MS, REQUESTS_A_SECOND, CLIENTS = 0.15, 2500, 32
"""What is promised at batch 1: at most this excess, and at least so many requests a second of so many clients."""
IDENTITY = "identity"
_CODE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self._same(t) for t in request.inputs()]) for request in requests]

    def _same(self, tensor):
        return pb_utils.Tensor.from_dlpack("same_" + tensor.name(), tensor.to_dlpack())
"""
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def run(model: Path, *, calls: int = 2000, seconds: float = 10.0) -> dict[str, float]:
    """Serve ``model``, a folder of a repository, beside an identity, and measure.

    Returns:
        Milliseconds at batch 1, p50 and p99 of the three, ``excess_ms``, and the clients' requests a second.

    Raises:
        RepositoryError: the folder holds no model.
        ServerError: the server does not start, or refuses a request.
    """
    if not (model / CONFIG).is_file():
        raise RepositoryError(f"{model} holds no {CONFIG}; give a model's folder in a repository with --model")
    version = served_versions(model)[-1]
    loaded = load(model / str(version))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="recpress-overhead-") as folder, _served(model, Path(folder)) as server:
        names = {"identity": IDENTITY, "model": model.name}
        rows, arguments = _golden_row(loaded, model / str(version))
        sent = {key: encode(name, {k: _wire(row).numpy() for k, row in rows.items()}) for key, name in names.items()}
        with caller(server.url("grpc")) as call:
            variants = {key: partial(call, request) for key, request in sent.items()}
            found = interleave(variants | {"forward": _forward(loaded, arguments)}, calls=calls, warm_up=calls // 10)
        rates = {
            f"{key}_requests_a_second": _closed_loop(server.url("http"), name, rows, seconds)
            for key, name in names.items()
        }
    excess = found["model"].p50 - found["identity"].p50 - found["forward"].p50
    return _milliseconds(found) | {"excess_ms": 1e3 * excess} | rates


def _milliseconds(found: dict[str, Latency]) -> dict[str, float]:
    quantiles = {f"{name}_{q}_ms": 1e3 * getattr(taken, q) for name, taken in found.items() for q in ("p50", "p99")}
    return {"calls": found["model"].calls} | quantiles


@contextlib.contextmanager
def _served(model: Path, folder: Path) -> Iterator[Server]:
    """A server on a copy of ``model`` and on its identity."""
    repository = folder / "repository"
    shutil.copytree(model, repository / model.name)
    config = read_config(model)
    config.name, config.backend = IDENTITY, "python"
    config.ClearField("version_policy")
    del config.output[:]
    for given in config.input:
        config.output.add(name=f"same_{given.name}", data_type=given.data_type, dims=given.dims)
    (repository / IDENTITY / "1").mkdir(parents=True)
    (repository / IDENTITY / "1" / "model.py").write_text(_CODE, encoding="utf-8")
    write_config(repository / IDENTITY, str(config))
    with Server(repository) as server:
        yield server


def _golden_row(model: LoadedModel, folder: Path) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """A row as it travels, the first that is neither end of the inputs' ranges, and as the graph takes it."""
    (inputs, _), manifest, which = read_golden(folder, model.manifest), model.manifest, slice(3, 4)
    rows = ragged.part(manifest.ragged, tuple(inputs[name].clone() for name in ragged.names(manifest)), which)
    return ragged.wire_rows(manifest, inputs, which), ragged.arguments(manifest.ragged, rows)


def _forward(model: LoadedModel, arguments: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    def call():
        with torch.inference_mode():
            return model.module(*arguments)

    return call


def _wire(row: torch.Tensor) -> torch.Tensor:
    return row if row.dim() > 1 else row[:, None]


def _kind(row: torch.Tensor) -> str:
    return KINDS[str(row.dtype).removeprefix("torch.")]


def _closed_loop(address: str, name: str, rows: dict[str, torch.Tensor], seconds: float) -> float:
    """Requests a second that ``CLIENTS`` connections get answered, each sending when its answer has come."""
    request = _http_request(address, name, rows)
    host, _, port = address.rpartition(":")
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ, bytearray())
            connection.sendall(request)
        _answer(selector, request, seconds / 5)
        begin = time.perf_counter()
        return _answer(selector, request, seconds) / (time.perf_counter() - begin)


def _answer(selector: selectors.BaseSelector, request: bytes, seconds: float) -> int:
    """Send again on each connection whose answer is whole, for some seconds; how many were."""
    answers, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        ready = selector.select(timeout=10)
        if not ready:
            raise ServerError("no client was answered in 10 s")
        for key, _ in ready:
            key.data.extend(key.fileobj.recv(1 << 16))
            if _whole(key.data):
                key.data.clear()
                key.fileobj.sendall(request)
                answers += 1
    return answers


def _whole(answer: bytearray) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ServerError(f"the server answers {bytes(answer[:500])!r}")
    return bool(found) and len(body) >= int(_LENGTH.search(head)[1])


def _http_request(address: str, name: str, rows: dict[str, torch.Tensor]) -> bytes:
    from tritonclient.http import InferenceServerClient, InferInput

    inputs = []
    for key, row in rows.items():
        inputs.append(InferInput(key, list(_wire(row).shape), _kind(row)))
        inputs[-1].set_data_from_numpy(_wire(row).numpy())
    body, length = InferenceServerClient.generate_request_body(inputs)
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {length}\r\n\r\n"
    )
    return head.encode() + bytes(body)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench overhead``."""
    parser = argparse.ArgumentParser(prog="recpress bench overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL, help=f"a model's folder in a repository; {MODEL}")
    parser.add_argument("--calls", type=int, default=2000, help="requests of one client to each model")
    parser.add_argument("--seconds", type=float, default=10.0, help=f"how long {CLIENTS} clients send to each model")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    found = run(given.model, calls=given.calls, seconds=given.seconds)
    print(f"{given.model.name}, batch 1, ms (p50 / p99), {found['calls']} calls in turn")
    for name, told in (("identity", "an identity in the same server"), ("forward", "the call in this process")):
        print(f"  {told:32} {found[f'{name}_p50_ms']:.3f} / {found[f'{name}_p99_ms']:.3f}")
    print(f"  {'the model in the server':32} {found['model_p50_ms']:.3f} / {found['model_p99_ms']:.3f}")
    print(f"  {'above the two others':32} {found['excess_ms']:.3f} (at most {EXCESS_MS} is promised)")
    print(
        f"{CLIENTS} clients at batch 1: {found['model_requests_a_second']:.0f} requests a second (at least "
        f"{REQUESTS_A_SECOND} are promised); an identity {found['identity_requests_a_second']:.0f}"
    )
    if given.json:
        save(found, given.json)
