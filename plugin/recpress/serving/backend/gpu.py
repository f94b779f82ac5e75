"""What an instance on a GPU does otherwise: its device, its stream, and CUDA graphs by batch bucket."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from recpress.artifact.golden import judge
from recpress.artifact.load import LoadedModel, read_golden
from recpress.artifact.ragged import arguments
from recpress.errors import ArtifactError
from recpress.serving.backend.buckets import Capture, Forward, Rows, bucketed

_WARM_UPS = 3
"""Runs before a capture: the first compiles kernels and makes the libraries' workspaces, which no capture may do."""


def why_not(index: int) -> str | None:
    """Why GPU ``index`` cannot serve here, and what to do; None where it can."""
    remedy = "or package the model with device='cpu'"
    if not torch.cuda.is_available():
        return (
            f"the model is to run on GPU {index}, but torch {torch.__version__} sees none; install a build of torch "
            f"for CUDA and NVIDIA's driver where the server runs, {remedy}"
        )
    if index not in range(found := torch.cuda.device_count()):
        return (
            f"the model is to run on GPU {index}, but torch sees {found}, numbered from 0; "
            f"give the server's process that GPU (CUDA_VISIBLE_DEVICES), {remedy}"
        )
    return None


class GpuForward:
    """Scores rows that lie on the host, on a stream of its own; outputs lie on the host again, and are complete.

    Models with bags run eagerly, as the number of their values is another in each batch. The others run as CUDA
    graphs that scored the golden rows as stored, or eagerly where that fails; then ``log`` gets one line why. A graph
    checks no index: the rows must have been checked before.
    """

    def __init__(self, model: LoadedModel, folder: Path, max_batch_size: int, log: Callable[[str], None]) -> None:
        self._model = model
        torch.cuda.set_device(model.device)
        self._stream = torch.cuda.Stream(model.device)
        # Weights and constants were put there on another.
        torch.cuda.synchronize(model.device)
        self._forward: Forward = self._eager
        if model.manifest.ragged is None:
            inputs, expected = read_golden(folder, model.manifest)
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                row = tuple(x[:1].to(model.device) for x in inputs.values())
                capture = _proven(self._capture(), model, tuple(inputs.values()), tuple(expected.values()))
                self._forward = bucketed(self._eager, row, max_batch_size, capture, log)

    @property
    def captured(self) -> bool:
        """Whether it runs as CUDA graphs."""
        return self._forward != self._eager

    def __call__(self, *rows: Tensor) -> Rows:
        with torch.cuda.stream(self._stream):
            # Each copy to the host waits for the stream.
            return tuple(output.cpu() for output in self._forward(arguments(self._model.manifest.ragged, rows)))

    def _eager(self, inputs: Rows) -> Rows:
        # From memory that is not pinned: nothing runs meanwhile that a copy could overlap with, and to pin the
        # server's tensors would be one more copy.
        return self._model.module(*(x.to(self._model.device, non_blocking=True) for x in inputs))

    def _capture(self) -> Capture:
        pool = torch.cuda.graph_pool_handle()

        def capture(inputs: Rows) -> Callable[[], Rows]:
            for _ in range(_WARM_UPS):
                self._model.module(*inputs)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                outputs = tuple(self._model.module(*inputs))

            def replay() -> Rows:
                graph.replay()
                return outputs

            return replay

        return capture


def _proven(capture: Capture, model: LoadedModel, golden: Rows, expected: Rows) -> Capture:
    """``capture``, and a check that replays score the golden rows as stored, whatever rows it was captured on."""

    def checked(inputs: Rows) -> Callable[[], Rows]:
        replay = capture(inputs)
        size = inputs[0].shape[0]
        for start in range(0, model.manifest.golden.rows, size):
            at = torch.arange(start, start + size) % model.manifest.golden.rows
            for buffer, values in zip(inputs, golden, strict=True):
                buffer.copy_(values[at])
            verdict = judge(_on_host(replay()), tuple(values[at] for values in expected), model.manifest.golden)
            if not verdict.ok:
                raise ArtifactError(f"a graph of {size} rows does not score the golden rows as stored: {verdict}")
        return replay

    return checked


def _on_host(outputs: Rows) -> tuple[Tensor, ...]:
    return tuple(output.cpu() for output in outputs)
