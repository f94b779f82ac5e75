"""Closed-loop clients over gRPC that cost little: requests are encoded once, and answers are not decoded.

A benchmark's clients share the cores with the server: with tritonclient a request costs them about 0.6 ms.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recpress.errors import MissingDependencyError, ServerError
from recpress.serving.wire import KINDS

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_TIMEOUT_S = 30.0


def encode(model: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A request to ``model`` as it goes over the wire, of arrays ``[batch, ...]`` by input name.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import service_pb2
    except ImportError as error:
        raise MissingDependencyError(
            f"the client needs tritonclient ({error}); install it with: pip install 'recpress[serve]'"
        ) from None
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=KINDS[str(array.dtype)], shape=array.shape)
        request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return request.SerializeToString()


@contextlib.contextmanager
def caller(address: str) -> Iterator[Callable[[bytes], bytes]]:
    """What sends one encoded request to the gRPC endpoint ``host:port`` and returns the answer; for many threads."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_METHOD)  # bytes both ways
        yield lambda request: call(request, timeout=_TIMEOUT_S)


@dataclass(frozen=True)
class Window:
    """How long each request took that was answered within ``seconds``: ``latencies`` ``[requests]`` in seconds."""

    seconds: float
    latencies: np.ndarray


def drive(address: str, requests: Sequence[bytes], *, clients: int, seconds: float, warm_up: float) -> Window:
    """Let ``clients`` threads send ``requests`` one after the other for ``seconds``, after ``warm_up`` seconds.

    Args:
        address: ``host:port`` of gRPC.
        requests: as :func:`encode` makes them; each client begins at another.
        clients: how many have a request under way at any time.

    Raises:
        ServerError: a request fails.
    """
    import grpc

    begin = time.perf_counter() + warm_up
    end = begin + seconds
    seen: list[list[float]] = [[] for _ in range(clients)]
    failures: list[grpc.RpcError] = []

    def run(i: int, call) -> None:
        turn, now = i, time.perf_counter()
        try:
            while now < end and not failures:
                sent = now
                call(requests[turn % len(requests)])
                turn, now = turn + 1, time.perf_counter()
                if begin <= now < end:
                    seen[i].append(now - sent)
        except grpc.RpcError as error:
            failures.append(error)

    with caller(address) as call:
        threads = [threading.Thread(target=run, args=(i, call)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise ServerError(f"a request to the server at {address} fails: {failures[0].details()}")
    return Window(seconds, np.concatenate([np.array(own) for own in seen]))
