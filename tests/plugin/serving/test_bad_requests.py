"""Bad input over both protocols, as raw as it comes: each is refused by name, alone, and tells nothing of the inside.

While the bad requests run, threads send good ones, which the server joins with them into batches: each of their scores
must be the golden one.
"""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from support.raw_requests import http_body, send_grpc, send_http, tensor

from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.serving.client import Client

pytestmark = pytest.mark.server

NAN, INF = float("nan"), float("inf")
LEAKS = ("Traceback", "site-packages", ".py", "/tmp", "/root", "/home", 'File "', "triton_python_backend_shm")


def good(rows=2):
    return {
        "dense": tensor("dense", "FP32", np.ones((rows, 5))),
        "sparse": tensor("sparse", "INT64", np.ones((rows, 4))),
    }


def with_value(name, row, column, value, rows=2):
    """Good inputs with one bad value."""
    inputs = good(rows)
    kind = inputs[name]["datatype"]
    array = np.ones((rows, {"dense": 5, "sparse": 4}[name]), {"FP32": np.float32, "INT64": np.int64}[kind])
    array[row, column] = value
    inputs[name] = tensor(name, kind, array)
    return inputs


def changed(name, **fields):
    """Good inputs, of which ``name`` has another ``datatype``, ``shape``, ``raw`` or ``parameters``."""
    inputs = good()
    inputs[name] = inputs[name] | fields
    return inputs


@dataclass(frozen=True)
class Case:
    """A bad request that both protocols can carry: inputs in order, what the answer says, and whom it is sent to."""

    inputs: list
    says: str
    model: str = "small"
    version: str = ""
    grpc_status: tuple = (grpc.StatusCode.INVALID_ARGUMENT,)
    http_status: tuple = (400,)
    outputs: list | None = None


def case(inputs, says, **options):
    return Case(list(inputs.values()) if isinstance(inputs, dict) else inputs, says, **options)


def absent_region(**fields):
    return {"shared_memory_region": "absent", "shared_memory_byte_size": 40, **fields}


