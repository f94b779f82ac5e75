import sys
from pathlib import Path

import pytest

from recpress.errors import MissingDependencyError, ServerError
from recpress.serving import bundle as module
from recpress.serving.bundle import HOME_VARIABLE, environment, find_bundle, find_libpython, lay_out_backends

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_finds_the_real_server():
    bundle = find_bundle()
    assert bundle.binary.is_file() and bundle.stub.parent.name == VERSION
    assert any((folder / f"libpython{VERSION}.so.1.0").is_file() for folder in bundle.libraries)


def test_no_server(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'recpress\[serve\]'.*RECPRESS_TRITONSERVER"):
        find_bundle()


def package_without(tmp_path, monkeypatch, *, stubs=("3.8",), binary=True):
    root = tmp_path / "pytriton" / "tritonserver"
    for version in stubs:
        stub = root / "python_backend_stubs" / version
        stub.mkdir(parents=True)
        (stub / "triton_python_backend_stub").touch()
    for path in (root / "bin" / "tritonserver", root / "backends" / "python" / "libtriton_python.so"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if binary:
            path.touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "pytriton" / "__init__.py")})
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: spec)


def test_no_stub_for_this_python(tmp_path, monkeypatch):
    package_without(tmp_path, monkeypatch, stubs=("3.8", "3.99"))
    with pytest.raises(MissingDependencyError, match=rf"no stub for Python {VERSION} .*stubs for 3.8, 3.99\); make"):
        find_bundle()


def test_an_incomplete_server(tmp_path, monkeypatch):
    package_without(tmp_path, monkeypatch, stubs=(VERSION,), binary=False)
    with pytest.raises(MissingDependencyError, match="is incomplete: .*tritonserver is missing"):
        find_bundle()


def test_no_shared_libpython(tmp_path, monkeypatch):
    package_without(tmp_path, monkeypatch, stubs=(VERSION,))
    monkeypatch.setattr(module.sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(module, "_from_linker_cache", lambda _: None)
    with pytest.raises(MissingDependencyError, match=f"apt-get install libpython{VERSION}"):
        find_bundle()


def test_libpython_from_the_linker_cache(tmp_path, monkeypatch):
    listed = find_libpython()
    monkeypatch.setattr(module.sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    text = f"\tlibother.so (libc6) => /x\n\t{listed.name} (libc6,x86-64) => {listed}\n"
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": text}))
    assert find_libpython() == listed


def test_a_folder_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    with pytest.raises(MissingDependencyError, match=f"{tmp_path}/bin/tritonserver is missing"):
        find_bundle()


def test_environment_leads_to_this_interpreter(monkeypatch, tmp_path):
    bundle = find_bundle()
    env = environment(bundle)
    assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert env["LD_LIBRARY_PATH"].startswith(str(bundle.libraries[0]))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ServerError, match="holds no python3"):
        environment(bundle)


def test_backends_are_laid_out_without_links(tmp_path):
    lay_out_backends(find_bundle(), tmp_path / "backends")
    files = {str(p.relative_to(tmp_path / "backends")) for p in (tmp_path / "backends").rglob("*") if p.is_file()}
    assert files == {
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "recpress/model.py",
    }
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))
