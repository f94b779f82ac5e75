"""Read a ``torch.export`` program to a GraphModule, without ``torch.export``.

``torch.export.load`` imports sympy, dynamo and inductor: 100 MB and 1.5 s in every process that serves. A graph of an
artifact needs little of that: calls of operators, in order, on inputs, weights and plain values. So the program's JSON
(schema 8, ``torch._export.serde.schema``) is read here, and what is not known below is refused. What may stand in the
archive at all says archive.py, before.
"""

import keyword
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from recpress.artifact.nodes import Traced
from recpress.errors import ArtifactError

SCHEMA_MAJOR = 8
CONSTANT = "constant:"
"""Prefix, in ``weights.safetensors``, of tensors that are constants of the graph, not in the state dict."""

SCALAR_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
LAYOUTS = {7: torch.strided}
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_POSITIONAL, _KEYWORD = 1, 2
_PLAIN = {"as_int": int, "as_bool": bool, "as_string": str}
_PLAIN_LISTS = {"as_ints": int, "as_bools": bool, "as_strings": str}
_SYMBOL = re.compile(r"Symbol\('([a-z]{1,3}\d+)'.*\)")


class _Refused(Exception):
    """What cannot be read, for the message."""


def build_module(program: dict, weights: Mapping[str, Tensor], path: Path, device: torch.device) -> GraphModule:
    """The graph of ``program`` with its weights on ``device``, called with its inputs in order; it answers a tuple.

    Args:
        program: ``models/model.json`` of an archive that :func:`recpress.artifact.archive.check_archive` let pass.
        weights: tensors by the names of ``weights.safetensors``.
        path: the archive, for messages.
        device: where the weights go, and what the graph makes.

    Raises:
        ArtifactError: another schema, or anything in the graph that is not known here.
    """
    version = program.get("schema_version")
    if not isinstance(version, dict) or version.get("major") != SCHEMA_MAJOR:
        raise ArtifactError(
            f"{path} is written in the schema {version} of torch.export, by torch {program.get('torch_version')}; the "
            f"major version {SCHEMA_MAJOR} is read here: export the model again with torch {torch.__version__}"
        )
    try:
        return _Reader(program["graph_module"], weights, device).module()
    except _Refused as error:
        raise ArtifactError(f"{path} {error}; export the model again, from layers that recpress knows") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        kind = type(error).__name__
        raise ArtifactError(f"{path} holds a graph in an unknown form ({kind}: {error}); export again") from None


