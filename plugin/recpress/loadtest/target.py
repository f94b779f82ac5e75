"""The server under test, through tritonclient's asynchronous clients."""

import contextlib
from pathlib import Path

from recpress.errors import MissingDependencyError
from recpress.loadtest.outcomes import Outcome
from recpress.loadtest.rows import Checker, Requests
from recpress.serving.wire import Protocol, tensors

_CONNECTIONS = 512


class Target:
    """A model on a server, sent ``requests`` in turn, its answers checked; an asynchronous context manager.

    Over gRPC all requests share a connection, over HTTP each has one of up to 512; what finds none free waits for one,
    which counts.

    Args:
        url: ``host:port`` of gRPC or HTTP.
        model, version: as in the repository; "" lets the server pick the version.
        timeout_s: how long a request may take.
        tls_ca: a PEM file of who signed the server's certificate, for gRPC over TLS; None speaks plain.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """

    def __init__(
        self,
        url: str,
        requests: Requests,
        *,
        model: str,
        version: str = "",
        protocol: Protocol = "grpc",
        timeout_s: float = 10.0,
        tls_ca: str | Path | None = None,
    ) -> None:
        try:
            if protocol == "grpc":
                import tritonclient.grpc.aio as module
            else:
                import tritonclient.http.aio as module
        except (ImportError, RuntimeError) as error:
            raise MissingDependencyError(
                f"a load test needs tritonclient ({error}); install it with: pip install 'recpress[serve]'"
            ) from None
        self.checker = Checker(requests)
        self._module, self._url, self._model, self._outputs = module, url, model, requests.outputs
        self._wire = [tensors(module, inputs) for inputs in requests.inputs]
        self._options: dict[str, object] = {"model_version": version}
        if protocol == "grpc":
            self._connect = {} if tls_ca is None else {"ssl": True, "root_certificates": str(tls_ca)}
            self._options["client_timeout"] = timeout_s
        else:
            self._connect = {"conn_limit": _CONNECTIONS, "conn_timeout": timeout_s}

    async def __aenter__(self) -> "Target":
        # A client belongs to the loop that it is made in.
        self._client = self._module.InferenceServerClient(self._url, **self._connect)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            await self._client.close()

    async def submit(self, number: int) -> Outcome:
        """Send request ``number``, counted round the requests, and check the answer.

        Raises:
            Exception: whatever tritonclient raises; :func:`recpress.loadtest.outcomes.outcome_of` sorts it.
        """
        request = number % len(self._wire)
        answer = await self._client.infer(self._model, self._wire[request], **self._options)
        right = self.checker.right(request, tuple(answer.as_numpy(name) for name in self._outputs))
        return Outcome.OK if right else Outcome.WRONG
