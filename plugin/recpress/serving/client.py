"""Score rows on a running server, over gRPC or HTTP, with tritonclient; from threads or from coroutines.

Each request carries its deadline, now + ``timeout_s``, so that the server does not score what nobody waits for any
more. With a limiter, requests beyond what the server can answer in time are turned away here, at once.
"""

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import numpy as np

from recpress.errors import MissingDependencyError, RequestError
from recpress.serving import wire
from recpress.serving.limiter import Limiter
from recpress.serving.wire import Protocol


def _tritonclient(name: str):
    try:
        return import_module(f"tritonclient.{name}")
    except ImportError as error:
        raise MissingDependencyError(
            f"the client needs tritonclient ({error}); install it with: pip install 'recpress[serve]'"
        ) from None


def _tls(tls_ca: str | Path | None) -> dict:
    return {} if tls_ca is None else {"ssl": True, "root_certificates": str(tls_ca)}


class Client:
    """A connection to one server. Use as a context manager, or close it.

    Over gRPC threads may share it; over HTTP each thread needs its own, and all may share one limiter.

    Args:
        url: ``host:port`` of the server's gRPC or HTTP endpoint.
        protocol: ``"grpc"`` or ``"http"``.
        timeout_s: how long one request may take, which is also the deadline that the server is told.
        tls_ca: a PEM file of who signed the server's certificate, for gRPC over TLS; None speaks plain.
        limiter: bounds the requests under way, with ``deadline_s`` as ``timeout_s`` here; None bounds nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: Protocol = "grpc",
        timeout_s: float = 10.0,
        tls_ca: str | Path | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.url, self.protocol, self.timeout_s, self.limiter = url, protocol, timeout_s, limiter
        self._module = _tritonclient(protocol)
        timeouts = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        self._client = self._module.InferenceServerClient(url, **(_tls(tls_ca) if protocol == "grpc" else timeouts))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def score(self, model: str, inputs: Mapping[str, np.ndarray], *, version: str = "") -> dict[str, np.ndarray]:
        """Outputs by name, ``[batch, ...]``, for inputs by name, ``[batch, ...]``.

        Args:
            model: its name in the repository.
            inputs: arrays of float32, float16, int32, int64 or bool.
            version: one version, or the one that the server's policy picks.

        Raises:
            RequestError: the server refuses: an unknown model, or inputs it does not take.
            OverloadError: turned away, here, by the proxy or by the server, as it would not be answered in time.
            NoAnswerError: no answer in ``timeout_s``.
            ServerError: the server cannot be reached.
        """
        from tritonclient.utils import InferenceServerException

        where = f"{self.url} ({self.protocol})"
        options = {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        with self.limiter.slot() if self.limiter else nullcontext():
            tensors = wire.tensors(self._module, inputs)
            try:
                answer = self._client.infer(
                    model, tensors, model_version=version, parameters=wire.until(self.timeout_s), **options
                )
            except InferenceServerException as error:
                raise wire.refusal(error, model, where) from None
            except OSError as error:
                raise wire.unreachable(error, where) from None
        return wire.outputs(answer, self.protocol)

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in the configuration of ``model``; none where the server does not serve it.

        Raises:
            ServerError: the server cannot be reached, or does not answer in time.
        """
        from tritonclient.utils import InferenceServerException

        where = f"{self.url} ({self.protocol})"
        options = {"as_json": True, "client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        try:
            answer = self._client.get_model_config(model, **options)
        except InferenceServerException as error:
            refused = wire.refusal(error, model, where)
            if isinstance(refused, RequestError):
                return {}
            raise refused from None
        except OSError as error:
            raise wire.unreachable(error, where) from None
        found = answer.get("config", answer).get("parameters", {})
        return {name: value["string_value"] for name, value in found.items()}


class AsyncClient:
    """The same for coroutines of one event loop: ``async with AsyncClient(...) as client: await client.score(...)``.

    Args: as of :class:`Client`. Where several event loops or threads have one each, they may share one limiter.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: Protocol = "grpc",
        timeout_s: float = 10.0,
        tls_ca: str | Path | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.url, self.protocol, self.timeout_s, self.limiter = url, protocol, timeout_s, limiter
        self._module = _tritonclient(f"{protocol}.aio")
        # Without a bound of its own on connections, which would be a queue that nobody sees; the limiter is the bound.
        unbounded = {"conn_limit": 0, "conn_timeout": timeout_s}
        self._client = self._module.InferenceServerClient(url, **(_tls(tls_ca) if protocol == "grpc" else unbounded))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def score(self, model: str, inputs: Mapping[str, np.ndarray], *, version: str = "") -> dict[str, np.ndarray]:
        """As :meth:`Client.score`, with the same errors."""
        from aiohttp import ClientError
        from tritonclient.utils import InferenceServerException

        where = f"{self.url} ({self.protocol})"
        options = {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        with self.limiter.slot() if self.limiter else nullcontext():
            tensors = wire.tensors(self._module, inputs)
            try:
                answer = await self._client.infer(
                    model, tensors, model_version=version, parameters=wire.until(self.timeout_s), **options
                )
            except InferenceServerException as error:
                raise wire.refusal(error, model, where) from None
            except (OSError, asyncio.TimeoutError, ClientError) as error:
                raise wire.unreachable(error, where) from None
        return wire.outputs(answer, self.protocol)