@dataclass
class _Reader:
    """Builds the graph of one program; ``nodes`` are those so far, by the names of their values."""

    source: dict
    weights: Mapping[str, Tensor]
    device: torch.device
    graph: Graph = field(default_factory=Graph)
    root: nn.Module = field(default_factory=nn.Module)
    nodes: dict[str, Node] = field(default_factory=dict)

    def module(self) -> GraphModule:
        graph, signature = self.source["graph"], self.source["signature"]
        lifted = {_weight_of(spec)[0] for spec in signature["input_specs"] if "user_input" not in spec}
        if odd := lifted ^ set(self.weights):
            raise _Refused(f"and its weights disagree on which there are: {', '.join(sorted(odd)[:5])}")
        for spec in sorted(signature["input_specs"], key=lambda spec: "user_input" not in spec):
            self._add_input(spec)
        for node in graph["nodes"]:
            self._add_call(node)
        for spec in signature["output_specs"]:
            if list(spec) != ["user_output"]:
                raise _Refused(f"has an output of kind {'/'.join(spec)}; a model that changes its own state")
        self.graph.output(tuple(self.nodes[out["as_tensor"]["name"]] for out in graph["outputs"]))
        return GraphModule(self.root, self.graph)

    def _add_input(self, spec: dict) -> None:
        if "user_input" in spec:
            name = spec["user_input"]["arg"]["as_tensor"]["name"]
            self._bind(name, self.graph.placeholder(name))
            return
        name, (stored, place) = next(iter(spec.values()))["arg"]["name"], _weight_of(spec)
        weight, traced = self.weights[stored], self._traced(name)
        if tuple(weight.shape) != traced.shape or weight.dtype != traced.dtype:
            given = f"{weight.dtype} {tuple(weight.shape)}"
            raise _Refused(f"takes the weight {stored!r} as {traced.dtype} {traced.shape}, and it is {given}")
        _put(self.root, place, weight.to(self.device))
        # Not graph.get_attr, which warns where the module is not there yet.
        self._bind(name, self.graph.create_node("get_attr", place, name=name))

    def _add_call(self, source: dict) -> None:
        args, kwargs = [], {}
        for given in source["inputs"]:
            value = self._value(given["arg"])
            if given["kind"] == _KEYWORD and not keyword.iskeyword(given["name"]):
                kwargs[given["name"]] = value
            elif given["kind"] == _POSITIONAL and not kwargs:
                args.append(value)
            else:
                raise _Refused(f"calls {source['target']} with {given['name']!r} in an unknown way")
        node = self.graph.create_node("call_function", _function(source["target"]), tuple(args), kwargs)
        self._bind_outputs(source["outputs"], node)

    def _bind_outputs(self, outputs: list[dict], node: Node) -> None:
        kinds = [next(iter(out)) for out in outputs]
        if len(outputs) == 1 and kinds[0] != "as_tensors":
            if kinds[0] != "as_none":
                self._bind(_name(outputs[0]), node)
            return
        parts = [{"as_tensor": part} for part in outputs[0]["as_tensors"]] if kinds == ["as_tensors"] else outputs
        for i, part in enumerate(parts):
            if "as_none" not in part:
                self._bind(_name(part), self.graph.call_function(operator.getitem, (node, i)))

    def _bind(self, name: str, node: Node) -> None:
        if name in self.nodes:
            raise _Refused(f"defines {name!r} twice")
        self.nodes[name] = node
        if name in self.source["graph"]["tensor_values"]:
            node.meta["val"] = self._traced(name)

    def _traced(self, name: str) -> Traced:
        meta = self.source["graph"]["tensor_values"][name]
        return Traced(tuple(map(_size, meta["sizes"])), SCALAR_TYPES[meta["dtype"]])

    def _value(self, argument: dict) -> object:
        ((kind, given),) = argument.items()
        if kind == "as_none":
            return None
        if kind in _PLAIN:
            return _plain(_PLAIN[kind], given)
        if kind in _PLAIN_LISTS:
            return [_plain(_PLAIN_LISTS[kind], value) for value in given]
        if kind == "as_float":
            return float(given)  # a string where it is infinite
        if kind == "as_floats":
            return [float(value) for value in given]
        if kind == "as_device":
            return self.device  # one for all: that of the weights
        if kind in _ENUMERATIONS:
            return _ENUMERATIONS[kind][given]
        if kind == "as_tensor":
            return self.nodes[given["name"]]
        if kind == "as_tensors":
            return [self.nodes[value["name"]] for value in given]
        if kind == "as_optional_tensors":
            return [None if "as_none" in value else self.nodes[value["as_tensor"]["name"]] for value in given]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return self._symbolic(given)
        if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._symbolic(value) for value in given]
        raise _Refused(f"holds a value of kind {kind!r}")

    def _symbolic(self, given: dict) -> object:
        return self.nodes[given["as_name"]] if "as_name" in given else self._value(given)


_ENUMERATIONS = {"as_scalar_type": SCALAR_TYPES, "as_layout": LAYOUTS, "as_memory_format": MEMORY_FORMATS}


def _function(target: str) -> object:
    """``torch.ops.NAMESPACE.OPERATOR.OVERLOAD``, or a function of ``_operator``, ``math`` or ``torch``, by its name."""
    first, *names = target.split(".")
    found = {"torch": torch, "_operator": operator, "math": math}[first]
    try:
        for name in names:
            found = getattr(found, name)
    except AttributeError:
        raise _Refused(f"calls {target}, which torch {torch.__version__} does not have") from None
    return found


def _name(output: dict) -> str:
    ((kind, given),) = output.items()
    if kind == "as_tensor":
        return given["name"]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return given["as_name"]
    raise _Refused(f"has a result of kind {kind!r}")


def _weight_of(spec: dict) -> tuple[str, str]:
    """The name in ``weights.safetensors`` of a lifted input, and its place in the module."""
    ((kind, given),) = spec.items()
    if kind == "parameter":
        return given["parameter_name"], given["parameter_name"]
    if kind == "buffer":
        name = given["buffer_name"]
        return (name if given["persistent"] else CONSTANT + name), name
    if kind == "tensor_constant":
        return CONSTANT + given["tensor_constant_name"], given["tensor_constant_name"]
    raise _Refused(f"has an input of kind {kind!r}")


def _put(root: nn.Module, place: str, weight: Tensor) -> None:
    *folders, name = place.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]
    root.register_buffer(name, weight)


def _plain(kind: type, value: object) -> object:
    if type(value) is not kind:
        raise _Refused(f"holds {value!r} where {kind.__name__} is due")
    return value


def _size(size: dict) -> int | str:
    if "as_int" in size:
        return _plain(int, size["as_int"])
    text = size["as_expr"]["expr_str"]
    symbol = _SYMBOL.fullmatch(text)
    return symbol[1] if symbol else text
