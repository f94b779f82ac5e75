"""The backend ``recpress``: runs inside the server, one process for each instance of a model.

The server looks for this file in its folder of backends; :mod:`recpress.serving.server` puts it there.
Tensors come and go by DLPack, as capsules: the server's numpy path returns wrong values under numpy 2, and the tensor's
own methods of DLPack take 5 us each.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

from recpress.artifact.load import LoadedModel, load
from recpress.artifact.ragged import arguments, names
from recpress.errors import IndexBoundsError, RecpressError
from recpress.serving.backend.gpu import GpuForward, why_not
from recpress.serving.backend.metrics import BackendMetrics, Laps
from recpress.serving.deadlines import MALFORMED, Deadlines, Refused
from recpress.serving.rows import MUST_BE_FINITE, RowChecker, RowsRefused, all_finite, join, split


class TritonPythonModel:
    """Loads the artifact beside it, proves its golden rows, and scores."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        torch.set_num_threads(int(config["parameters"]["threads"]["string_value"]))
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            self.model = load(folder, device=_device(args))
        except RecpressError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.manifest = self.model.manifest
        scalars = {spec.name for spec in self.manifest.inputs if not spec.shape}
        self.inputs = [(name, name in scalars) for name in names(self.manifest)]
        self.checker = RowChecker(self.manifest)
        self.deadlines = Deadlines()
        self.metrics = _metrics(args)
        self.metrics.start(self.manifest, self.model.verdict, self.model.kernels)
        self.forward = _forward(self.model, folder, config["max_batch_size"])
        # For good, on the thread that scores too: entered for each request it takes 5 us.
        self.inference_mode = torch.inference_mode()
        self.inference_mode.__enter__()

    def finalize(self) -> None:
        self.metrics.close()

    def execute(self, requests: list) -> list:
        laps = Laps()
        answers: list = [None] * len(requests)
        inputs = {}
        for i, request in enumerate(requests):
            try:
                inputs[i] = self._inputs(request)
            except RowsRefused as refused:
                answers[i] = self._refusal("malformed", str(refused))
        asked = {i: (requests[i].parameters(), own[0].shape[0]) for i, own in inputs.items()}
        for i, refused in self.deadlines.refuse(asked).items():
            answers[i] = self._too_late(refused)
            del inputs[i]
        laps.end("check")
        if inputs:
            self._check_and_score(inputs, answers, laps)
        if rows := sum(own[0].shape[0] for own in inputs.values()):
            self.deadlines.times.add(rows, laps.total)
        self.metrics.executed(laps, len(requests))
        return answers

    def _check_and_score(self, inputs: dict[int, tuple[Tensor, ...]], answers: list, laps: Laps) -> None:
        """Answer all of ``inputs``, and leave in it those that pass the check."""
        if not self.checker.clean(joined := join(list(inputs.values()))):
            for i in list(inputs):
                if complaint := self.checker.complaint(inputs[i]):
                    reason = "not_finite" if complaint.endswith(MUST_BE_FINITE) else "out_of_range"
                    answers[i] = self._refusal(reason, complaint)
                    del inputs[i]
            joined = join(list(inputs.values())) if inputs else ()
        laps.end("check")
        if inputs:
            self._score(inputs, joined, answers, laps)

    def _inputs(self, request) -> tuple[Tensor, ...]:
        tensors = []
        for name, scalar in self.inputs:
            given = from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())
            tensors.append(given.reshape(given.shape[0]) if scalar else given)
        return self.checker.received(tuple(tensors))

    def _score(
        self, inputs: dict[int, tuple[Tensor, ...]], joined: tuple[Tensor, ...], answers: list, laps: Laps
    ) -> None:
        """Score the requests together; where that fails for one of them, each alone."""
        try:
            outputs = self.forward(*joined)
        except Exception as error:
            if len(inputs) == 1:
                answers[next(iter(inputs))] = self._failure(error)
                return
            for i, own in inputs.items():
                self._score({i: own}, own, answers, laps)
            return
        finally:
            laps.end("forward")
        sound = all(all_finite(output) for output in outputs if output.is_floating_point())
        specs = self.manifest.outputs
        wire = tuple(o.reshape(o.shape[0], *s.wire_shape).contiguous() for s, o in zip(specs, outputs, strict=True))
        parts = split(wire, [own[0].shape[0] for own in inputs.values()])
        for i, part in zip(inputs, parts, strict=True):
            complaint = None if sound else self._overflow(part)
            answers[i] = self._refusal("overflow", complaint) if complaint else self._response(part)
        laps.rows += outputs[0].shape[0]
        self.metrics.scored(outputs[0])
        laps.end("answer")

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

    def _too_late(self, refused: Refused):
        self.metrics.rejected(refused.reason)
        code = pb_utils.TritonError.INVALID_ARG if refused.reason == MALFORMED else pb_utils.TritonError.UNAVAILABLE
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(refused.text, code))

    def _refusal(self, reason: str, text: str):
        self.metrics.rejected(reason)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG))

    def _failure(self, error: Exception):
        """The answer to a request that the model itself fails on: no traceback and no path for a client."""
        if isinstance(error, IndexBoundsError):
            return self._refusal("out_of_range", str(error))
        if isinstance(error, IndexError):
            text = "an index is outside its table, in a column whose bound the manifest does not know"
            return self._refusal("out_of_range", text)
        self.metrics.rejected("model_error")
        pb_utils.Logger.log_error(f"recpress: the model fails on a request: {type(error).__name__}: {error}")
        text = f"the model fails on this request ({type(error).__name__}); the server's log says why"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INTERNAL))


def _device(args: dict[str, str]) -> str:
    """Raises TritonModelException where the instance is for a GPU that cannot serve."""
    if args["model_instance_kind"] != "GPU":
        return "cpu"
    index = int(args["model_instance_device_id"])
    if reason := why_not(index):
        raise pb_utils.TritonModelException(reason)
    return f"cuda:{index}"


def _forward(model: LoadedModel, folder: Path, max_batch_size: int) -> Callable[..., tuple[Tensor, ...]]:
    """What scores joined rows on the host, ``[B, *shape]`` each, B up to ``max_batch_size``."""
    if model.device.type == "cuda":
        return GpuForward(model, folder, max_batch_size, pb_utils.Logger.log_warn)
    module, ragged = model.module, model.manifest.ragged
    return module if ragged is None else lambda *rows: module(*arguments(ragged, rows))


def _metrics(args: dict[str, str]) -> BackendMetrics:
    labels = {
        "model": args["model_name"],
        "version": args["model_version"],
        "model_instance": args["model_instance_name"],
    }
    return BackendMetrics(None if os.environ.get("RECPRESS_METRICS") == "off" else pb_utils, labels)
