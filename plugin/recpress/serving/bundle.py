"""Find NVIDIA Triton Inference Server and lay out what it needs to run this package's backend.

The server comes with the ``nvidia-pytriton`` package, which carries the real binary, or from a folder such as
``/opt/tritonserver`` of NVIDIA's images, named by ``RECPRESS_TRITONSERVER``.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from recpress.errors import MissingDependencyError, ServerError

HOME_VARIABLE = "RECPRESS_TRITONSERVER"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Bundle:
    """Where the server's parts are.

    Attributes:
        binary: ``tritonserver``.
        python_backend: the folder with ``libtriton_python.so`` and ``triton_python_backend_utils.py``.
        stub: the Python backend's stub for this interpreter's version.
        libraries: folders for ``LD_LIBRARY_PATH``, that of libpython among them.
    """

    binary: Path
    python_backend: Path
    stub: Path
    libraries: tuple[Path, ...]


def find_bundle() -> Bundle:
    """The server for this interpreter.

    Raises:
        MissingDependencyError: no server, no stub for this Python, or no shared libpython; says what to install.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home:
        root = Path(home)
        stub = root / "backends" / "python" / _STUB
        return _checked(root / "bin" / "tritonserver", root / "backends" / "python", stub, (root / "lib",))
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "NVIDIA Triton Inference Server is not installed; install it with: pip install 'recpress[serve]' "
            f"(Python 3.10 to 3.12), or name its folder, such as /opt/tritonserver, in {HOME_VARIABLE}"
        )
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / _version() / _STUB
    libraries = package.parent / "nvidia_pytriton.libs"
    return _checked(root / "bin" / "tritonserver", root / "backends" / "python", stub, (libraries,))


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _checked(binary: Path, python_backend: Path, stub: Path, libraries: tuple[Path, ...]) -> Bundle:
    for path in (binary, python_backend / "libtriton_python.so"):
        if not path.is_file():
            raise MissingDependencyError(
                f"NVIDIA Triton Inference Server is incomplete: {path} is missing; install it again with: "
                "pip install --force-reinstall nvidia-pytriton"
            )
    if not stub.is_file():
        stubs = stub.parent.parent
        have = sorted(p.name for p in stubs.iterdir()) if stubs.name == "python_backend_stubs" else []
        raise MissingDependencyError(
            f"the server has no stub for Python {_version()} ({stub} is missing"
            + (f"; there are stubs for {', '.join(have)}" if have else "")
            + "); make the virtual environment with Python 3.10, 3.11 or 3.12"
        )
    return Bundle(binary, python_backend, stub, (find_libpython().parent, *libraries))


def find_libpython() -> Path:
    """The shared library of this interpreter's version, which the server's stub links to.

    Raises:
        MissingDependencyError: there is none; says what to install.
    """
    name = f"libpython{_version()}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    for folder in filter(None, folders):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    if listed := _from_linker_cache(name):
        return listed
    raise MissingDependencyError(
        f"the server's stub needs {name}, and this Python ({sys.executable}) has no shared library; on Debian and "
        f"Ubuntu: apt-get install libpython{_version()}; with pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv "
        f"install {_version()}"
    )


def _from_linker_cache(name: str) -> Path | None:
    try:
        listing = subprocess.run(
            ["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in listing.splitlines():
        entry, _, path = line.partition("=>")
        if entry.split()[:1] == [name] and Path(path.strip()).is_file():
            return Path(path.strip())
    return None


def lay_out_backends(bundle: Bundle, folder: Path) -> None:
    """Make ``folder`` the server's folder of backends: ``python``, with the stub beside it, and ``recpress``.

    The server refuses a library that a link leads out of its backend's folder, so the 3 MB are copied.
    """
    python = folder / "python"
    python.mkdir(parents=True)
    for path in (bundle.python_backend / "libtriton_python.so", bundle.stub):
        shutil.copy(path, python / path.name)
    shutil.copy(bundle.python_backend / "triton_python_backend_utils.py", python)
    ours = folder / "recpress"
    ours.mkdir()
    shutil.copy(Path(__file__).parent / "backend" / "model.py", ours)


def environment(bundle: Bundle) -> dict[str, str]:
    """The environment to start the server in.

    The stub runs Python isolated and takes the environment of the ``python3`` that comes first on PATH, so that of
    this interpreter is put there.

    Raises:
        ServerError: there is no ``python3`` beside this interpreter.
    """
    bin_folder = Path(sys.executable).parent
    if not (bin_folder / "python3").exists():
        raise ServerError(
            f"{bin_folder} holds no python3, which the server's stub looks for; use a virtual environment"
        )
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(bin_folder), env.get("PATH", os.defpath)])
    inherited = [env["LD_LIBRARY_PATH"]] if env.get("LD_LIBRARY_PATH") else []
    env["LD_LIBRARY_PATH"] = os.pathsep.join([*map(str, bundle.libraries), *inherited])
    # Waiting OpenMP threads that spin take the core from the server's own.
    env.setdefault("OMP_WAIT_POLICY", "passive")
    return env
