"""A whole DLRM in other libraries, for comparison: float32, and int8 tables and MLPs. Each is imported when asked for.

A peer is a callable on ``dense`` float32 ``[batch, 13]`` and ``ids`` int64 ``[batch, tables]`` that gives logits.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from recpress_kernels.bench import peers
from recpress_kernels.formats.rows import TAIL_BYTES, quantize_rows_int8

Model = Callable[[Tensor, Tensor], Tensor]


class Dlrm(nn.Module):
    """M. Naumov et al., 2019: a bottom MLP, tables, the dot products of all pairs, and a top MLP.

    ``tables`` float32 ``[rows, dim]`` each; ``bottom`` ends in ``dim`` features, ``top`` takes dim and the pairs.
    """

    def __init__(self, tables: list[Tensor], bottom: nn.Sequential, top: nn.Sequential) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(table) for table in tables)
        self.bottom, self.top = bottom, top
        i, j = torch.tril_indices(len(tables) + 1, len(tables) + 1, -1)
        self.register_buffer("i", i)
        self.register_buffer("j", j)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        rows = [table(ids[:, t]) for t, table in enumerate(self.tables)]
        return self.top(self.meet(self.bottom(dense), rows))

    def meet(self, x: Tensor, rows: list[Tensor]) -> Tensor:
        """The top MLP's input: the triangle by one index, which at small batches is faster than a slice a row."""
        vectors = torch.stack([x, *rows], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))
        return torch.cat([x, dots[:, self.i, self.j]], dim=1)

    def meetings(self, dense: Tensor, ids: Tensor) -> Tensor:
        """The top MLP's inputs for these rows, to calibrate it with."""
        rows = [table(ids[:, t]) for t, table in enumerate(self.tables)]
        return self.meet(self.bottom(dense), rows)


LookUp = Callable[[Tensor], list[Tensor]]
"""From ids int64 ``[batch, tables]`` to float32 ``[batch, dim]`` a table."""


def mixed(mlp: str, bags: Callable[[Dlrm], LookUp]) -> Callable[[Dlrm, Tensor, Tensor], Model]:
    """A builder: MLPs by the peer ``mlp`` of bench/peers.py, int8 tables by ``bags``, and torch between them."""

    def build(model: Dlrm, dense: Tensor, ids: Tensor) -> Model:
        bottom = peers.PEERS[mlp](model.bottom, dense)
        top = peers.PEERS[mlp](model.top, model.meetings(dense, ids))
        look_up = bags(model)
        return lambda dense, ids: torch.as_tensor(top(model.meet(torch.as_tensor(bottom(dense)), look_up(ids))))

    return build


def torch_bags(model: Dlrm) -> LookUp:
    """A call of torch's int8 operator for each table."""
    tables = [torch.ops.quantized.embedding_bag_byte_prepack(t.weight) for t in model.tables]
    look_up = torch.ops.quantized.embedding_bag_byte_rowwise_offsets

    def call(ids: Tensor) -> list[Tensor]:
        offsets = torch.arange(len(ids) + 1)
        columns = ids.t().contiguous()
        return [look_up(t, columns[i], offsets, include_last_offset=True) for i, t in enumerate(tables)]

    return call


def fbgemm_bags(model: Dlrm) -> LookUp:
    """FBGEMM's table-batched operator on our rows, whose pair it keeps in front of the codes."""
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    rows = [quantize_rows_int8(t.weight) for t in model.tables]
    tables = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(str(i), *t.weight.shape, SparseType.INT8, EmbeddingLocation.HOST) for i, t in enumerate(model.tables)],
        pooling_mode=PoolingMode.SUM,
        output_dtype=SparseType.FP32,
        weight_lists=[(r[:, :-TAIL_BYTES].contiguous(), r[:, -TAIL_BYTES:].contiguous()) for r in rows],
        device="cpu",
    )

    def call(ids: Tensor) -> list[Tensor]:
        out = tables(ids.t().reshape(-1), torch.arange(ids.numel() + 1))
        return list(out.chunk(len(rows), dim=1))

    return call


def write_onnxruntime_whole(model: Dlrm, dense: Tensor, ids: Tensor, target: Path) -> None:
    """Write the exported graph with static QDQ, tables included, weights int8 per channel, activations uint8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{"dense": dense.numpy(), "ids": ids.numpy()}])

        def get_next(self):
            return next(self.rows, None)

    batch = torch.export.Dim("batch", min=1)
    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder, "float.onnx"))
        torch.onnx.export(
            *(model, (dense, ids), source),
            input_names=["dense", "ids"],
            output_names=["logit"],
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        quantize_static(
            *(source, str(target), Reader()),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def read_onnxruntime_whole(path: Path) -> Model:
    """The graph in ``path`` in onnxruntime, on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda dense, ids: torch.as_tensor(session.run(None, {"dense": dense.numpy(), "ids": ids.numpy()})[0])


def onnxruntime_whole(model: Dlrm, dense: Tensor, ids: Tensor) -> Model:
    """The whole graph in int8."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "int8.onnx")
        write_onnxruntime_whole(model, dense, ids, target)
        return read_onnxruntime_whole(target)


PEERS: dict[str, Callable[[Dlrm, Tensor, Tensor], Model]] = {
    "torch float32": lambda model, dense, ids: model,
    "torch static, torch bags": mixed("torch static", torch_bags),
    "torch dynamic, torch bags": mixed("torch dynamic", torch_bags),
    "onnxruntime static, torch bags": mixed("onnxruntime static", torch_bags),
    "torch static, fbgemm bags": mixed("torch static", fbgemm_bags),
    "onnxruntime static, fbgemm bags": mixed("onnxruntime static", fbgemm_bags),
    "onnxruntime, whole graph": onnxruntime_whole,
}
