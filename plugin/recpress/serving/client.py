"""Score rows on a running server, over gRPC or HTTP, with tritonclient."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from recpress.errors import MissingDependencyError, RequestError, ServerError

Protocol = Literal["grpc", "http"]
_KINDS = {
    "float32": "FP32",
    "float16": "FP16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


class Client:
    """A connection to one server; not to be shared between threads. Use as a context manager, or close it.

    Args:
        url: ``host:port`` of the server's gRPC or HTTP endpoint.
        protocol: ``"grpc"`` or ``"http"``.
        timeout_s: how long one request may take.
        tls_ca: a PEM file of who signed the server's certificate, for gRPC over TLS; None speaks plain.
    """

    def __init__(
        self, url: str, *, protocol: Protocol = "grpc", timeout_s: float = 10.0, tls_ca: str | Path | None = None
    ) -> None:
        self.url, self.protocol, self.timeout_s = url, protocol, timeout_s
        try:
            if protocol == "grpc":
                import tritonclient.grpc as module
            else:
                import tritonclient.http as module
        except ImportError as error:
            raise MissingDependencyError(
                f"the client needs tritonclient ({error}); install it with: pip install 'recpress[serve]'"
            ) from None
        self._module = module
        if protocol == "grpc":
            options = {} if tls_ca is None else {"ssl": True, "root_certificates": str(tls_ca)}
        else:
            options = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        self._client = module.InferenceServerClient(url, **options)

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
            ServerError: the server cannot be reached, or does not answer in time.
        """
        wire = []
        for name, array in inputs.items():
            kind = _KINDS.get(str(array.dtype))
            if kind is None:
                raise RequestError(f"input {name!r} is {array.dtype}; allowed are {', '.join(_KINDS)}")
            tensor = self._module.InferInput(name, list(array.shape), kind)
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            wire.append(tensor)
        answer = self._infer(model, wire, version)
        response = answer.get_response()
        names = (
            [o.name for o in response.outputs] if self.protocol == "grpc" else [o["name"] for o in response["outputs"]]
        )
        return {name: answer.as_numpy(name) for name in names}

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in the configuration of ``model``; none where the server does not serve it.

        Raises:
            ServerError: the server cannot be reached, or does not answer in time.
        """
        from tritonclient.utils import InferenceServerException

        options = {"as_json": True, "client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        try:
            answer = self._client.get_model_config(model, **options)
        except (InferenceServerException, OSError) as error:
            status = str(error.status() or "") if isinstance(error, InferenceServerException) else "UNAVAILABLE"
            if "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status:
                raise ServerError(f"the server at {self.url} ({self.protocol}) cannot be reached ({error})") from None
            return {}
        found = answer.get("config", answer).get("parameters", {})
        return {name: value["string_value"] for name, value in found.items()}

    def _infer(self, model: str, wire: list, version: str):
        from tritonclient.utils import InferenceServerException

        options = {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        try:
            return self._client.infer(model, wire, model_version=version, **options)
        except InferenceServerException as error:
            status = str(error.status() or "")
            if "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status:
                raise ServerError(
                    f"the server at {self.url} ({self.protocol}) does not answer: {error.message()}"
                ) from None
            raise RequestError(
                f"the server at {self.url} refuses the request to {model!r}: {error.message()}"
            ) from None
        except OSError as error:
            raise ServerError(
                f"the server at {self.url} ({self.protocol}) cannot be reached ({error}); start it with: recpress serve"
            ) from None
