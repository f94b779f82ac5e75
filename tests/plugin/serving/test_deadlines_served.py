"""Deadlines over the wire, in the real server: what is late is refused alone, and says UNAVAILABLE."""

import asyncio
import re
import threading
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from support.raw_requests import http_body, send_grpc, send_http, tensor

from recpress.errors import OverloadError, RequestError
from recpress.serving.client import AsyncClient, Client
from recpress.serving.limiter import Limiter

pytestmark = pytest.mark.server

INPUTS = [tensor("dense", "FP32", np.ones((2, 5))), tensor("sparse", "INT64", np.ones((2, 4)))]
ARRAYS = {"dense": np.ones((2, 5), np.float32), "sparse": np.ones((2, 4), np.int64)}


def send(server, protocol, deadline):
    """The status, as gRPC and HTTP have it, and the text."""
    parameters = {"deadline_unix_us": deadline}
    if protocol == "grpc":
        return send_grpc(server.url("grpc"), INPUTS, parameters=parameters)
    return send_http(server.url("http"), *http_body(INPUTS, parameters=parameters))


def unix_us(ahead_s):
    return int((time.time() + ahead_s) * 1e6)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_late_requests_are_unavailable_and_others_are_scored(server, protocol):
    for ahead in (-0.001, -3600):
        status, text = send(server, protocol, unix_us(ahead))
        assert status in (grpc.StatusCode.UNAVAILABLE, 503), (status, text)
        assert re.search(r"overloaded: the request's deadline passed [\d.]+ ms before", text)
    assert send(server, protocol, unix_us(30))[0] in (grpc.StatusCode.OK, 200)


@pytest.mark.parametrize("given", [17, "1800000000000000", True, 1.8e15, 1_800_000_000_000_000_000])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_malformed_deadlines_are_the_clients_fault(server, protocol, given):
    status, text = send(server, protocol, given)
    assert status in (grpc.StatusCode.INVALID_ARGUMENT, 400), (status, text)
    assert "Traceback" not in text and ".py" not in text
    assert re.search("deadline_unix_us|parameter", text)


def test_a_late_request_of_a_joined_batch_fails_alone(server):
    # The queue waits 20 ms, so that requests sent at once are joined into one batch.
    outcomes, barrier = {}, threading.Barrier(8)

    def one(i):
        barrier.wait()
        outcomes[i] = send(server, "grpc", unix_us(0.001 if i == 3 else 30))[0]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes.pop(3) is grpc.StatusCode.UNAVAILABLE
    assert list(outcomes.values()) == [grpc.StatusCode.OK] * 7


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_tell_the_server_their_deadline(server, protocol, monkeypatch):
    with Client(server.url(protocol), protocol=protocol, timeout_s=20) as client:
        assert client.score("small", ARRAYS)["logit"].shape == (2, 1)
        # A clock 30 s behind the server's: the deadline has passed when it arrives.
        monkeypatch.setattr("recpress.serving.wire.time", SimpleNamespace(time=lambda: time.time() - 30))
        with pytest.raises(OverloadError, match=r"deadline passed 1\d{4}\.\d ms before.*clock and the client's differ"):
            client.score("small", ARRAYS)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_turns_away_what_its_limiter_does_not_let_in(server, protocol):
    limiter = Limiter(deadline_s=20, start=1, highest=1)
    with Client(server.url(protocol), protocol=protocol, timeout_s=20, limiter=limiter) as client:
        client.score("small", ARRAYS)
        with limiter.slot(), pytest.raises(OverloadError, match="1 requests are under way"):
            client.score("small", ARRAYS)
        client.score("small", ARRAYS)
        with pytest.raises(RequestError):
            client.score("absent", ARRAYS)
    assert limiter.under_way == 0 and limiter.refused == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_coroutines_share_a_limit_and_score_as_threads_do(server, protocol):
    limiter = Limiter(deadline_s=20, start=4, highest=4)
    with Client(server.url("grpc")) as client:
        want = client.score("small", ARRAYS)["logit"]

    async def several():
        async with AsyncClient(server.url(protocol), protocol=protocol, timeout_s=20, limiter=limiter) as client:
            answers = await asyncio.gather(*(client.score("small", ARRAYS) for _ in range(9)), return_exceptions=True)
            with pytest.raises(RequestError, match="absent"):
                await client.score("absent", ARRAYS)
            return answers

    answers = asyncio.run(several())
    scored = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(scored) == 4 and all(isinstance(a, OverloadError) for a in answers if isinstance(a, Exception))
    assert all(np.allclose(answer["logit"], want) for answer in scored)
    assert limiter.under_way == 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_coroutines_are_told_that_nobody_listens(protocol):
    async def ask():
        async with AsyncClient("127.0.0.1:1", protocol=protocol, timeout_s=2) as client:
            await client.score("small", ARRAYS)

    with pytest.raises(Exception, match=r"127\.0\.0\.1:1") as caught:
        asyncio.run(ask())
    assert type(caught.value).__name__ == "ServerError"
