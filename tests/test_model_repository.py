"""The model that is committed, as a user finds it: whole, small, without code, and served at once."""

import time
from pathlib import Path

import numpy as np
import pytest

import recpress
from recpress.serving.client import Client
from recpress.serving.probe import replay_golden
from recpress.serving.server import Server

REPOSITORY = Path(__file__).parents[1] / "model_repository"
VERSION = REPOSITORY / "movielens_dlrm" / "1"


def test_it_is_small_and_holds_neither_code_nor_pickle():
    files = {p.name for p in (REPOSITORY / "movielens_dlrm").rglob("*") if p.is_file()}
    assert files == {"config.pbtxt", "manifest.json", "graph.pt2", "weights.safetensors", "golden.safetensors"}
    assert sum(p.stat().st_size for p in REPOSITORY.rglob("*") if p.is_file()) < 1_000_000


def test_it_loads_and_keeps_its_promises():
    manifest = recpress.load(VERSION).manifest
    assert manifest.quality_before["auc"] >= 0.78
    assert manifest.quality_after["auc"] >= 0.999 * manifest.quality_before["auc"]
    assert manifest.bytes_after < 0.3 * manifest.bytes_before
    assert not manifest.golden.blind


@pytest.mark.server
def test_it_is_served_within_ten_seconds():
    begin = time.monotonic()
    with Server(REPOSITORY) as server, Client(server.url("grpc")) as client:
        rows = {"dense": np.zeros((2, 25), np.float32), "sparse": np.zeros((2, 5), np.int64)}
        answer = client.score("movielens_dlrm", rows)["logit"]
        assert time.monotonic() - begin < 10, "recpress serve model_repository answers within 10 s"
        assert answer.shape == (2, 1) and np.isfinite(answer).all()
        assert replay_golden(client, "movielens_dlrm", VERSION).ok
