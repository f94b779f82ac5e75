"""What clients put on the wire and read off it, by gRPC or HTTP, and what the server's refusals mean."""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np

from recpress.errors import NoAnswerError, OverloadError, RecpressError, RequestError, ServerError
from recpress.serving.deadlines import PARAMETER

Protocol = Literal["grpc", "http"]
OVERLOADED = "overloaded:"
"""With this begins the text of what the backend, the proxy and the limiter turn away."""
KINDS = {
    "float32": "FP32",
    "float16": "FP16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_DOWN = ("UNAVAILABLE", "502", "503", "504")
# An INTERNAL error, or a 500: the process that was to score the request has died, which is no fault of the request.
_STUB_GONE = re.compile(r"Stub process '.*' is not healthy")


def tensors(module, inputs: Mapping[str, np.ndarray]) -> list:
    """``inputs`` as InferInputs of ``module``, one of tritonclient's.

    Raises:
        RequestError: an array is of a dtype that no artifact takes.
    """
    wire = []
    for name, array in inputs.items():
        kind = KINDS.get(str(array.dtype))
        if kind is None:
            raise RequestError(f"input {name!r} is {array.dtype}; allowed are {', '.join(KINDS)}")
        tensor = module.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        wire.append(tensor)
    return wire


def until(timeout_s: float) -> dict[str, int]:
    """The request parameters that tell the server how long an answer is of use."""
    return {PARAMETER: int((time.time() + timeout_s) * 1e6)}


def outputs(answer, protocol: Protocol) -> dict[str, np.ndarray]:
    """The tensors of an InferResult by name."""
    response = answer.get_response()
    names = [o.name for o in response.outputs] if protocol == "grpc" else [o["name"] for o in response["outputs"]]
    return {name: answer.as_numpy(name) for name in names}


def refusal(error, model: str, where: str) -> RecpressError:
    """What an InferenceServerException means; RequestError stands for a fault of the request.

    Args:
        where: the server's address and the protocol.
    """
    status, text = str(error.status() or ""), error.message()
    if OVERLOADED in text:
        return OverloadError(f"the server at {where} turns the request to {model!r} away: {text}")
    if "DEADLINE_EXCEEDED" in status:
        return NoAnswerError(f"the server at {where} does not answer the request to {model!r} in time")
    if any(word in status for word in _DOWN) or _STUB_GONE.search(text):
        return ServerError(f"the server at {where} does not answer: {text}")
    return RequestError(f"the server at {where} refuses the request to {model!r}: {text}")


def unreachable(error: Exception, where: str) -> ServerError:
    """No connection, or none that lasted, or none that has brought an answer in time."""
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return NoAnswerError(f"the server at {where} does not answer in time")
    why = str(error) or type(error).__name__
    return ServerError(f"the server at {where} cannot be reached ({why}); start it with: recpress serve")
