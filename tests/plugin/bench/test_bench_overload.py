"""The benchmark of overload, short: at five times the capacity, a guard keeps most of the goodput that is lost without.

Bounds are wide, as other work may take the machine meanwhile; the benchmark itself tells what a guard keeps.
"""

import json
import shutil

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
        found = {
            guard: bench.case(protocol, guard, 5.0, routes[protocol].listen)
            for guard, protocol in (("proxy", "grpc"), ("client", "http"), ("nothing", "grpc"))
        }
    for guard in overload.GUARDED:
        case = found[guard]
        assert case.share > 0.4 and case.goodput > 3 * found["nothing"].goodput, found
        assert case.counts["rejected"] > case.counts["ok"], "most are turned away"
        assert case.refused_s < bench.deadline_s / 4, "and early"
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
    given = ["--protocols", "grpc", "--guards", "client", "--times", "0.5", "--seconds", "0.5", "--rows", str(ROWS)]
    overload.main([*given, "--deadline-ms", "1000", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kind"] == "overload" and found["deadline_s"] == 1 and len(found["rows"]) == 1
    assert found["rows"][0]["guard"] == "client" and found["rows"][0]["counts"]["ok"] > 0
    assert "grpc 0.5x client" in capsys.readouterr().out


def test_a_guard_that_loses_goodput_is_told():
    fields = {"protocol": "grpc", "guard": "proxy", "times": 5.0, "rate": 500.0, "capacity": 100.0, "goodput": 80.0}
    rest = {"share": 0.8, "p99_s": 0.3, "refused_s": 0.001, "limit": 24, "counts": {"ok": 320}, "tester": 0.2}
    case = Case(**fields, **rest)
    assert "80.0% MISSED" in overload._line(case, 0.25) and "LATE" in overload._line(case, 0.25)
    without = Case(**(fields | {"guard": "nothing"}), **rest)
    assert "MISSED" not in overload._line(without, 0.25)
