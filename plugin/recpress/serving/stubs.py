"""The processes of a server that run its models, found in ``/proc``."""

from pathlib import Path

STUB = "triton_python_backend_stub"


def stubs_of(server: int) -> dict[int, tuple[str, int]]:
    """Model and version of each stub of the process ``server`` that is alive, by its process id."""
    found: dict[int, tuple[str, int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) != server or state in "ZX":
                continue
            program, model_file, *_ = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            continue
        if Path(program).name == STUB:
            version = Path(model_file).parent
            found[int(path.name)] = version.parent.name, int(version.name)
    return found
