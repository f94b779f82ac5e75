"""The command line as a user runs it: one process a call, its exit code and what it prints."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import recpress
from recpress.cli import main

MODEL = """
import torch
from support.small import small_inputs, small_model

def build():
    dense, sparse = small_inputs(16)
    return small_model(), {"dense": dense, "sparse": sparse}

def scored():
    model, examples = build()
    return model, examples, lambda m: {"mean": m(*examples.values()).mean()}

def nothing():
    return None

def fails():
    raise KeyError("no checkpoint")
"""


def run(*arguments, cwd, **environment):
    tests = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(tests), "COLUMNS": "200"} | environment
    return subprocess.run(
        [sys.executable, "-m", "recpress.cli", *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    return tmp_path


@pytest.fixture
def call(project, monkeypatch, capsys):
    """Run the entry point in this process, in the project's folder: its exit code, output and errors."""

    def run_here(*arguments):
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", ["recpress", *map(str, arguments)])
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run_here


def test_the_verbs_lead_from_a_model_to_a_repository(project):
    (project / "recipe.yaml").write_text(yaml.safe_dump({"name": "mine", "overrides": {"top.2": "keep"}}))
    done = run("compress", "mine:scored", "--recipe", "recipe.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert (
        "recipe mine: " in done.stdout and "kept: recipe, override 'top.2'" in done.stdout and "mean: " in done.stdout
    )
    done = run("export", "mine:build", "artifact", cwd=project)
    assert done.returncode == 0 and "64 golden rows" in done.stdout, done.stderr
    done = run("load", "artifact", cwd=project)
    assert done.returncode == 0 and "40, 7, 300, 300 rows" in done.stdout and "seen now" in done.stdout, done.stderr
    done = run("package", "artifact", "repo", "--name", "mine", "--threads", 2, cwd=project)
    assert done.returncode == 0 and "mine, version 1, is in repo" in done.stdout, done.stderr
    assert recpress.load(project / "repo" / "mine" / "1").manifest.recipe.name == "int8"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("export", "mine", "a"), "'mine' is no MODULE:FUNCTION"),
        (("export", "absent:build", "a"), "'absent' cannot be imported"),
        (("export", "mine:absent", "a"), "'mine' has no 'absent'"),
        (("export", "mine:nothing", "a"), "returns a NoneType; it must return (model, {input name: example tensor})"),
        (("export", "mine:fails", "a"), "mine:fails fails: KeyError: 'no checkpoint'"),
        (("compress", "mine:build", "--recipe", "int3"), "no preset is called 'int3'"),
        (("load", "absent"), "cannot be read"),
        (("package", "absent", "repo", "--name", "x"), "cannot be read"),
        (("serve", "absent"), "no model repository at absent"),
        (("tune", "64,512"), "shape '64,512' is not M,N,K"),
        (("tune", "64,512,0"), "shape '64,512,0' is not M,N,K"),
    ],
)
def test_an_error_is_one_message_and_exit_code_1(project, call, arguments, message):
    code, out, err = call(*arguments)
    assert code == 1 and err.startswith("error: ") and message in err and not out
    assert not (project / "a").exists() and not (project / "repo").exists()


@pytest.mark.parametrize("arguments", [("bogus",), ("package", "a", "b"), ("serve", "x", "--http-port", "-1")])
def test_wrong_usage_is_exit_code_2(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2 and "Usage" in err


def test_serve_on_a_busy_port(project, call, artifact):
    recpress.package(artifact, project / "repo", name="small")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = call("serve", "repo", "--http-port", port)
    assert code == 1 and f"the http port {port} on 127.0.0.1 cannot be used" in err


def test_doctor_finds_what_is_here(project):
    done = run("doctor", cwd=project)
    assert done.returncode == 0, done.stdout
    for what in ("Python", "torch", "triton", "libpython", "NVIDIA Triton Inference Server", "http port 8000", "GPU"):
        assert what in done.stdout


def test_doctor_names_what_is_missing(project):
    done = run("doctor", cwd=project, RECPRESS_TRITONSERVER=str(project))
    assert done.returncode == 1 and "missing" in done.stdout and "not usable" in done.stdout


@pytest.mark.parametrize(
    "module, verb, message",
    [
        ("tritonclient", ("package", "artifact", "repo", "--name", "x"), "pip install 'recpress[serve]'"),
        ("pytriton", ("serve", "repo"), "pip install 'recpress[serve]'"),
        ("torchmetrics", ("demo", "--output", "demo"), "pip install 'recpress[demo]'"),
    ],
)
def test_a_missing_extra_is_named_with_its_remedy(project, artifact, module, verb, message):
    (project / "artifact").symlink_to(artifact)
    if verb[0] == "serve":
        recpress.package(artifact, project / "repo", name="small")
    # A sitecustomize that hides the package is as good as not having it.
    hidden = project / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def hiding(name, *where):\n"
        f"    return None if name.split('.')[0] == {module!r} else find(name, *where)\n"
        "PathFinder.find_spec = hiding\n"
    )
    done = run(*verb, cwd=project, PYTHONPATH=f"{hidden}")
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert not (project / "demo").exists()


def test_importing_the_library_imports_nothing_that_trains_or_serves():
    unwanted = ("recpress.pipeline", "recpress.cli", "recpress.zoo", "typer", "tritonclient", "matplotlib")
    code = (
        f"import sys, recpress.artifact.load, recpress.serving.rows; print([m for m in {unwanted} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
