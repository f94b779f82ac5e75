"""The reader of stored graphs against torch's own: the same graphs, the same bits; what it does not know is refused."""

import copy
import subprocess
import sys

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn
from torch._export.serde import serialize

import recpress
from recpress.artifact import graph as reading
from recpress.artifact.archive import check_archive
from recpress.artifact.graph import CONSTANT, build_module
from recpress.artifact.load import read_tensors
from recpress.artifact.nodes import dtype_of
from recpress.errors import ArtifactError
from recpress.zoo.dlrm import DLRM
from recpress.zoo.sasrec import SASRec

pytestmark = pytest.mark.usefixtures("one_thread")


class Odd(nn.Module):
    """What graphs may hold beside layers: parts of lists and tuples, constants, state of all kinds, sizes, infinity."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6))
        self.tied = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.tied.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("kept", torch.rand(6))
        self.register_buffer("lost", torch.rand(6), persistent=False)
        self.halved = nn.Linear(6, 2).half()

    def forward(self, x, ids):
        a, b, c = x.split([2, 1, 3], dim=1)
        top, where = x.topk(2, dim=1)
        _, largest = x.max(dim=1)
        shifted = torch.cat([c, b, a], dim=1) * self.scale + self.kept * self.lost
        masked = shifted.masked_fill(ids > 3, -torch.inf).softmax(dim=1)
        steps = torch.arange(x.shape[0], dtype=torch.int32, device=x.device) + x.shape[0] // 2
        halves = self.halved(x.half()).to(torch.float32, memory_format=torch.contiguous_format)
        y = self.again(self.tied(masked)) + torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
        every = torch.stack([where.sum(1), largest, steps.long()], dim=1)
        return {"y": y, "top": top, "every": every, "halves": halves, "n": ids.clamp(max=3).flip(1).to(torch.int32)}


def odd_inputs(rows):
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 5, (rows, 6), generator=generator)


def dlrm_inputs(rows):
    generator = torch.Generator().manual_seed(rows)
    ids = [torch.randint(0, n, (rows,), generator=generator) for n in (40, 7, 30)]
    return torch.randn(rows, 3, generator=generator), torch.stack(ids, dim=1)


def sasrec_inputs(rows):
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 31, (rows, 8), generator=generator), torch.randint(1, 31, (rows, 5), generator=generator)


def sasrec():
    return SASRec(num_items=30, length=8, dim=12, heads=2, dropout=0.1)


def dlrm():
    return DLRM(num_dense=3, table_rows=[40, 7, 30], dim=8, bottom=[16], top=[24])


MODELS = {
    "small 2:4": (small_model, small_inputs, "prune-24-int8"),
    "small int4": (small_model, small_inputs, "int8-tables4"),
    "dlrm static": (dlrm, dlrm_inputs, "int8-static"),
    "sasrec": (sasrec, sasrec_inputs, "int8"),
    "odd": (Odd, odd_inputs, "int8-tables"),
}


def write(folder, name):
    torch.manual_seed(0)
    make, inputs, recipe = MODELS[name]
    options = {} if recipe == "int8-linear" else {"calibration": [inputs(64)]}
    compressed = recpress.compress(make().eval(), recipe, **options)
    recpress.export(compressed, folder, example_inputs=inputs(8), input_names=("first", "second"))
    return inputs


def ours(folder, device="cpu"):
    path = folder / "graph.pt2"
    return build_module(check_archive(path), read_tensors(folder / "weights.safetensors"), path, torch.device(device))


def theirs(folder):
    program, weights = torch.export.load(folder / "graph.pt2"), read_tensors(folder / "weights.safetensors")
    for home, prefix in ((program.state_dict, ""), (program.constants, CONSTANT)):
        for name, tensor in home.items():
            weight = weights.pop(prefix + name)
            home[name] = nn.Parameter(weight, requires_grad=False) if isinstance(tensor, nn.Parameter) else weight
    assert not weights
    return program.module(check_guards=False)


def calls(module):
    """Operators in order, each with its arguments, nodes by their number, but for parts of tuples that nobody uses."""
    numbers, found = {}, []
    for node in module.graph.nodes:
        numbers[node] = f"%{len(found)}" if node.op == "call_function" else f"{node.op} {node.target}"
        if node.op == "call_function" and (node.users or node.target is not reading.operator.getitem):
            args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: numbers[n])
            found.append((str(node.target), str(args), str(kwargs), dtype_of(node)))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_and_its_answers_are_those_of_torch(name, tmp_path):
    inputs = write(tmp_path / "a", name)
    got, want = ours(tmp_path / "a"), theirs(tmp_path / "a")
    assert calls(got) == calls(want)
    for rows in (1, 5, 8):
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(want(*inputs(rows)))
            answers = got(*inputs(rows))
        assert len(answers) == len(expected)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(answers, expected, strict=True))


def test_numbers_of_types_are_those_of_torch():
    for ours, theirs in (
        (reading.SCALAR_TYPES, serialize._TORCH_TO_SERIALIZE_DTYPE),
        (reading.LAYOUTS, serialize._TORCH_TO_SERIALIZE_LAYOUT),
        (reading.MEMORY_FORMATS, serialize._TORCH_TO_SERIALIZE_MEMORY_FORMAT),
    ):
        assert all(theirs[value] == number for number, value in ours.items())
    assert serialize.SCHEMA_VERSION[0] == reading.SCHEMA_MAJOR


def test_weights_and_what_the_graph_makes_go_to_the_device(tmp_path):
    write(tmp_path / "a", "odd")
    module = ours(tmp_path / "a", "meta")
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    devices = {node.kwargs["device"] for node in module.graph.nodes if "device" in node.kwargs}
    assert devices == {torch.device("meta")}


def at(graph, *path):
    for key in path:
        graph = graph[key]
    return graph


def first(graph, target):
    return next(node for node in at(graph, "graph_module", "graph", "nodes") if target in node["target"])


def mutated(graph):
    specs = at(graph, "graph_module", "signature", "output_specs")
    specs[0] = {"buffer_mutation": {"arg": {"name": "y"}, "buffer_name": "kept"}}


REFUSALS = {
    "another schema": (lambda g: g["schema_version"].update(major=9), "major version 8 is read here"),
    "no schema": (lambda g: g.pop("schema_version"), "major version 8 is read here"),
    "a kind of value": (
        lambda g: first(g, "relu")["inputs"][0].update(arg={"as_complex": 1}),
        "a value of kind 'as_complex'",
    ),
    "a kind of argument": (lambda g: first(g, "relu")["inputs"][0].update(kind=0), "'self' in an unknown way"),
    "a text for a number": (
        lambda g: first(g, "select")["inputs"][1].update(arg={"as_int": "1"}),
        "holds '1' where int is due",
    ),
    "an operator": (lambda g: first(g, "relu").update(target="torch.ops.aten.relu.other"), "torch .* does not have"),
    "a dtype": (lambda g: at(g, "graph_module", "graph", "tensor_values", "dense").update(dtype=99), "KeyError: 99"),
    "state": (mutated, "changes its own state"),
    "a name": (lambda g: first(g, "relu")["inputs"][0]["arg"]["as_tensor"].update(name="none"), "KeyError: 'none'"),
    "a name twice": (lambda g: first(g, "relu")["outputs"][0]["as_tensor"].update(name="dense"), "defines 'dense' tw"),
    "a kind of input": (
        lambda g: at(g, "graph_module", "signature", "input_specs").append({"token": {"arg": {"name": "t"}}}),
        "an input of kind 'token'",
    ),
    "no nodes": (lambda g: at(g, "graph_module", "graph").pop("nodes"), "unknown form"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_not_known_is_refused(what, artifact):
    path, weights = artifact / "graph.pt2", read_tensors(artifact / "weights.safetensors")
    program = check_archive(path)
    build_module(copy.deepcopy(program), weights, path, torch.device("cpu"))
    change, message = REFUSALS[what]
    change(program)
    with pytest.raises(ArtifactError, match=message):
        build_module(program, weights, path, torch.device("cpu"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("top.0.weight"), "disagree on which there are: top.0.weight"),
        (lambda w: w.update(more=torch.zeros(1)), "disagree on which there are: more"),
        (lambda w: w.update({"top.0.weight": w["top.0.weight"][:, :-1]}), "takes the weight 'top.0.weight' as"),
        (lambda w: w.update({"top.0.bias": w["top.0.bias"].double()}), "float32 .*, and it is torch.float64"),
    ],
)
def test_weights_that_are_not_the_graph_s(change, message, artifact):
    path, weights = artifact / "graph.pt2", read_tensors(artifact / "weights.safetensors")
    change(weights)
    with pytest.raises(ArtifactError, match=message):
        build_module(check_archive(path), weights, path, torch.device("cpu"))


def test_loading_imports_nothing_that_compiles_or_exports(artifact):
    heavy = ("sympy", "networkx", "torch._dynamo", "torch._inductor", "torch._export.serde")
    code = (
        "import sys, recpress.artifact.load as l, recpress.serving.rows; l.load(sys.argv[1]); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, artifact], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
