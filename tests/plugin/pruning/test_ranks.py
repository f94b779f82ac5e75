"""Masks under the real torchrun: two processes of DistributedDataParallel over gloo, each with rows of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import pruning_rank
from support.pruning_rank import CRITERIA, model, rows

from recpress import Pruner, PruneSpec
from recpress.pruning import masks, ranks
from recpress.pruning.schedules import Constant

SECONDS = 300


def torchrun(folder: Path, what: str) -> list[dict]:
    """What each of two ranks came to."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", pruning_rank.__file__, str(folder), what]
    local = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / f"{what}.log").open("w+") as log:
        run = subprocess.Popen(command, env=os.environ | local, stdout=log, stderr=log, start_new_session=True)
        try:
            code = run.wait(SECONDS)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        log.seek(0)
        assert code == 0, log.read()[-3000:]
    return [torch.load(folder / f"{what}-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def straight(folder):
    return torchrun(folder, "straight")


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[part][name], b[part][name]) for part in ("weights", "masks") for name in a[part])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_all_ranks_mask_the_same_whatever_rows_each_has_seen(straight, criterion):
    first, second = (found[criterion] for found in straight)
    assert same(first, second)
    assert set(first["masks"]) == {"0.weight", "2.weight", "4.weight"}
    for name, keep in first["masks"].items():
        assert int((~keep).sum()) == round(0.6 * keep.numel())
        assert torch.equal(first["weights"][name] != 0, keep), "optimiser steps brought nothing back"
    alone = [found[f"{criterion} alone"]["masks"] for found in straight]
    differ = any(not torch.equal(alone[0][name], alone[1][name]) for name in alone[0])
    assert differ, "the control: by its own rows each would mask others"


def test_wanda_is_that_of_all_ranks_rows(straight):
    net = model()
    Pruner(net, PruneSpec(criterion="wanda"), Constant(0.5), calibration=[rows(99, 0), rows(99, 1)]).step(0)
    assert all(
        torch.equal(straight[0]["wanda at once"]["masks"][name], keep) for name, keep in masks.masks(net).items()
    )


def test_models_that_were_pruned_apart_are_shared(straight):
    first, second = straight
    assert not same(first["before sharing"], second["before sharing"])
    assert same(first["shared"], second["shared"]) and same(first["shared"], first["before sharing"])
    for found in straight:
        assert (
            "rank 1 has other parameters than that of rank 0: 0.weight [16, 8], not 0.weight [12, 8]"
            in found["refused"]
        )
    assert not ranks.several() and ranks.share(net := model()) is net


def test_training_goes_on_from_one_rank_s_checkpoint_as_if_it_had_not_stopped(straight, folder):
    for found, before in zip(torchrun(folder, "resumed"), straight, strict=True):
        assert all(same(found[criterion], before[criterion]) for criterion in CRITERIA)
