"""``recpress auto``: what is chosen is printed and exported, and where nothing is the command fails."""

import signal
import sys

import pytest

import recpress
from recpress.cli import main

MODEL = """
import torch
from support.small import small_inputs, small_model

def batches(count, seed):
    found = []
    for i in range(count):
        inputs = small_inputs(64, seed=seed + i)
        with torch.no_grad():
            found.append((inputs, (small_model()(*inputs) > 0).float()))
    return found

def given():
    dense, sparse = small_inputs(16)
    return {"model": small_model(), "train": batches(2, 0), "valid": batches(1, 9), "rows": batches(4, 20),
            "share": 0.9, "candidates": ["int8"], "examples": {"dense": dense, "sparse": sparse}}

def bare():
    return {name: value for name, value in given().items() if name != "examples"}

def wrong():
    return {"model": small_model(), "recipe": "int8"}
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the entry point in this process, in the project's folder: its exit code, output and errors."""
    (tmp_path / "automine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, "automine", raising=False)

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["recpress", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return left.value.code or 0, *capsys.readouterr()

    return run_here


def test_what_is_found_is_printed_and_exported(call, tmp_path):
    code, out, _ = call("auto", "automine:given", "--export", tmp_path / "a")
    assert code == 0 and "chosen: int8" in out and "AUC of at least 0.90000 is asked for" in out
    manifest = recpress.load(tmp_path / "a").manifest
    assert manifest.recipe.name == "int8" and manifest.quality_after["AUC"] >= 0.9
    code, out, _ = call("auto", "automine:bare", "--at-least", "0.5", "--candidate", "tables4", "--seed", "3")
    assert code == 0 and "chosen: tables4" in out and "0.50000 is asked for" in out, "options are over the function's"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("automine:given", "--at-least", "2", "--steps", "0"),
            "no compressed model reaches AUC",
        ),
        (("automine:given", "--at-least", "0.5", "--share", "1"), "give one of at_least and share"),
        (("automine:bare", "--export", "b"), "returns no examples to export with"),
        (("automine:wrong",), "returns ['model', 'recipe']; it must return a mapping of: at_least, calibration"),
        (("automine:batches",), "automine:batches fails: TypeError"),
        (("automine:given", "--candidate", "int3"), "no preset is called 'int3'"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_failures_are_one_message_and_exit_code_1(call, tmp_path, arguments, says):
    code, _, errors = call("auto", *arguments)
    assert code == 1 and errors.startswith("error: ") and says in errors and "Traceback" not in errors
    assert not (tmp_path / "b").exists()