NOT_FOUND = {"grpc_status": (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), "http_status": (404, 400)}
CASES = {
    # The backend answers these, and names the input, row, column, value and bound.
    "nan": case(with_value("dense", 1, 2, NAN), "input 'dense', row 1, column 2 is nan; it must be finite"),
    "inf": case(with_value("dense", 0, 4, INF), "input 'dense', row 0, column 4 is inf; it must be finite"),
    "-inf": case(with_value("dense", 1, 0, -INF), "input 'dense', row 1, column 0 is -inf; it must be finite"),
    "past table 0": case(with_value("sparse", 1, 0, 40), "input 'sparse', row 1, column 0 is 40; allowed are 0 to 39"),
    "past table 1": case(with_value("sparse", 0, 1, 7), "input 'sparse', row 0, column 1 is 7; allowed are 0 to 6"),
    "past table 2": case(with_value("sparse", 0, 2, 300), "row 0, column 2 is 300; allowed are 0 to 299"),
    "past table 2, last column": case(with_value("sparse", 0, 3, 300), "column 3 is 300; allowed are 0 to 299"),
    "negative, table 0": case(with_value("sparse", 0, 0, -1), "row 0, column 0 is -1; allowed are 0 to 39"),
    "negative, table 1": case(with_value("sparse", 1, 1, -1), "row 1, column 1 is -1; allowed are 0 to 6"),
    "negative, table 2": case(with_value("sparse", 1, 3, -7), "row 1, column 3 is -7; allowed are 0 to 299"),
    "int32's end": case(with_value("sparse", 0, 0, 2**31), "column 0 is 2147483648; allowed are 0 to 39"),
    "int64's end": case(with_value("sparse", 0, 2, 2**63 - 1), "column 2 is 9223372036854775807; allowed"),
    "int64's other end": case(with_value("sparse", 0, 1, -(2**63)), "column 1 is -9223372036854775808; allowed"),
    "the last of 256 rows": case(with_value("sparse", 255, 1, 7, rows=256), "row 255, column 1 is 7"),
    "the largest float": case(with_value("dense", 1, 0, 3.4e38), "output 'logit', row 1 is .*finite"),
    # The server answers these.
    "too wide": case(changed("dense", shape=[2, 6], raw=bytes(48)), "unexpected shape for input 'dense'"),
    "too narrow": case(changed("sparse", shape=[2, 3], raw=bytes(48)), r"unexpected shape for input 'sparse'"),
    "rank 1": case(changed("dense", shape=[10]), "input 'dense'"),
    "rank 3": case(changed("dense", shape=[2, 5, 1]), "input 'dense'"),
    "negative size": case(changed("dense", shape=[-1, 5]), "dense|shape|dimension", http_status=(500,)),
    "sizes that overflow": case(changed("dense", shape=[2**62, 5]), "dense|shape|batch"),
    "no rows": case(
        changed("dense", shape=[0, 5], raw=b"") | {"sparse": tensor("sparse", "INT64", np.ones((0, 4)))},
        "batch|byte size|shape|dense|sparse",
    ),
    "unequal rows": case(changed("dense", shape=[1, 5], raw=bytes(20)), "batch"),
    "257 rows": case(good(257), "256"),
    "another dtype": case(changed("dense", datatype="FP64", raw=bytes(80)), "dense.*FP64|FP64.*dense"),
    "int32 ids": case(changed("sparse", datatype="INT32", raw=bytes(32)), "INT32"),
    "strings for numbers": case(changed("sparse", datatype="BYTES", raw=struct.pack("<I1s", 1, b"7") * 8), "BYTES"),
    "a dtype nobody knows": case(changed("dense", datatype="FP1"), "FP1|dense|datatype"),
    "dense missing": case([good()["sparse"]], "dense|expected 2 inputs"),
    "no inputs": case([], "inputs"),
    "one too many": case(good() | {"extra": tensor("extra", "FP32", np.ones((2, 5)))}, "extra|expected 2 inputs"),
    "dense twice": case([*good().values(), good()["dense"]], "dense|expected 2 inputs|multiple"),
    "dense twice, no sparse": case([good()["dense"]] * 2, "dense|sparse|multiple"),
    "fewer bytes than the shape": case(changed("dense", raw=bytes(36)), "dense|byte size|size"),
    "more bytes than the shape": case(changed("dense", raw=bytes(44)), "dense|byte size|size"),
    "no bytes": case(changed("dense", raw=b""), "dense|byte size|size|data"),
    "a region nobody registered": case(
        changed("dense", raw=None, parameters=absent_region()), "shared memory region", **NOT_FOUND
    ),
    "a region, with an offset": case(
        changed("dense", raw=None, parameters=absent_region(shared_memory_offset=2**60)), "shared memory", **NOT_FOUND
    ),
    "an output nobody has": case(good(), "output", outputs=["absent"]),
    "unknown model": case(good(), "'absent' is not found", model="absent", **NOT_FOUND),
    "unknown version": case(good(), "version 9|'small'", version="9", **NOT_FOUND),
    "a version that is no number": case(good(), "version|Not Found", version="one", **NOT_FOUND),
    "a model up the tree": case(good(), "not found|unknown model|invalid|Not Found", model="../small", **NOT_FOUND),
}


def json_inputs(ids):
    """A body all in JSON, with these ids."""
    rows = len(ids)
    inputs = [
        {"name": "dense", "datatype": "FP32", "shape": [rows, 5], "data": [[1] * 5] * rows},
        {"name": "sparse", "datatype": "INT64", "shape": [rows, 4], "data": ids},
    ]
    return json.dumps({"inputs": inputs}).encode(), None


def binary(header=None, size=None, tail=b""):
    """Good inputs whose sizes lie: the JSON's length, or the bytes of the first tensor; or with bytes behind them."""
    body, length = http_body(list(good().values()))
    if size is not None:
        text = body[:length].replace(b'"binary_data_size": 40', b'"binary_data_size": %d' % size)
        body, length = text + body[length:], len(text)
    return body + tail, length if header is None else header


# What the server's own parser of JSON does not take, it answers with 500: a proxy cannot tell it from a fault.
HTTP_ONLY = {
    "not JSON": ((b"{inputs", None), "parse|JSON", 500),
    "JSON of another kind": ((b"[1, 2]", None), ".", 500),
    "nothing": ((b"", None), ".", 400),
    "deep JSON": ((b"[" * 100_000, None), ".", 500),
    "bytes that are no UTF-8": ((b'{"inputs": "\xff\xfe"}', None), ".", 500),
    "inputs that are no list": ((b'{"inputs": 3}', None), "array|inputs", 500),
    "text among numbers": (json_inputs([["a", 1, 1, 1]]), "sparse|parse|int|Unable", 500),
    "a fraction among ids": (json_inputs([[1.5, 1, 1, 1]]), "sparse|parse|int|Unable", 500),
    "an id beyond int64": (json_inputs([[2**64, 1, 1, 1]]), "sparse|parse|int|Unable", 500),
    "ragged JSON": (json_inputs([[1, 1, 1], [1]]), "sparse|shape|number|Unable", 500),
    "a header longer than the body": (binary(header=10**6), "header|length|size|Inference-Header", 400),
    "a negative header length": (binary(header=-1), "header|length|size|Inference-Header", 400),
    "a header length that is text": (binary(header="x"), "Raw request must only have 1 input", 400),
    "binary size beyond the body": (binary(size=10**6), "size|dense|sparse|body", 400),
    "binary size beyond 64 bits": (binary(size=2**64), "size|parse|number|Unable|JSON", 500),
    "a negative binary size": (binary(size=-4), "size|parse|number|Unable|JSON|uint", 500),
    "bytes that nobody asked for": (binary(tail=bytes(8)), "size|unexpected|additional|body", 400),
    "compressed as nobody can": ((b"{}", None, ("Content-Encoding", "br")), "Unsupported compression", 501),
    "gzip that is none": ((b"no gzip", None, ("Content-Encoding", "gzip")), ".", 400),
}


