"""A model of the server's Python backend that a benchmark compares with: another library, otherwise as our backend.

Copied into a model's version folder as ``model.py``; it takes ``int8.onnx`` beside it, or is float32 in torch. Requests
of one ``execute`` are joined into one forward, tensors come and go by DLPack, and one thread computes. Rows are not
checked, which the backend ``recpress`` does.
"""

import json
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from recpress.serving.rows import join, split
from recpress_kernels.bench import dlrm, dlrm_peers


class TritonPythonModel:
    """The DLRM of the benchmark; the configuration's parameters are ``threads`` and ``rows``, of each table."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        torch.set_num_threads(int(config["parameters"]["threads"]["string_value"]))
        self.inputs = [entry["name"] for entry in config["input"]]
        self.output = config["output"][0]["name"]
        graph = Path(args["model_repository"], args["model_version"], "int8.onnx")
        if graph.is_file():
            self.call = dlrm_peers.read_onnxruntime_whole(graph)
        else:
            self.call = dlrm.float_model(int(config["parameters"]["rows"]["string_value"]))

    def execute(self, requests: list) -> list:
        given = [tuple(self._input(request, name) for name in self.inputs) for request in requests]
        with torch.inference_mode():
            scores = self.call(*join(given))
        parts = split((scores,), [own[0].shape[0] for own in given])
        return [pb_utils.InferenceResponse([self._output(part)]) for (part,) in parts]

    def _input(self, request, name: str) -> torch.Tensor:
        return torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())

    def _output(self, part: torch.Tensor):
        return pb_utils.Tensor.from_dlpack(self.output, part.contiguous())
