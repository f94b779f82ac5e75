"""Prometheus' own tester on the rules: a healthy run, and one trouble at a time."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool; Debian: apt-get install --no-install-recommends prometheus"
)


def promtool(*arguments):
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


@needs_promtool
def test_every_alert_fires_when_it_should_and_is_silent_else():
    done = promtool("test", "rules", FOLDER / "tests" / "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_quantiles_at_the_proxy_add_up():
    done = promtool("test", "rules", FOLDER / "tests" / "proxy.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_tester_notices_a_proxy_that_is_left_out(tmp_path):
    """The control: the slow proxy's requests are not counted."""
    shutil.copytree(FOLDER, tmp_path / "prometheus")
    rules = tmp_path / "prometheus" / "rules" / "recording.yml"
    rules.write_text(rules.read_text().replace('{outcome="ok"}', '{outcome="ok", instance="a"}'))
    done = promtool("test", "rules", tmp_path / "prometheus" / "tests" / "proxy.yml")
    assert done.returncode == 1 and "p99_1m" in done.stdout + done.stderr


@needs_promtool
def test_the_tester_notices_an_alert_that_is_silent(tmp_path):
    """The control: one case, with an alert that cannot fire."""
    shutil.copytree(FOLDER / "rules", tmp_path / "rules")
    rules = tmp_path / "rules" / "alerts.yml"
    rules.write_text(rules.read_text().replace("recpress_stubs < ", "recpress_stubs > "))
    tests = yaml.safe_load((FOLDER / "tests" / "alerts.yml").read_text())
    tests["tests"] = [case for case in tests["tests"] if case["name"] == "a stub is dead"]
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "alerts.yml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", tmp_path / "tests" / "alerts.yml")
    assert done.returncode == 1 and "RecpressStubDead" in done.stdout + done.stderr


@needs_promtool
def test_the_configuration_is_valid():
    done = promtool("check", "config", FOLDER / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires():
    names = re.findall(r"alert: (\w+)", (FOLDER / "rules" / "alerts.yml").read_text())
    cases = yaml.safe_load((FOLDER / "tests" / "alerts.yml").read_text())["tests"]
    fired = {asked["alertname"] for case in cases for asked in case["alert_rule_test"] if asked["exp_alerts"]}
    assert len(names) == len(set(names)) == 11 and fired == set(names)
    assert not any(asked["exp_alerts"] for asked in cases[0]["alert_rule_test"]) and cases[0]["name"] == "healthy"
