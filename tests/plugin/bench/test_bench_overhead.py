"""The benchmark of what serving adds, on the real server; speed itself is no test."""

import json

import pytest

import recpress
from recpress.bench import overhead
from recpress.errors import RepositoryError, ServerError


@pytest.mark.server
def test_model_identity_and_clients_are_measured(artifact, tmp_path, capsys):
    version = recpress.package(artifact, tmp_path / "repo", name="small")
    told = tmp_path / "told.json"
    overhead.main([f"--model={version.parent}", "--calls=30", "--seconds=0.5", f"--json={told}"])
    found = json.loads(told.read_text())
    assert found["calls"] == 30
    assert min(found[f"{name}_p50_ms"] for name in ("identity", "model", "forward")) > 0
    assert found["excess_ms"] == pytest.approx(
        found["model_p50_ms"] - found["identity_p50_ms"] - found["forward_p50_ms"]
    )
    assert min(found["model_requests_a_second"], found["identity_requests_a_second"]) > 10
    assert "32 clients at batch 1" in capsys.readouterr().out
    assert {path.name for path in version.parent.iterdir()} == {"config.pbtxt", "1"}, "the model is as it was"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(RepositoryError, match="holds no config.pbtxt"):
        overhead.run(tmp_path)


def test_answers_count_when_they_are_whole_and_good():
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1234"
    assert overhead._whole(bytearray(good))
    assert not any(overhead._whole(bytearray(good[:n])) for n in range(len(b"HTTP/1.1 200"), len(good)))
    with pytest.raises(ServerError, match="400"):
        overhead._whole(bytearray(good.replace(b"200 OK", b"400 no")))
