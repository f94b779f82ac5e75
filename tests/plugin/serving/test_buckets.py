"""Buckets with captures that run on the CPU: like a CUDA graph's they read the buffers and know one number of rows."""

import pytest
import torch
from support.small import small_inputs

import recpress
from recpress.artifact.load import read_golden
from recpress.serving.backend.buckets import Buckets, bucketed, sizes
from recpress.serving.backend.gpu import _proven, why_not


@pytest.fixture(scope="module")
def model(artifact):
    return recpress.load(artifact)


class Captures:
    """Captures of ``forward``, each with one tensor for its outputs; tells what was captured and replayed."""

    def __init__(self, forward):
        self.forward, self.captured, self.replayed = forward, [], []

    def __call__(self, inputs):
        size = inputs[0].shape[0]
        self.captured.append(size)
        (static,) = (output.clone() for output in self.forward(*inputs))

        def replay():
            self.replayed.append((size, [x.clone() for x in inputs]))
            static.copy_(self.forward(*inputs)[0])
            return (static,)

        return replay


def frozen(forward):
    """A capture that does not read its buffers again."""

    def capture(inputs):
        outputs = forward(*inputs)
        return lambda: outputs

    return capture


def first_row():
    return tuple(x[:1] for x in small_inputs(1))


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_sizes_are_powers_of_two_and_the_largest_batch(most, expected):
    assert sizes(most) == expected


@torch.inference_mode()
def test_each_batch_scores_as_it_does_alone(model):
    captures = Captures(model.module)
    forward = Buckets(first_row(), 13, captures)
    assert captures.captured == [13, 8, 4, 2, 1], "all before the first request, the largest first"
    for rows in (13, 1, 5, 2, 12, 3, 8, 4):
        given = small_inputs(rows, seed=rows)
        (score,) = forward(given)
        assert score.shape[0] == rows
        torch.testing.assert_close(score, model.module(*given)[0], rtol=0, atol=1e-6)
    assert [size for size, _ in captures.replayed] == [13, 1, 8, 2, 13, 4, 8, 4]
    assert len(captures.captured) == 5, "no request captures"


@torch.inference_mode()
def test_filling_repeats_the_last_row(model):
    captures = Captures(model.module)
    given = small_inputs(5, seed=3)
    forward = Buckets(first_row(), 8, captures)
    forward(small_inputs(8, seed=4))
    forward(given)
    for seen, x in zip(captures.replayed[-1][1], given, strict=True):
        assert torch.equal(seen, x[[0, 1, 2, 3, 4, 4, 4, 4]])


@torch.inference_mode()
def test_a_capture_that_does_not_read_its_buffers_would_be_seen(model):
    given = small_inputs(4, seed=5)
    (score,) = Buckets(first_row(), 8, frozen(model.module))(given)
    assert not torch.allclose(score, model.module(*given)[0], rtol=0, atol=1e-3)


def test_where_capturing_fails_the_model_runs_as_it_is_and_one_line_says_why(model):
    def capture(inputs):
        if inputs[0].shape[0] < 4:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return lambda: model.module(*inputs)

    lines = []

    def eager(rows):
        return model.module(*rows)

    assert bucketed(eager, first_row(), 8, capture, lines.append) is eager
    assert len(lines) == 1 and lines[0].endswith("RuntimeError: operation not permitted when stream is capturing")


@torch.inference_mode()
@pytest.mark.parametrize("sound", [True, False])
def test_a_capture_serves_only_if_it_scores_the_golden_rows(model, artifact, sound):
    inputs, expected = (tuple(each.values()) for each in read_golden(artifact, model.manifest))
    capture = Captures(model.module) if sound else frozen(model.module)
    lines = []
    proven = _proven(capture, model, inputs, expected)
    forward = bucketed(lambda rows: model.module(*rows), tuple(x[:1] for x in inputs), 48, proven, lines.append)
    assert isinstance(forward, Buckets) == sound
    assert not lines if sound else "a graph of 48 rows does not score the golden rows as stored" in lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing_and_what_to_do():
    reason = why_not(0)
    assert f"torch {torch.__version__} sees none" in reason
    assert "NVIDIA's driver" in reason and "device='cpu'" in reason
