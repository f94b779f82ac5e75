"""The benchmark of overload, short: at five times the capacity, a guard keeps most of the goodput that is lost without.

Bounds are wide, as other work may take the machine meanwhile; the benchmark itself tells what a guard keeps.
"""

import json
import math
import shutil
from dataclasses import replace

import pytest
from support.processes import free_port

from recpress.bench import overload
from recpress.bench.overload import Bench, Case
from recpress.serving.proxy import Proxy, Route, nginx_config
from recpress.serving.server import Server

pytestmark = pytest.mark.server
ROWS = 100


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    repository = tmp_path_factory.mktemp("overload") / "repository"
    overload.build(repository, ROWS)
    with Server(repository) as server:
        yield Bench(server, table_rows=ROWS, seconds=1.0, patience_s=3.0)


@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin"), reason="nginx is missing")
def test_goodput_at_five_times_the_capacity(bench):
    assert 2 * overload.BATCH <= bench.limit <= 3 * overload.BATCH and bench.batch_s < bench.deadline_s / 4
    routes = {p: Route(f"127.0.0.1:{free_port()}", bench.server.url(p)) for p in ("grpc", "http")}
    with Proxy(nginx_config(limit=bench.limit, deadline_s=bench.deadline_s, **routes)):
        for attempt in range(3):
            found = {
                guard: bench.case(protocol, guard, 5.0, routes[protocol].listen)
                for guard, protocol in (("proxy", "grpc"), ("client", "http"), ("nothing", "grpc"))
            }
            # Where other work took the machine while capacity was measured, the load was none: measured again.
            if attempt == 2 or found["nothing"].share < 0.2:
                break
    for guard in overload.GUARDED:
        case = found[guard]
        assert case.share > 0.4 and case.goodput > 3 * found["nothing"].goodput, found
        assert case.counts["rejected"] > case.counts["ok"], "most are turned away"
        assert case.refused_s < bench.deadline_s / 2, "and early"
    assert found["client"].limit < 4 * bench.limit


def test_what_is_printed_and_written(bench, monkeypatch, tmp_path, capsys):
    """One case of the command, on the server that runs already."""

    class Running:
        def __init__(self, repository):
            pass

        def __enter__(self):
            return bench.server

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(overload, "build", lambda repository, rows: None)
    monkeypatch.setattr(overload, "Server", Running)
    given = [
        "--protocols",
        "grpc",
        "--guards",
        "client",
        "--times",
        "0.5",
        "--seconds",
        "0.5",
        "--rounds",
        "1",
        "--rows",
        str(ROWS),
    ]
    overload.main([*given, "--deadline-ms", "1000", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kind"] == "overload" and found["deadline_s"] == 1 and len(found["rows"]) == 1
    assert found["rows"][0]["guard"] == "client" and found["rows"][0]["counts"]["ok"] > 0
    assert "grpc 0.5x client" in capsys.readouterr().out


def test_medians_and_what_is_missed():
    fields = {"protocol": "grpc", "guard": "proxy", "times": 5.0, "rate": 500.0, "capacity": 100.0, "goodput": 90.0}
    rest = {"p99_s": 0.2, "refused_s": 0.001, "limit": 24, "tester": 0.2}
    cases = [Case(**fields, **rest, share=share, counts={"ok": 1}) for share in (0.2, 0.9, 0.95)]
    middle = overload._medians(cases)
    assert middle.share == 0.9 and middle.counts == {"ok": 3}
    assert "MISSED" not in overload._verdict(middle, 0.25)
    assert "MISSED" in overload._verdict(middle, 0.15), "p99 is beyond the deadline"
    assert "MISSED" in overload._verdict(cases[0], 0.25), "goodput is lost"
    assert "MISSED" in overload._verdict(replace(middle, p99_s=math.inf), 0.25)
    assert overload._plain(replace(middle, p99_s=math.inf))["p99_s"] is None
    assert overload._verdict(replace(cases[0], guard="nothing"), 0.25) == ""
