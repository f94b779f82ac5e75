"""``recpress bench metrics`` compares a server with metrics of ours and one without, and prints the ratio."""

import json

import numpy as np
import pytest

import recpress
from recpress.bench import metrics
from recpress.errors import RepositoryError
from recpress.serving.metrics import fetch_text


@pytest.mark.server
def test_the_two_servers_differ_in_metrics_alone(artifact, tmp_path, monkeypatch, capsys):
    recpress.package(artifact, tmp_path / "repo", name="small")
    texts = {}

    stop = metrics.Server.stop

    def stopping(server, *given):
        if server.process is not None:
            texts[len(texts)] = fetch_text(server.url("metrics"))
        stop(server, *given)

    monkeypatch.setattr(metrics.Server, "stop", stopping)
    arguments = ["--repository", str(tmp_path / "repo"), "--rounds", "2", "--seconds", "0.2", "--clients", "2"]
    metrics.main([*arguments, "--json", str(tmp_path / "figures.json")])
    without, with_metrics = texts[0], texts[1]
    assert "recpress_" not in without and "recpress_requests_total" in with_metrics and "nv_inference_count" in without
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 64]
    for row in rows:
        for ratio, figures in (("ratio", "requests_per_second"), ("cpu_ratio", "requests_per_cpu_second")):
            ratios = np.array(row[figures]["on"]) / np.array(row[figures]["off"])
            found = row[ratio]
            assert found["median"] == pytest.approx(np.median(ratios)) and found["low"] <= found["high"]
    assert capsys.readouterr().out.count("ratio") == 4


def test_no_repository(tmp_path):
    with pytest.raises(RepositoryError, match="no model repository"):
        metrics.main(["--repository", str(tmp_path / "absent")])
