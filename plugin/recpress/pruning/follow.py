"""Follow each number of a model's parameters through its graph, to learn which go together.

The model is exported (torch.export) on a few rows, and its graph is run with labels beside the values: of each number,
which slot of which parameter it comes from (coordinates.py). What moves numbers (view, cat, stack, transpose ...) moves
their labels. What brings numbers together ties their slots: a linear layer's inputs to the columns of its weight, the
two sides of a product or a sum to each other. What is not known here, or would not be zero where its inputs are, pins
what it is given: that stays.

Torch-Pruning 1.6.1, which follows the graph of autograd by channels, shrinks DLRM rightly. In DeepFM, DCN-v2, two
towers and SASRec it cuts wrong places, as dense columns in a concatenation are outputs of none of its layers.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from recpress.errors import PruningError
from recpress.pruning.coordinates import Coordinates
from recpress.quantize.capture import Inputs

_ROWS = 2
_ATEN = torch.ops.aten
_MOVES = (
    *(_ATEN.view, _ATEN.reshape, _ATEN.flatten, _ATEN.unflatten, _ATEN.transpose, _ATEN.permute, _ATEN.t),
    *(_ATEN.numpy_T, _ATEN.movedim, _ATEN.unsqueeze, _ATEN.squeeze, _ATEN.select, _ATEN.slice, _ATEN.repeat),
    *(_ATEN.unbind, _ATEN.split, _ATEN.split_with_sizes, _ATEN.chunk, _ATEN.index_select, _ATEN.index),
)
_ZERO_AT_ZERO = (
    *(_ATEN.relu, _ATEN.relu_, _ATEN.gelu, _ATEN.silu, _ATEN.tanh, _ATEN.leaky_relu, _ATEN.elu, _ATEN.hardswish),
    *(_ATEN.mish, _ATEN.square, _ATEN.abs, _ATEN.neg, _ATEN.dropout, _ATEN.clone, _ATEN.contiguous, _ATEN.detach),
    *(_ATEN.alias, _ATEN.to, _ATEN._to_copy, _ATEN.type_as),
)
_OTHERS = (_ATEN.sigmoid, _ATEN.softplus, _ATEN.exp, _ATEN.hardsigmoid, _ATEN.clamp, _ATEN.clamp_min)
_PRODUCTS = (_ATEN.mul, _ATEN.mul_, _ATEN.div, _ATEN.div_)
_SUMS = (_ATEN.add, _ATEN.add_, _ATEN.sub, _ATEN.sub_)
_MATRICES = (_ATEN.matmul, _ATEN.bmm, _ATEN.mm, _ATEN.baddbmm)
_MEET = "it meets numbers that do not go with it"


@dataclass(frozen=True)
class Attention:
    """An attention that was met: the name of the module that computes it, and a label of each head, int64 [heads]."""

    module: str
    heads: Tensor


class Follower(fx.Interpreter):
    """Runs a graph with labels beside its values.

    Attributes:
        coordinates: what is tied to what.
        tables: the weights that rows were looked up in, by their ids.
        attentions: what a follower of heads met.
    """

    def __init__(self, graph: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self.coordinates = Coordinates()
        self.tables: dict[int, Tensor] = {}
        self.attentions: list[Attention] = []
        self._tensors = tensors
        self._labels: dict[fx.Node, Tensor | tuple] = {}
        self._rules: dict[object, Callable] = {
            _ATEN.embedding: self._embedding,
            _ATEN.embedding_bag: self._embedding_bag,
            _ATEN.linear: self._linear,
            _ATEN.layer_norm: self._layer_norm,
            _ATEN.batch_norm: self._batch_norm,
            _ATEN.cat: self._cat,
            _ATEN.stack: self._stack,
            _ATEN.expand: self._expand,
            _ATEN.expand_as: self._expand,
            _ATEN.pow: self._pow,
            _ATEN.masked_fill: self._masked_fill,
            _ATEN.sum: self._sum,
            _ATEN.mean: self._mean,
            _ATEN.linalg_vector_norm: self._norm,
            _ATEN.einsum: self._einsum,
            _ATEN.softmax: self._softmax,
            _ATEN.scaled_dot_product_attention: self._attention,
            operator.getitem: self._getitem,
            **dict.fromkeys(_MOVES, self._move),
            **dict.fromkeys(_ZERO_AT_ZERO, lambda node, _: self._labels[node.args[0]]),
            **dict.fromkeys(_OTHERS, self._not_zero),
            **dict.fromkeys((*_PRODUCTS, *_SUMS), self._binary),
            **dict.fromkeys(_MATRICES, self._matrices),
        }
        self._sources = (_ATEN.embedding, _ATEN.embedding_bag, _ATEN.linear, _ATEN.expand, _ATEN.expand_as)

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node.op == "get_attr" and node.target in self._tensors:
            tensor = self._tensors[node.target]
            if tensor.dim() and tensor.numel() > 1:
                self._labels[node] = self.coordinates.slots(tensor, tensor.dim() - 1).expand(tensor.shape)
        elif node.op == "output":
            self._pin(node, "the model gives it out")
        elif node.op == "call_function":
            packet = getattr(node.target, "overloadpacket", node.target)
            if packet in self._sources or any(given in self._labels for given in node.all_input_nodes):
                found = self._rules.get(packet, self._unknown)(node, value)
                if found is not None:
                    self._labels[node] = found
        return value

    def _of(self, node: fx.Node) -> Tensor:
        found = self._labels.get(node)
        return torch.zeros(self.env[node].shape, dtype=torch.int64) if found is None else found

    def _pin(self, node: fx.Node, why: str) -> None:
        for given in node.all_input_nodes:
            for labels in pytree.tree_leaves(self._labels.get(given)):
                if labels is not None:
                    self.coordinates.pin(labels, why)

    def _unknown(self, node: fx.Node, _value: object) -> None:
        self._pin(node, f"{node.target} is not followed")

    def _not_zero(self, node: fx.Node, _value: Tensor) -> Tensor | None:
        self._pin(node, f"{node.target} is not zero at zero")

    def _getitem(self, node: fx.Node, _value: Tensor) -> Tensor | None:
        return self._labels[node.args[0]][node.args[1]]

    def _tensor(self, node: fx.Node | None) -> Tensor | None:
        return self._tensors.get(node.target) if node is not None and node.op == "get_attr" else None

    def _embedding(self, node: fx.Node, value: Tensor) -> Tensor | None:
        weight = self._tensor(node.args[0])
        if weight is None:
            return self._unknown(node, value)
        self.tables[id(weight)] = weight
        return self.coordinates.slots(weight, 1).expand(value.shape)

    def _embedding_bag(self, node: fx.Node, value: tuple) -> tuple | None:
        labels = self._embedding(node, value[0])
        return None if labels is None else (labels, *[None] * (len(value) - 1))

    def _linear(self, node: fx.Node, value: Tensor) -> Tensor | None:
        weight, bias = self._tensor(node.args[1]), node.args[2] if len(node.args) > 2 else None
        if weight is None:
            return self._unknown(node, value)
        rows, columns = (self.coordinates.slots(weight, axis) for axis in (0, 1))
        if node.args[0] in self._labels:
            given = self._labels[node.args[0]].reshape(-1, len(columns))
            self.coordinates.tie(columns, given)
            self.coordinates.pin(given[:, (given <= 0).any(dim=0)], _MEET)
        if bias is not None:
            self._meet(rows, self._of(bias))
        return rows.expand(value.shape)

    def _layer_norm(self, node: fx.Node, value: Tensor) -> Tensor | None:
        tensors = [self._tensor(given) for given in node.args[2:4]]
        if len(node.args[1]) > 1 or not tensors or tensors[0] is None:
            self._pin(node, "it is normalised over more than one axis, or without weights")
            return None
        return self._affine(self._of(node.args[0]), tensors, (-1,))

    def _batch_norm(self, node: fx.Node, value: Tensor) -> Tensor | None:
        tensors = [self._tensor(given) for given in node.args[1:5]]
        if any(tensor is None for tensor in tensors):
            return self._unknown(node, value)
        return self._affine(self._of(node.args[0]), tensors, (-1, *[1] * (value.dim() - 2)))

    def _affine(self, labels: Tensor, tensors: list[Tensor | None], shape: tuple[int, ...]) -> Tensor:
        for tensor in tensors:
            if tensor is not None:
                self._meet(labels, self.coordinates.slots(tensor, 0).view(shape))
        return labels

    def _meet(self, one: Tensor, other: Tensor) -> Tensor:
        """Tie what is met, and pin what meets numbers of no slot; the labels of the two together."""
        self.coordinates.tie(one, other)
        one, other = torch.broadcast_tensors(one, other)
        for labels, beside in ((one, other), (other, one)):
            self.coordinates.pin(labels[beside == 0], _MEET)
        return torch.maximum(one, other)

    def _binary(self, node: fx.Node, value: Tensor) -> Tensor | None:
        packet, (one, other) = node.target.overloadpacket, node.args[:2]
        if packet in (_ATEN.div, _ATEN.div_) and isinstance(other, fx.Node) and (self._of(other) > 0).any():
            return self._unknown(node, value)
        if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
            labels = self._labels[one if isinstance(one, fx.Node) else other]
            return labels if packet in _PRODUCTS else self._shifted(labels)
        one, other = self._of(one), self._of(other)
        alike = self._indifferent(one, other), self._indifferent(other, one)
        labels = self._meet(*alike)
        if packet in _SUMS and any((given < 0).any() for given in alike):
            return self._shifted(labels)
        return labels

    def _indifferent(self, one: Tensor, other: Tensor) -> Tensor:
        """``one``, with -1 for 0 where it is a single number along all axes along which ``other`` differs."""
        shape = (1,) * (other.dim() - one.dim()) + tuple(one.shape)
        axes = [axis - other.dim() for axis in self._varying(other)]
        return one.clamp(max=-1) if not one.any() and all(shape[axis] == 1 for axis in axes) else one

    def _varying(self, labels: Tensor) -> list[int]:
        roots = self.coordinates.roots(labels)
        return [axis for axis in range(roots.dim()) if (roots != roots.narrow(axis, 0, 1)).any()]

    def _shifted(self, labels: Tensor) -> Tensor:
        """What is left of labels after something was added to their numbers, which are then not zero."""
        self.coordinates.pin(labels, "a number that is not zero is added to it")
        return labels

    def _move(self, node: fx.Node, value: object) -> object:
        if node.args[0] not in self._labels:
            return self._unknown(node, value)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        # Labels are not laid out as the values are, which a view asks for.
        move = _ATEN.reshape.default if node.target is _ATEN.view.default else node.target
        moved = move(self._labels[node.args[0]], *args[1:], **kwargs)
        return tuple(map(self._boxed, moved)) if isinstance(moved, tuple | list) else self._boxed(moved)

    def _expand(self, node: fx.Node, value: Tensor) -> Tensor | None:
        if node.args[0] in self._labels:
            return self._labels[node.args[0]].expand(value.shape)
        grows = value.dim() and self.env[node.args[0]].shape[-1:] != value.shape[-1:]
        return torch.full(value.shape, -1) if grows else None

    def _boxed(self, labels: Tensor) -> Tensor:
        """What differs along several axes is made the same along all but the last, so that a box is left of it."""
        for axis in self._varying(labels)[:-1]:
            self._meet(labels, labels.narrow(axis, 0, 1))
        return labels

    def _cat(self, node: fx.Node, value: Tensor) -> Tensor:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return self._joined([self._of(given) for given in node.args[0]], dim % value.dim())

    def _stack(self, node: fx.Node, value: Tensor) -> Tensor:
        dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % value.dim()
        return self._joined([self._of(given).unsqueeze(dim) for given in node.args[0]], dim)

    def _joined(self, parts: list[Tensor], dim: int) -> Tensor:
        parts = [part for part in parts if part.numel()]
        if any(axis != dim for part in parts for axis in self._varying(part)):
            for part in parts:
                self._meet(part, parts[0].narrow(dim, 0, 1))
        return self._boxed(torch.cat(parts, dim))

    def _pow(self, node: fx.Node, value: Tensor) -> Tensor | None:
        one, power = node.args
        return self._labels[one] if isinstance(power, int | float) and power > 0 else self._unknown(node, value)

    def _masked_fill(self, node: fx.Node, value: Tensor) -> Tensor:
        labels = self._of(node.args[0])
        self._meet(labels, self._indifferent(torch.zeros(self.env[node.args[1]].shape, dtype=torch.int64), labels))
        return labels if node.args[2] == 0 else self._shifted(labels)

    def _sum(self, node: fx.Node, _value: Tensor) -> Tensor | None:
        return self._reduced(self._of(node.args[0]), *_axes(node, 1), None)

    def _mean(self, node: fx.Node, _value: Tensor) -> Tensor | None:
        return self._reduced(self._of(node.args[0]), *_axes(node, 1), "a mean divides by how many there are")

    def _norm(self, node: fx.Node, value: Tensor) -> Tensor | None:
        if len(node.args) > 1 and node.args[1] <= 0:
            return self._unknown(node, value)
        return self._reduced(self._of(node.args[0]), *_axes(node, 2), None)

    def _reduced(self, labels: Tensor, dims: list[int] | None, keepdim: bool, why: str | None) -> Tensor | None:
        """Labels of numbers that are all the same where they are put together stay; others become part of a sum."""
        dims = dims or list(range(labels.dim()))
        roots = self.coordinates.roots(labels)
        low, high = roots.amin(dims, keepdim=True), roots.amax(dims, keepdim=True)
        if why:
            self.coordinates.pin(labels[(low != high).expand(labels.shape)], why)
        left = torch.where(low == high, high, 0)
        left = left if keepdim else left.squeeze(dims)
        return left if left.any() else None

    def _einsum(self, node: fx.Node, value: Tensor) -> Tensor | None:
        given, _, out = node.args[0].replace(" ", "").partition("->")
        letters = given.split(",")
        plain = out and "." not in given and all(len(set(part)) == len(part) for part in letters)
        if len(letters) != 2 or not plain:
            return self._unknown(node, value)
        every = out + "".join(sorted(set(given) - {","} - set(out)))
        spread = [_spread(self._of(part), own, every) for part, own in zip(node.args[1], letters, strict=True)]
        both = self._meet(*spread)
        dims = list(range(len(out), len(every)))
        return self._reduced(both, dims, False, None) if dims else self._boxed(both)

    def _matrices(self, node: fx.Node, value: Tensor) -> Tensor | None:
        one, other = (self._of(given) for given in node.args[-2:])
        one = one.unsqueeze(0) if one.dim() == 1 else one
        other = other.unsqueeze(1) if other.dim() == 1 else other
        self._meet(one.unsqueeze(-1), other.unsqueeze(-3))
        if node.target.overloadpacket is _ATEN.baddbmm and node.args[0] in self._labels:
            self._unknown(node, value)
        return None

    def _softmax(self, node: fx.Node, value: Tensor) -> Tensor | None:
        return self._unknown(node, value)

    def _attention(self, node: fx.Node, value: Tensor) -> Tensor | None:
        return self._unknown(node, value)


def follow(model: nn.Module, inputs: Inputs, kind: type[Follower] = Follower) -> Follower:
    """What hangs together in ``model``, which is in eval mode, as it computes ``inputs``.

    Raises:
        PruningError: the model cannot be exported.
    """
    args, kwargs = _arguments(inputs)
    try:
        program = torch.export.export(model, args, kwargs, strict=False)
        graph = program.module(check_guards=False)
    except Exception as error:  # whatever export or the user's forward raises
        raise PruningError(
            f"torch.export cannot follow the forward of {type(model).__name__} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}), so that it is not known what meets what; take out what depends on "
            "values, or prune single weights"
        ) from None
    graph.graph.eliminate_dead_code()
    tensors = dict(model.named_buffers(remove_duplicate=False)) | dict(model.named_parameters(remove_duplicate=False))
    follower = kind(graph, tensors)
    with torch.no_grad():
        follower.run(*pytree.tree_leaves((args, kwargs)), enable_io_processing=False)
    return follower


def _arguments(inputs: Inputs) -> tuple[tuple, dict]:
    """Positional and keyword arguments of a call, of two rows where all tensors have one number of rows."""
    if isinstance(inputs, Mapping):
        return (), dict(zip(inputs, _few(tuple(inputs.values())), strict=True))
    return _few((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def _few(given: tuple) -> tuple:
    lengths = {len(part) if part.dim() else 0 for part in given if isinstance(part, Tensor)}
    if len(lengths) > 1 or 0 in lengths:
        return given
    return tuple(part[:_ROWS] if isinstance(part, Tensor) else part for part in given)


def _axes(node: fx.Node, place: int) -> tuple[list[int] | None, bool]:
    """The axes and ``keepdim`` of a reduction, which stand from ``place`` on."""
    dims = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    keepdim = node.args[place + 1] if len(node.args) > place + 1 else node.kwargs.get("keepdim", False)
    return ([dims] if isinstance(dims, int) else dims), keepdim


def _spread(labels: Tensor, own: str, every: str) -> Tensor:
    """``labels``, whose axes are the letters of ``own``, with an axis for each letter of ``every``."""
    ordered = labels.permute([own.index(letter) for letter in every if letter in own])
    sizes = dict(zip((letter for letter in every if letter in own), ordered.shape, strict=True))
    return ordered.reshape([sizes.get(letter, 1) for letter in every])
