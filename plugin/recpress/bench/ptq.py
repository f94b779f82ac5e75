"""What post-training quantisation costs a DLRM on MovieLens-100K: ``recpress bench ptq [--seeds 3] [--json FILE]``.

Each way of quantising is applied to the demo's model trained from each seed, with the first 4,096 training rows as
calibration inputs, and compared with the original on the same test rows: ``auc`` is the share of its AUC that is kept,
``logloss`` what is added to it in nats, ``calibration`` the mean prediction over the mean label (that of the original
in its own row) and ``logit`` the root mean square of the change of the logits. "weights" are linear layers' alone,
dequantised to float32, with inputs as they are: what a width of the weights costs by itself, whether or not there are
kernels for it.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from recpress.demo import BOTTOM, DIM, TOP
from recpress.layers import Int8Linear
from recpress.pipeline import compress
from recpress.quantize import adaround, bias
from recpress.quantize.capture import ROWS, capture
from recpress.recipe import Recipe
from recpress_kernels.bench import save
from recpress_kernels.formats.affine import (
    dequantize_symmetric,
    extremes,
    largest_level,
    share,
    symmetric,
    unshare,
)
from recpress_kernels.formats.int8 import quantize_per_channel

Variant = Callable[[nn.Module, tuple[Tensor, Tensor]], nn.Module]


def run(seeds: int = 3, only: list[str] | None = None) -> list[dict]:
    """One row a way of quantising and seed.

    Raises:
        DataError: MovieLens-100K cannot be had.
    """
    from recpress.data import movielens
    from recpress.zoo.dlrm import DLRM
    from recpress.zoo.train import train

    data = movielens.load()
    calibration = data.train.dense[:ROWS], data.train.sparse[:ROWS]
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = DLRM(num_dense=len(data.dense_names), table_rows=data.table_rows, dim=DIM, bottom=BOTTOM, top=TOP)
        train(model, data.train, data.valid, seed=seed)
        truth = _figures(model, data.test, None)
        rows.append({"what": "original", "seed": seed, **truth})
        for name, variant in variants().items():
            if only is None or any(part in name for part in only):
                found = _figures(variant(model, calibration), data.test, model)
                found["auc"] /= truth["auc"]
                found["logloss"] -= truth["logloss"]
                rows.append({"what": name, "seed": seed, **found})
    return rows


def variants() -> dict[str, Variant]:
    """The ways of quantising, by name."""
    found: dict[str, Variant] = {}
    for activations in ("row", "static"):
        for name, extra in (
            ("", {}),
            (", adaround", {"rounding": "adaround"}),
            (", bias_correction", {"bias_correction": True}),
        ):
            recipe = Recipe(embedding="keep", activations=activations, **extra)
            found[f"int8, activations {activations}{name}"] = partial(_compressed, recipe=recipe)
    found["int8, activations row, weights of 7 bits"] = _seven_bits
    found["int8 without calibration"] = partial(_compressed, recipe=Recipe(embedding="keep"), calibrated=False)
    for bits, group in ((8, 0), (7, 0), (4, 0), (4, 32)):
        for learnt in (False, True):
            for corrected in (False, True):
                parts = [f"weights of {bits} bits a {'group of ' + str(group) if group else 'channel'}"]
                parts += ["adaround"] * learnt + ["bias_correction"] * corrected
                how = {"bits": bits, "group": group, "learnt": learnt, "corrected": corrected}
                found[", ".join(parts)] = partial(_fake, **how)
    return found


def _compressed(model: nn.Module, inputs: tuple, *, recipe: Recipe, calibrated: bool = True) -> nn.Module:
    return compress(model, recipe, calibration=[inputs] if calibrated else None).model


def _seven_bits(model: nn.Module, inputs: tuple) -> nn.Module:
    new = compress(model, Recipe(embedding="keep"), calibration=[inputs]).model
    for mine, theirs in zip(new.modules(), model.modules(), strict=True):
        if isinstance(mine, Int8Linear):
            weight = theirs.weight.detach() if mine.multiplier is None else theirs.weight.detach() / mine.multiplier
            mine.weight, mine.weight_scale = quantize_per_channel(weight, weight_bits=7)
    return new


def _fake(model: nn.Module, inputs: tuple, *, bits: int, group: int, learnt: bool, corrected: bool) -> nn.Module:
    """A copy of ``model`` with the weights of its linear layers as ``bits`` bits would give them back."""
    seen = capture(model, [inputs])
    new = copy.deepcopy(model)
    for mine, theirs in zip(new.modules(), model.modules(), strict=True):
        if type(mine) is nn.Linear:
            x = seen.inputs[id(theirs)]
            mine.weight.data = fake_weight(theirs.weight.detach(), bits, group, x if learnt else x[:0])
            if corrected:
                mine.bias.data = bias.corrected(mine, theirs, x)
    return new


def fake_weight(weight: Tensor, bits: int, group: int, inputs: Tensor) -> Tensor:
    """``weight`` ``[out, in]`` as quantised to ``bits``, by channel or ``group`` inputs of it, gives it back.

    Rounding is learnt where there are ``inputs``.
    """
    values = share(weight, "group" if group else "channel", group)
    low, high = extremes(values)
    largest = largest_level(bits)
    scale = symmetric(torch.maximum(-low, high), largest)[:, None]
    each = unshare(scale.expand_as(values), weight.shape)
    return dequantize_symmetric(adaround.learn(weight, each, largest, inputs), each)


def _figures(model: nn.Module, rows, original: nn.Module | None) -> dict[str, float]:
    from recpress.zoo.quality import quality, score

    logits = score(model, rows).double()
    found = quality(model, rows)
    found["calibration"] = float(torch.sigmoid(logits).mean() / rows.label.double().mean())
    if original is not None:
        found["logit"] = float((logits - score(original, rows).double()).square().mean().sqrt())
    return found


def table(rows: list[dict]) -> Table:
    """A line a way of quantising: the means over seeds, and the least share of the AUC."""
    shown = Table("", "AUC kept", "least", "logloss", "calibration", "logit", title="of the original, means over seeds")
    by: dict[str, list[dict]] = {}
    for row in rows:
        by.setdefault(row["what"], []).append(row)
    for what, mine in by.items():
        means = {key: sum(row[key] for row in mine) / len(mine) for key in mine[0] if key not in ("what", "seed")}
        if what == "original":
            shown.add_row(what, f"{means['auc']:.5f}", "", f"{means['logloss']:.5f}", f"{means['calibration']:.4f}", "")
            continue
        shown.add_row(
            what,
            f"{means['auc']:.3%}",
            f"{min(row['auc'] for row in mine):.3%}",
            f"{means['logloss']:+.6f}",
            f"{means['calibration']:.4f}",
            f"{means['logit']:.4f}",
        )
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench ptq``."""
    parser = argparse.ArgumentParser(prog="recpress bench ptq", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many models are trained")
    parser.add_argument("--only", nargs="*", help="parts of names of ways of quantising")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = run(given.seeds, given.only)
    Console(width=120).print(table(rows))
    if given.json:
        save({"kind": "ptq", "rows": rows}, given.json)
