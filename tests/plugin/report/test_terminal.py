"""Tables on a terminal: brackets in names and reasons are text, no markup."""

from dataclasses import replace

import pytest

from recpress.report.tables import print_report


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def test_brackets_are_shown(compressed, capsys, wide):
    report = compressed.report
    row = replace(report.rows[0], names=("tables[red]",), status="kept", reason="its shape is [out, in], not [/x]")
    print_report(replace(report, rows=(row, *report.rows[1:])))
    printed = capsys.readouterr().out
    assert "tables[red]" in printed and "kept: its shape is [out, in], not [/x]" in printed
