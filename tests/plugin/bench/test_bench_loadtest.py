"""The comparison of load testers, but for the other tester, which is no dependency."""

import json
from pathlib import Path

import pytest

from recpress.bench import loadtest
from recpress.errors import LoadTestError, SourceError


def test_golden_rows_for_perf_analyzer(artifact, tmp_path):
    loadtest.write_rows(artifact, tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["data"]
    assert len(rows) == 64 and rows[0]["dense"]["shape"] == [5] and len(rows[0]["sparse"]["content"]) == 4
    assert {type(value) for row in rows for value in row["sparse"]["content"]} == {int}


@pytest.mark.parametrize(("program", "message"), [("/bin/false", "fails"), ("/absent", "cannot be run")])
def test_a_tester_that_does_not_work_is_named(tmp_path, program, message):
    with pytest.raises(LoadTestError, match=f"{program} {message}"):
        loadtest._theirs(Path(program), "127.0.0.1:9", 1, 1, 0.3, tmp_path)


def test_cases_are_read():
    assert loadtest._pair("2x256") == (2, 256)
    for text in ("2", "0x1", "ax1"):
        with pytest.raises(SourceError, match="such|as in"):
            loadtest._pair(text)