_POST = b"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\n"
CUT = {
    "half a body": _POST + b"Content-Length: 4000\r\n\r\n" + b'{"inputs": [',
    "half a header": _POST + b"Content-Le",
    "half a chunk": _POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}",
    "a chunk that ends nowhere": _POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00" + bytes(200),
}
ENDS = [39, 6, 299, 299]
ALLOWED = {
    "denormals": with_value("dense", 0, 0, 1e-42),
    "the ends of every table": {"dense": good()["dense"], "sparse": tensor("sparse", "INT64", [[0] * 4, ENDS])},
}


@pytest.fixture(scope="module")
def neighbours(server, artifact):
    """Good requests from four threads while the tests of this module run; what went wrong with them."""
    manifest = read_manifest(artifact)
    inputs, expected = read_golden(artifact, manifest)
    rows = {name: t.numpy() for name, t in inputs.items()}
    wrong, sent, stop = [], [0] * 4, threading.Event()

    def run(i):
        with Client(server.url("grpc" if i % 2 else "http"), protocol="grpc" if i % 2 else "http") as client:
            while not stop.is_set():
                part = slice(sent[i] % 60, sent[i] % 60 + 4)
                try:
                    got = client.score("small", {name: array[part] for name, array in rows.items()})["logit"][:, 0]
                    off = np.abs(got - expected["logit"][part].numpy()).max()
                    if off > manifest.golden.outlier_atol:
                        wrong.append(f"scores off by {off}")
                except Exception as error:
                    wrong.append(repr(error))
                sent[i] += 1

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    yield wrong, sent
    stop.set()
    for thread in threads:
        thread.join(30)


@pytest.fixture
def unharmed(neighbours):
    """No neighbour fails or is scored otherwise during a test, and some are answered."""
    wrong, sent = neighbours
    failed, before = len(wrong), sum(sent)
    yield
    deadline = time.monotonic() + 20
    while sum(sent) < before + 8:
        assert time.monotonic() < deadline, "good requests are no longer answered"
        time.sleep(0.01)
    assert not wrong[failed:]


def refused(text, says):
    assert re.search(says, text), text
    assert not [leak for leak in LEAKS if leak in text], text


@pytest.mark.parametrize("kind", CASES)
def test_over_grpc(server, unharmed, kind):
    bad = CASES[kind]
    status, text = send_grpc(server.url("grpc"), bad.inputs, model=bad.model, version=bad.version, outputs=bad.outputs)
    assert status in bad.grpc_status, (status, text)
    refused(text, bad.says)


@pytest.mark.parametrize("kind", CASES)
def test_over_http(server, unharmed, kind):
    bad = CASES[kind]
    body, length = http_body(bad.inputs, bad.outputs)
    status, text = send_http(server.url("http"), body, length, model=bad.model, version=bad.version)
    assert status in bad.http_status, (status, text)
    refused(text, bad.says)


@pytest.mark.parametrize("kind", HTTP_ONLY)
def test_over_http_alone(server, unharmed, kind):
    (body, length, *headers), says, expected = HTTP_ONLY[kind]
    status, text = send_http(server.url("http"), body, length, headers=dict(headers))
    assert status == expected, (status, text)
    refused(text, says)


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_is_unusual_and_allowed(server, unharmed, kind):
    inputs = list(ALLOWED[kind].values())
    assert send_grpc(server.url("grpc"), inputs) == (grpc.StatusCode.OK, "")
    status, text = send_http(server.url("http"), *http_body(inputs))
    assert status == 200, text


@pytest.mark.parametrize("sent", CUT)
def test_http_that_breaks_off(server, unharmed, sent):
    host, port = server.url("http").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(CUT[sent])
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            answer = connection.recv(4096)
            assert not answer.startswith(b"HTTP/1.1 200"), answer
