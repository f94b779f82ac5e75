"""The backend ``recpress``: runs inside the server, one process for each instance of a model.

The server looks for this file in its folder of backends; :mod:`recpress.serving.server` puts it there.
Tensors come and go by DLPack, as capsules: the server's numpy path returns wrong values under numpy 2, and the tensor's
own methods of DLPack take 5 us each.
"""

import json
import time
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

from recpress.artifact.load import load
from recpress.artifact.ragged import arguments, names
from recpress.errors import IndexBoundsError, RecpressError
from recpress.serving.backend.aside import Aside
from recpress.serving.deadlines import MALFORMED, Deadlines, Refused
from recpress.serving.rows import RowChecker, RowsRefused, all_finite, join, split

BUCKETS_S = [0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0]


class TritonPythonModel:
    """Loads the artifact beside it, proves its golden rows, and scores."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        torch.set_num_threads(int(config["parameters"]["threads"]["string_value"]))
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            self.model = load(folder)
        except RecpressError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.manifest = self.model.manifest
        scalars = {spec.name for spec in self.manifest.inputs if not spec.shape}
        self.inputs = [(name, name in scalars) for name in names(self.manifest)]
        self.checker = RowChecker(self.manifest)
        self.deadlines = Deadlines()
        self.latency = _latency_histogram(args)
        self.aside = Aside(self._metrics_failed)
        # For good, on the thread that scores too: entered for each request it takes 5 us.
        self.inference_mode = torch.inference_mode()
        self.inference_mode.__enter__()

    def finalize(self) -> None:
        self.aside.close()

    def execute(self, requests: list) -> list:
        begin = time.perf_counter()
        answers: list = [None] * len(requests)
        inputs = {}
        for i, request in enumerate(requests):
            try:
                inputs[i] = self._inputs(request)
            except RowsRefused as refused:
                answers[i] = _refusal(str(refused))
        asked = {i: (requests[i].parameters(), own[0].shape[0]) for i, own in inputs.items()}
        for i, refused in self.deadlines.refuse(asked).items():
            answers[i] = _too_late(refused)
            del inputs[i]
        if inputs:
            self._check_and_score(inputs, answers)
        if rows := sum(own[0].shape[0] for own in inputs.values()):
            self.deadlines.times.add(rows, time.perf_counter() - begin)
        if self.latency is not None:
            self.aside(self.latency[1].observe, time.perf_counter() - begin)
        return answers

    def _check_and_score(self, inputs: dict[int, tuple[Tensor, ...]], answers: list) -> None:
        """Answer all of ``inputs``, and leave in it those that pass the check."""
        if not self.checker.clean(joined := join(list(inputs.values()))):
            for i in list(inputs):
                if complaint := self.checker.complaint(inputs[i]):
                    answers[i] = _refusal(complaint)
                    del inputs[i]
            joined = join(list(inputs.values())) if inputs else ()
        if inputs:
            self._score(inputs, joined, answers)

    def _inputs(self, request) -> tuple[Tensor, ...]:
        tensors = []
        for name, scalar in self.inputs:
            given = from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())
            tensors.append(given.reshape(given.shape[0]) if scalar else given)
        return self.checker.received(tuple(tensors))

    def _score(self, inputs: dict[int, tuple[Tensor, ...]], joined: tuple[Tensor, ...], answers: list) -> None:
        """Score the requests together; where that fails for one of them, each alone."""
        try:
            outputs = self.model.module(*arguments(self.manifest.ragged, joined))
        except Exception as error:
            if len(inputs) == 1:
                answers[next(iter(inputs))] = _failure(error)
                return
            for i, own in inputs.items():
                self._score({i: own}, own, answers)
            return
        sound = all(all_finite(output) for output in outputs if output.is_floating_point())
        specs = self.manifest.outputs
        wire = tuple(o.reshape(o.shape[0], *s.wire_shape).contiguous() for s, o in zip(specs, outputs, strict=True))
        parts = split(wire, [own[0].shape[0] for own in inputs.values()])
        for i, part in zip(inputs, parts, strict=True):
            complaint = None if sound else self._overflow(part)
            answers[i] = _refusal(complaint) if complaint else self._response(part)

    def _overflow(self, outputs: tuple[Tensor, ...]) -> str | None:
        for spec, output in zip(self.manifest.outputs, outputs, strict=True):
            if output.is_floating_point() and not all_finite(output):
                flat = output.reshape(output.shape[0], -1)
                row, column = (~torch.isfinite(flat)).nonzero()[0].tolist()
                return (
                    f"output {spec.name!r}, row {row} is {flat[row, column].item()}: the model overflows on that row's "
                    "inputs, which are finite; give values like those it was trained on"
                )
        return None

    def _response(self, outputs: tuple[Tensor, ...]):
        pairs = zip(self.manifest.outputs, outputs, strict=True)
        sent = [pb_utils.Tensor.from_dlpack(spec.name, to_dlpack(output)) for spec, output in pairs]
        return pb_utils.InferenceResponse(output_tensors=sent)

    def _metrics_failed(self, error: Exception) -> None:
        # A metric must not fail a request that has its scores.
        if self.latency is not None:
            self.latency = None
            pb_utils.Logger.log_error(f"recpress: latency metrics stopped ({error})")


def _too_late(refused: Refused):
    code = pb_utils.TritonError.INVALID_ARG if refused.reason == MALFORMED else pb_utils.TritonError.UNAVAILABLE
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(refused.text, code))


def _refusal(text: str):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG))


def _failure(error: Exception):
    """The answer to a request that the model itself fails on: no traceback and no path for a client."""
    if isinstance(error, IndexBoundsError):
        return _refusal(str(error))
    if isinstance(error, IndexError):
        return _refusal("an index is outside its table, in a column whose bound the manifest does not know")
    pb_utils.Logger.log_error(f"recpress: the model fails on a request: {type(error).__name__}: {error}")
    text = f"the model fails on this request ({type(error).__name__}); the server's log says why"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INTERNAL))


def _latency_histogram(args: dict[str, str]) -> tuple | None:
    """The histogram's family and metric; the family must be kept, or observations fail. None where metrics are off."""
    try:
        family = pb_utils.MetricFamily(
            name="recpress_execute_seconds",
            description="Time from the backend's execute to its answers, by execution, in seconds",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "model_instance": args["model_instance_name"],
        }
        return family, family.Metric(labels=labels, buckets=BUCKETS_S)
    except Exception as error:
        pb_utils.Logger.log_warn(f"recpress: no latency metrics ({error})")
        return None
