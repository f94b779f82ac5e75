"""Package an artifact as a model of an NVIDIA Triton Inference Server repository.

``<repository>/<name>/config.pbtxt`` describes the model in full, so that the server need not ask the backend;
``<repository>/<name>/<version>/`` holds the artifact's four files and no code.
"""

import re
import shutil
import tempfile
from pathlib import Path

from recpress.artifact.load import load
from recpress.artifact.manifest import GOLDEN, GRAPH, MANIFEST, WEIGHTS, Manifest, check_hashes
from recpress.errors import MissingDependencyError, RepositoryError

BACKEND = "recpress"
CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}


def package(
    folder: str | Path,
    repository: str | Path,
    *,
    name: str,
    max_batch_size: int = 1024,
    instances: int = 1,
    threads: int = 1,
    queue_delay_us: int = 0,
) -> Path:
    """Add the artifact in ``folder`` to ``repository`` as the next version of the model ``name``.

    Args:
        folder: an artifact written by :func:`recpress.export`; its golden rows are replayed first.
        repository: made where it does not exist.
        name: letters, digits, ``_``, ``-`` and ``.``, beginning with no ``.`` or ``-``.
        max_batch_size: rows of the largest batch that the server joins or accepts, at least 1.
        instances: how many copies of the backend serve the model; each is a process with its own threads.
        threads: torch threads of an instance. Keep instances times threads within the cores.
        queue_delay_us: how long, in microseconds, a request may wait for others to join its batch.

    Returns:
        The version's folder.

    Raises:
        ArtifactError: the artifact is not whole, or scores its golden rows otherwise.
        RepositoryError: a value is out of range, or the repository holds a model of that name with another
            configuration. Nothing is left behind.
        MissingDependencyError: tritonclient is not installed.
    """
    folder, repository = Path(folder), Path(repository)
    if not _NAME.fullmatch(name):
        raise RepositoryError(f"model name {name!r}: use letters, digits, '_', '-' and '.', no '.' or '-' first")
    limits = {"max_batch_size": (max_batch_size, 1), "instances": (instances, 1), "threads": (threads, 1)}
    for what, (value, least) in (limits | {"queue_delay_us": (queue_delay_us, 0)}).items():
        if not isinstance(value, int) or value < least:
            raise RepositoryError(f"{what} is {value!r}; give a whole number of at least {least}")
    manifest = load(folder).manifest
    config = config_text(
        manifest,
        name=name,
        max_batch_size=max_batch_size,
        instances=instances,
        threads=threads,
        queue_delay_us=queue_delay_us,
    )
    model = repository / name
    if (model / CONFIG).is_file():
        return _add_version(folder, manifest, model, config)
    if model.exists():
        raise RepositoryError(f"{model} exists and holds no {CONFIG}; it is no model: remove it or choose another name")
    return _add_model(folder, manifest, model, config)


def _add_model(folder: Path, manifest: Manifest, model: Path, config: str) -> Path:
    # The server takes every folder of its repository for a model, so a new model is staged beside the repository.
    model.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=model.parent.resolve().parent))
    try:
        (staging / CONFIG).write_text(config, encoding="utf-8")
        _copy_artifact(folder, manifest, staging / "1")
        staging.chmod(0o755)
        staging.rename(model)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return model / "1"


def _add_version(folder: Path, manifest: Manifest, model: Path, config: str) -> Path:
    if (model / CONFIG).read_text(encoding="utf-8") != config:
        raise RepositoryError(
            f"{model} is served with another configuration (inputs, outputs or options differ from this artifact's); "
            "versions of one model share it: choose another name, or remove that model first"
        )
    versions = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
    version = model / str(max(versions, default=0) + 1)
    # A folder whose name is no number is no version to the server.
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=model))
    try:
        _copy_artifact(folder, manifest, staging / "new")
        (staging / "new").rename(version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return version


def _copy_artifact(folder: Path, manifest: Manifest, version: Path) -> None:
    version.mkdir(mode=0o755)
    for name in (MANIFEST, GRAPH, WEIGHTS, GOLDEN):
        shutil.copy(folder / name, version / name)
        (version / name).chmod(0o644)
    check_hashes(version, manifest)


def config_text(
    manifest: Manifest, *, name: str, max_batch_size: int, instances: int, threads: int, queue_delay_us: int
) -> str:
    """The whole ``config.pbtxt`` of a model, built as a ModelConfig message and parsed back.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingDependencyError(
            f"packaging needs tritonclient ({error}); install it with: pip install 'recpress[serve]'"
        ) from None
    config = model_config_pb2.ModelConfig(name=name, backend=BACKEND, max_batch_size=max_batch_size)
    for spec in manifest.inputs:
        config.input.add(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.wire_shape)
    for spec in manifest.outputs:
        config.output.add(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.wire_shape)
    config.version_policy.latest.num_versions = 1
    config.dynamic_batching.max_queue_delay_microseconds = queue_delay_us
    config.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    config.parameters["threads"].string_value = str(threads)
    text = text_format.MessageToString(config)
    if text_format.Parse(text, model_config_pb2.ModelConfig()) != config:
        raise RepositoryError(f"the configuration of {name!r} does not survive being written:\n{text}")
    return text
