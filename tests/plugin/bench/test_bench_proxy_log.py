"""``recpress bench proxy_log``, short: what it counts is what was sent, and only one of the proxies sends its log."""

import json
import shutil

import numpy as np
import pytest

import recpress
from recpress.bench import proxy_log


@pytest.mark.server
@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin"), reason="nginx is missing")
def test_lines_and_requests_are_counted(artifact, tmp_path, capsys):
    recpress.package(artifact, tmp_path / "repo", name="small")
    arguments = ["--repository", str(tmp_path / "repo"), "--rounds", "2", "--seconds", "0.2", "--clients", "2"]
    proxy_log.main([*arguments, "--rate", "500", "--json", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    lines, row = found["lines"], found["behind_nginx"]
    assert lines["lines"] + lines["dropped"] == lines["sent"] > 500 and lines["parse_errors"] == 0
    assert 0 < lines["cpu_seconds"] < lines["seconds"] + 2
    ratios = np.array(row["requests_per_second"]["on"]) / np.array(row["requests_per_second"]["off"])
    assert row["ratio"]["median"] == pytest.approx(np.median(ratios))
    # Of the proxy with its log, with those before the first window; the other one sends nothing.
    with_log = 0.2 * sum(row["requests_per_second"]["on"])
    assert with_log < row["taken"]["lines"] + row["taken"]["dropped"] < 10 * with_log + 1000
    assert capsys.readouterr().out.count("of a core") == 1
