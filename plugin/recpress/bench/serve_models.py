"""The models that ``recpress bench serve`` compares, in one repository: ours, float32, and int8 in onnxruntime.

All are the DLRM of ``recpress_kernels.bench.dlrm``, with the same inputs, output, batching and threads.
"""

import shutil
import tempfile
from pathlib import Path

import torch

import recpress
from recpress.errors import RepositoryError
from recpress.serving.config import CONFIG, read_config, write_config
from recpress_kernels.bench import dlrm, dlrm_peers

OURS, FLOAT, ONNXRUNTIME = "recpress-24-int8", "torch-float32", "onnxruntime-int8"
PEERS = (FLOAT, ONNXRUNTIME)
RECIPE = "prune-24-int8"
CALIBRATION_ROWS = 512
LEAST_CORRELATION = 0.8
"""Of a model's logits with those of its original: a model below this is another one."""


def add_ours(repository: Path, rows: int) -> None:
    """Write our model into ``repository``, a folder that need not exist; one that is there is kept.

    Args:
        repository: a folder of models.
        rows: of each of the 26 tables.
    """
    if (repository / OURS / CONFIG).is_file():
        return
    examples = dlrm.inputs(CALIBRATION_ROWS, 99, rows)
    compressed = recpress.compress(dlrm.float_model(rows), RECIPE, calibration=[examples])
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder, "artifact")
        names = {"input_names": ("dense", "ids"), "output_names": ("logit",)}
        recpress.export(compressed, artifact, example_inputs=examples, **names)
        recpress.package(artifact, repository, name=OURS)


def build(repository: Path, rows: int) -> None:
    """Write the models into ``repository``, a folder that need not exist; what it holds already is kept.

    Args:
        repository: a folder of models.
        rows: of each of the 26 tables.

    Raises:
        RepositoryError: it holds these models with tables of another size.
    """
    if (repository / FLOAT / CONFIG).is_file():
        kept = int(read_config(repository / FLOAT).parameters["rows"].string_value)
        if kept != rows:
            raise RepositoryError(
                f"the models in {repository} have tables of {kept} rows, not {rows}; give a new folder"
            )
    add_ours(repository, rows)
    for name in PEERS:
        if not (repository / name / CONFIG).is_file():
            _add_peer(repository, name, rows)


def _add_peer(repository: Path, name: str, rows: int) -> None:
    """A model of the server's Python backend, configured as ours is."""
    with tempfile.TemporaryDirectory(dir=repository.resolve().parent) as folder:
        staging = Path(folder, name)
        version = staging / "1"
        version.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("serve_peer.py"), version / "model.py")
        if name == ONNXRUNTIME:
            calibration = dlrm.inputs(CALIBRATION_ROWS, 99, rows)
            dlrm_peers.write_onnxruntime_whole(dlrm.float_model(rows), *calibration, version / "int8.onnx")
        config = read_config(repository / OURS)
        config.name, config.backend = name, "python"
        config.parameters["rows"].string_value = str(rows)
        write_config(staging, str(config))
        staging.rename(repository / name)


def originals(rows: int, dense: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each model should come near: float32's logits, and for ours those of the pruned model in float32."""
    model = dlrm.float_model(rows)
    pruned = recpress.prune(model, recpress.Recipe.preset(RECIPE).prune).model
    with torch.inference_mode():
        logits = model(dense, ids)[:, 0]
        return {FLOAT: logits, ONNXRUNTIME: logits, OURS: pruned(dense, ids)[:, 0]}
