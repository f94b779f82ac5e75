"""The benchmark of serving, on small tables in the real server, with a peer that computes something else."""

import shutil

import numpy as np
import pytest
import torch

from recpress.bench import serve
from recpress.bench.closed_loop import Window, drive, encode
from recpress.bench.serve_models import FLOAT, ONNXRUNTIME, OURS, build
from recpress.errors import ProbeError, RepositoryError, ServerError, SourceError
from recpress.serving.config import read_config, write_config
from recpress.serving.server import Server
from recpress_kernels.bench import dlrm

ROWS = 50


def write_sum_of_ids(path):
    """A graph of the peer's inputs and output that takes a moment to write: minus the sum of the ids."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kinds = onnx.TensorProto
    dense = onnx.helper.make_tensor_value_info("dense", kinds.FLOAT, ["batch", 13])
    ids = onnx.helper.make_tensor_value_info("ids", kinds.INT64, ["batch", 26])
    logit = onnx.helper.make_tensor_value_info("logit", kinds.FLOAT, ["batch", 1])
    nodes = [
        onnx.helper.make_node("Cast", ["ids"], ["floats"], to=kinds.FLOAT),
        onnx.helper.make_node("ReduceSum", ["floats", "axes"], ["sum"], keepdims=1),
        onnx.helper.make_node("Neg", ["sum"], ["logit"]),
    ]
    axes = onnx.helper.make_tensor("axes", kinds.INT64, [1], [1])
    graph = onnx.helper.make_graph(nodes, "sum", [dense, ids], [logit], [axes])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What build makes, but for the graph of onnxruntime's model."""
    folder = tmp_path_factory.mktemp("bench") / "repository"
    stand_in = folder / ONNXRUNTIME
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stand_in.mkdir(parents=True)
    (stand_in / "config.pbtxt").write_text("")
    build(folder, ROWS)
    torch.set_num_threads(threads)
    shutil.rmtree(stand_in)
    shutil.copytree(folder / FLOAT, stand_in)
    write_sum_of_ids(stand_in / "1" / "int8.onnx")
    config = read_config(folder / FLOAT)
    config.name = ONNXRUNTIME
    write_config(stand_in, str(config))
    return folder


@pytest.fixture(scope="module")
def address(repository):
    with Server(repository, ready_timeout_s=180) as server:
        yield server.url("grpc")


@pytest.mark.server
def test_a_model_that_computes_something_else_is_named(address, capsys):
    with pytest.raises(ProbeError, match=f"{ONNXRUNTIME} computes something else"):
        serve.check(address, ROWS)
    assert f"{FLOAT}: correlation with its original's logits 1.0000" in capsys.readouterr().out


@pytest.mark.server
def test_all_models_are_driven_in_one_server(address):
    row = serve.measure(address, 3, 2, rows=ROWS, rounds=2, seconds=0.1)
    for name in (OURS, FLOAT, ONNXRUNTIME):
        # Three clients that each wait for their answer: rows a second are about clients x batch over the latency.
        implied = 3 * 2 / row["p50_s"][name]
        assert 0.3 < row["rows_per_second"][name] / implied < 3
        assert 0 < row["p50_s"][name] <= row["p99_s"][name]
    low, high = row["ratio_range"][FLOAT]
    assert 0 < low <= row["ratio"][FLOAT] <= high


@pytest.mark.server
def test_a_request_that_fails_ends_the_measurement(address):
    dense, ids = dlrm.inputs(2, 0, ROWS)
    beyond = encode(OURS, {"dense": dense.numpy(), "ids": ids.numpy() + ROWS})
    with pytest.raises(ServerError, match="input 'ids'"):
        drive(address, [beyond], clients=2, seconds=5.0, warm_up=0.0)


def test_ratios_are_of_the_same_round():
    """The machine is half as fast in the second round and a third as fast in the last: the ratio does not move."""
    rates = {OURS: (300, 150, 100), FLOAT: (100, 50, 33), ONNXRUNTIME: (200, 100, 67)}
    windows = {name: [Window(2.0, np.full(2 * r, 0.01)) for r in own] for name, own in rates.items()}
    row = serve._case(4, 256, windows)
    assert row["ratio"][ONNXRUNTIME] == 1.5 and row["ratio"][FLOAT] == 3.0
    assert row["rows_per_second"][OURS] == 150 * 256 and row["p50_s"][OURS] == 0.01
    assert "MISSED" not in serve._line(row)
    slower = serve._case(4, 256, windows | {ONNXRUNTIME: windows[OURS]})
    assert slower["ratio"][ONNXRUNTIME] == 1.0 and "1.00x onnxruntime (1.00 to 1.00), meant 1.3 or more: MISSED" in (
        serve._line(slower)
    )


def test_what_does_not_fit_is_refused(repository):
    with pytest.raises(RepositoryError, match=f"tables of {ROWS} rows, not 60; give a new folder"):
        build(repository, 60)
    for case in ("8", "8x", "0x1", "axb"):
        with pytest.raises(SourceError, match=f"case '{case}': give clients and their batch as in 8x64"):
            serve.main(["--cases", case])
