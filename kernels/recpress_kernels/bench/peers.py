"""Int8 stacks of linear layers in other libraries, for comparison. Each is imported only when it is asked for.

A peer is a callable on a float32 tensor ``[batch, K]``; a library that is missing or refuses gives its reason.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Peer = Callable[[Tensor], object]


def torch_static(stack: nn.Sequential, calibration: Tensor) -> Peer:
    """FBGEMM through eager-mode static quantisation, weights per channel."""
    from torch.ao import quantization as q

    torch.backends.quantized.engine = "fbgemm"
    model = nn.Sequential(q.QuantStub(), *_copy(stack), q.DeQuantStub()).eval()
    pairs = [[str(i), str(i + 1)] for i, m in enumerate(model[:-1]) if isinstance(model[i + 1], nn.ReLU)]
    if pairs:
        model = q.fuse_modules(model, pairs)
    model.qconfig = q.get_default_qconfig("fbgemm")
    prepared = q.prepare(model)
    prepared(calibration)
    return q.convert(prepared)


def torch_dynamic(stack: nn.Sequential, calibration: Tensor) -> Peer:
    """FBGEMM through ``quantize_dynamic``, weights per channel."""
    from torch.ao import quantization as q

    torch.backends.quantized.engine = "fbgemm"
    return q.quantize_dynamic(_copy(stack).eval(), {nn.Linear: q.per_channel_dynamic_qconfig})


def onnxruntime_static(stack: nn.Sequential, calibration: Tensor) -> Peer:
    """onnxruntime on a QDQ graph, weights int8 per channel, activations uint8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter([{"x": calibration.numpy()}])

        def get_next(self):
            return next(self.rows, None)

    return _onnxruntime(
        stack,
        lambda source, target: quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        ),
    )


def onnxruntime_dynamic(stack: nn.Sequential, calibration: Tensor) -> Peer:
    """onnxruntime with dynamic quantisation, weights int8 per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _onnxruntime(
        stack,
        lambda source, target: quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8),
    )


PEERS: dict[str, Callable[[nn.Sequential, Tensor], Peer]] = {
    "onnxruntime static": onnxruntime_static,
    "onnxruntime dynamic": onnxruntime_dynamic,
    "torch static": torch_static,
    "torch dynamic": torch_dynamic,
}


def build(name: str, stack: nn.Sequential, calibration: Tensor) -> tuple[Peer | None, str]:
    """The peer, or None and why it is left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = PEERS[name](stack, calibration)
            peer(calibration[:1])
    except Exception as error:  # whatever a foreign library raises means that it is left out, and is said
        return None, f"{type(error).__name__}: {error}"
    return peer, ""


def _copy(stack: nn.Sequential) -> nn.Sequential:
    import copy

    return copy.deepcopy(stack)


def _onnxruntime(stack: nn.Sequential, quantize: Callable[[str, str], None]) -> Peer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder, "float.onnx")), str(Path(folder, "int8.onnx"))
        _write_onnx(stack, source)
        quantize(source, target)
        session = ort.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def _write_onnx(stack: nn.Sequential, path: str) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, value = [], [], "x"
    linears = [m for m in stack if isinstance(m, nn.Linear)]
    for i, module in enumerate(stack):
        out = f"v{i}" if i + 1 < len(stack) else "y"
        if isinstance(module, nn.ReLU):
            nodes.append(helper.make_node("Relu", [value], [out]))
        else:
            # MatMul and Add, not Gemm: the dynamic quantiser fuses MatMul alone.
            constants.append(numpy_helper.from_array(module.weight.detach().T.contiguous().numpy(), f"w{i}"))
            constants.append(numpy_helper.from_array(module.bias.detach().numpy(), f"b{i}"))
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [out]))
        value = out
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", linears[0].in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", linears[-1].out_features])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
