"""Requests to NVIDIA Triton Inference Server as raw as tests need them: tritonclient refuses to send bad ones.

A tensor is a dict of ``name``, ``datatype``, ``shape``, ``raw`` (its bytes, or None) and ``parameters``.
"""

import http.client
import json

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

KINDS = {"FP32": np.float32, "INT64": np.int64}
LENGTH_HEADER = "Inference-Header-Content-Length"


def tensor(name: str, datatype: str, array) -> dict:
    """A tensor that is whole."""
    array = np.ascontiguousarray(array, KINDS[datatype])
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "raw": array.tobytes(),
        "parameters": {},
    }


def http_body(
    inputs: list[dict], outputs: list[str] | None = None, parameters: dict | None = None
) -> tuple[bytes, int]:
    """JSON with the tensors' bytes behind it, and how long the JSON is; ``parameters`` are the request's."""
    described, raw = [], b""
    for given in inputs:
        own = dict(given["parameters"])
        if given["raw"] is not None:
            own["binary_data_size"] = len(given["raw"])
            raw += given["raw"]
        described.append({key: given[key] for key in ("name", "datatype", "shape")} | {"parameters": own})
    request = ({"parameters": parameters} if parameters else {}) | {"inputs": described}
    request |= {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    text = json.dumps(request).encode()
    return text + raw, len(text)


def send_http(
    address: str, body: bytes, length: object, *, model: str = "small", version: str = "", headers: dict | None = None
) -> tuple[int, str]:
    """Status and text of the answer to a POST; ``length`` is the JSON's, None where all is JSON."""
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    named = {} if length is None else {LENGTH_HEADER: str(length)}
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("POST", path, body, named | (headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def send_grpc(
    address: str,
    inputs: list[dict],
    *,
    model: str = "small",
    version: str = "",
    outputs: list[str] | None = None,
    parameters: dict | None = None,
) -> tuple[grpc.StatusCode, str]:
    """Status and text of the answer over gRPC."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for given in inputs:
        sent = request.inputs.add(name=given["name"], datatype=given["datatype"], shape=given["shape"])
        for name, value in given["parameters"].items():
            field = "string_param" if isinstance(value, str) else "int64_param"
            setattr(sent.parameters[name], field, value)
        if given["raw"] is not None:
            request.raw_input_contents.append(given["raw"])
    for name, value in (parameters or {}).items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    for name in outputs or ():
        request.outputs.add(name=name)
    with grpc.insecure_channel(address) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""
