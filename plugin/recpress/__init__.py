"""Compress a trained PyTorch recommender, export it, and serve it from NVIDIA Triton Inference Server.

>>> compressed = recpress.compress(model, "int8", evaluate=...)
>>> compressed = recpress.auto(model, train, valid, rows=judged, share=0.999).accepted()
>>> recpress.export(compressed, "artifact", example_inputs=(dense, sparse), input_names=("dense", "sparse"))
>>> recpress.load("artifact").score({"dense": dense, "sparse": sparse})
>>> recpress.package("artifact", "model_repository", name="dlrm")
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Bag": "recpress.artifact.ragged",
    "Compressed": "recpress.pipeline",
    "PruneSpec": "recpress.pruning.spec",
    "Pruned": "recpress.pruning.oneshot",
    "Pruner": "recpress.pruning.gradual",
    "Recipe": "recpress.recipe",
    "Recombined": "recpress.recombined",
    "RecpressError": "recpress.errors",
    "Report": "recpress.pipeline",
    "auto": "recpress.search.auto",
    "compress": "recpress.pipeline",
    "convert": "recpress.qat",
    "count_ids": "recpress.tables",
    "export": "recpress.artifact.export",
    "finetune": "recpress.finetuning",
    "load": "recpress.artifact.load",
    "pack_bags": "recpress.artifact.ragged",
    "package": "recpress.serving.repository",
    "prepare": "recpress.qat",
    "prune": "recpress.pruning.oneshot",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    # Looked up when first used: the server's backend imports what it runs, never what trains.
    if name not in _HOMES:
        raise AttributeError(f"module 'recpress' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
