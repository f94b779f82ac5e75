"""A model's ``config.pbtxt``: written whole, read back, and which versions it lets the server serve."""

import os
import re
import tempfile
from pathlib import Path

from recpress.artifact.manifest import Manifest
from recpress.artifact.ragged import LENGTHS, VALUES
from recpress.errors import MissingDependencyError, RepositoryError

BACKEND = "recpress"
CONFIG = "config.pbtxt"
WITHDRAWN = ".withdrawn-"
"""Prefix of the folders of versions that were rolled back: no versions to the server, and their numbers stay taken."""
DEFAULTS = {"max_batch_size": 1024, "instances": 1, "threads": 1, "queue_delay_us": 0, "device": "cpu"}
_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
DEVICES = tuple(_KINDS)
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}


def _protobuf():
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingDependencyError(
            f"packaging needs tritonclient ({error}); install it with: pip install 'recpress[serve]'"
        ) from None
    return text_format, model_config_pb2


def config_text(
    manifest: Manifest,
    *,
    name: str,
    max_batch_size: int,
    instances: int,
    threads: int,
    queue_delay_us: int,
    device: str,
) -> str:
    """The whole ``config.pbtxt`` of a model, built as a ModelConfig message and parsed back.

    On ``cuda`` the server makes as many instances on each GPU that it sees.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    _, model_config_pb2 = _protobuf()
    config = model_config_pb2.ModelConfig(name=name, backend=BACKEND, max_batch_size=max_batch_size)
    for spec in manifest.inputs:
        config.input.add(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.wire_shape)
    if manifest.ragged is not None:
        kind = _TYPES[manifest.ragged.dtype]
        config.input.add(name=LENGTHS, data_type=kind, dims=[len(manifest.ragged.bags)])
        # Else requests of different lengths would not be joined.
        config.input.add(name=VALUES, data_type=kind, dims=[-1], allow_ragged_batch=True)
    for spec in manifest.outputs:
        config.output.add(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.wire_shape)
    config.version_policy.latest.num_versions = 1
    config.dynamic_batching.max_queue_delay_microseconds = queue_delay_us
    config.instance_group.add(count=instances, kind=_KINDS[device])
    config.parameters["threads"].string_value = str(threads)
    return _written(config)


def _written(config) -> str:
    text_format, model_config_pb2 = _protobuf()
    text = text_format.MessageToString(config)
    if text_format.Parse(text, model_config_pb2.ModelConfig()) != config:
        raise RepositoryError(f"the configuration of {config.name!r} does not survive being written:\n{text}")
    return text


def read_config(model: Path):
    """The ModelConfig of the model in folder ``model``.

    Raises:
        RepositoryError: it cannot be read, or is not one.
    """
    text_format, model_config_pb2 = _protobuf()
    path = model / CONFIG
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read as a model's configuration ({error})") from None


def options_of(config) -> dict[str, int | str]:
    """The options of :func:`config_text` that ``config`` was written with."""
    _, model_config_pb2 = _protobuf()
    on_gpu = any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
    return {
        "max_batch_size": config.max_batch_size,
        "instances": sum(group.count for group in config.instance_group),
        "threads": int(config.parameters["threads"].string_value or 1),
        "queue_delay_us": config.dynamic_batching.max_queue_delay_microseconds,
        "device": "cuda" if on_gpu else "cpu",
    }


def instances_of(config) -> int:
    """How many instances, each a process, the server makes of a version of ``config``.

    Of a group on GPUs as many on each that it lists, or else on each that is seen here, as the server does.
    """
    _, model_config_pb2 = _protobuf()
    made = 0
    for group in config.instance_group:
        on_gpu = group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        made += max(1, group.count) * (len(group.gpus) or _gpus_here() if on_gpu else 1)
    return made or 1


def _gpus_here() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def same_but_versions(a: str, config) -> bool:
    """Whether the text ``a`` is the ModelConfig ``config``, whatever versions each of them serves."""
    text_format, model_config_pb2 = _protobuf()
    first, second = text_format.Parse(a, model_config_pb2.ModelConfig()), model_config_pb2.ModelConfig()
    second.CopyFrom(config)
    for one in (first, second):
        one.ClearField("version_policy")
    return first == second


def versions_in(model: Path) -> list[int]:
    """The numbers of the version folders of a model, lowest first."""
    return sorted(int(path.name) for path in model.iterdir() if re.fullmatch(r"[1-9]\d*", path.name))


def served_versions(model: Path) -> list[int]:
    """The versions that the server serves once it has loaded the model, lowest first.

    A request that names no version gets the highest.
    """
    policy = read_config(model).version_policy
    there = versions_in(model)
    if policy.WhichOneof("policy_choice") == "specific":
        return sorted(version for version in policy.specific.versions if version in there)
    if policy.WhichOneof("policy_choice") == "all":
        return there
    return there[-(policy.latest.num_versions or 1) :]


def next_version(model: Path) -> int:
    """A number that no version of the model has had, withdrawn ones among them."""
    withdrawn = [path.name.removeprefix(WITHDRAWN) for path in model.glob(WITHDRAWN + "*")]
    return max([*versions_in(model), *(int(number) for number in withdrawn if number.isdecimal())], default=0) + 1


def serve_versions(model: Path, versions: list[int]) -> None:
    """Rewrite the configuration of ``model`` so that the server serves ``versions``; by renaming, never half."""
    config = read_config(model)
    del config.version_policy.specific.versions[:]
    config.version_policy.specific.versions.extend(versions)
    write_config(model, _written(config))


def write_config(model: Path, text: str) -> None:
    """Put ``text`` in place of the configuration of ``model``, by renaming."""
    descriptor, staging = tempfile.mkstemp(prefix=".config-", dir=model)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(staging).chmod(0o644)
        Path(staging).replace(model / CONFIG)
    finally:
        Path(staging).unlink(missing_ok=True)
