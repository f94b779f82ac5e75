"""CUDA graphs by batch bucket on a real GPU: the scores of the model run eagerly there."""

import pytest
import torch
from support.small import small_inputs, small_model

import recpress
from recpress.artifact.load import load
from recpress.serving.backend.gpu import GpuForward, why_not


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = recpress.compress(small_model(), "int8")
    folder = tmp_path_factory.mktemp("graphs") / "artifact"
    names = {"input_names": ("dense", "sparse"), "output_names": ("logit",)}
    recpress.export(model, folder, example_inputs=small_inputs(32), **names)
    return folder


def test_graphs_score_as_eager_does(folder):
    model, lines = load(folder, device="cuda:0"), []
    forward = GpuForward(model, folder, 100, lines.append)
    assert forward.captured and not lines
    with torch.inference_mode():
        for rows in (100, 1, 3, 33, 64, 65, 2):
            given = small_inputs(rows, seed=rows)
            (score,) = forward(*given)
            (eager,) = model.module(*(x.cuda() for x in given))
            assert score.device.type == "cpu" and score.shape == eager.shape
            torch.testing.assert_close(score, eager.cpu(), rtol=0, atol=1e-5)


def test_what_waits_for_the_device_runs_eagerly_and_says_why(folder):
    model, lines = load(folder, device="cuda:0"), []
    plain = model.module.forward
    model.module.forward = lambda dense, sparse: plain(dense, sparse + int(sparse.sum().item()) * 0)
    forward = GpuForward(model, folder, 8, lines.append)
    assert not forward.captured and len(lines) == 1 and "without CUDA graphs" in lines[0]
    given = small_inputs(5)
    with torch.inference_mode():
        torch.testing.assert_close(forward(*given)[0], plain(*(x.cuda() for x in given))[0].cpu(), rtol=0, atol=1e-5)


def test_a_gpu_that_is_not_there_is_named():
    assert why_not(0) is None
    assert f"GPU {torch.cuda.device_count()}" in why_not(torch.cuda.device_count())
