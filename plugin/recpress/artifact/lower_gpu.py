"""Rewrite a loaded graph for a GPU: rows of weights in whole vectors, 2:4 weights in the order of its cores.

Cross layers, triangles of dot products and look-ups become a call each, found as on a CPU (lower_interactions.py,
lower_tables.py): what is saved is launches, of which a GPU's small batches consist.
A 2:4 layer runs on sparse tensor cores where the device has them and the table of measurements has that faster
(int8_mlp/choice.py, by the GPU's name); else it is decompressed here, once, and runs dense.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from recpress.artifact.lower import drop_identities, told
from recpress.artifact.lower_interactions import lower_crosses, lower_interactions
from recpress.artifact.lower_linears import LINEARS, SPARSE24, linears, stored_sparse
from recpress.artifact.lower_tables import lower_tables
from recpress.artifact.nodes import is_own
from recpress_kernels.dot_interaction.launch import MAX_VECTORS
from recpress_kernels.formats import sparse24_gpu
from recpress_kernels.formats.sparse24 import decompress
from recpress_kernels.int8_mlp.choice import Choice, choose_stack
from recpress_kernels.support import Support


def lower_to_gpu(module: GraphModule, gpu: str, sparse: Support) -> tuple[str, list[Choice]]:
    """Rewrite ``module`` in place; what runs its layers and look-ups now, and in which form 2:4 layers do.

    Args:
        gpu: the device's name, by which the table of measurements is looked up.
        sparse: whether it multiplies 2:4 weights, and how or why not.
    """
    drop_identities(module)
    nodes = linears(module)
    choices = []
    for i, node in enumerate(nodes):
        if not all(is_own(n) for n in node.args[1 : LINEARS[node.target]]):
            continue
        if node.target is SPARSE24:
            choices.append(_place_sparse(module, node, f"sparse_{i}", gpu, sparse))
        else:
            _place_rows(module, node)
    crosses = lower_crosses(module)
    triangles = lower_interactions(module, most=MAX_VECTORS)  # before the tables, as in lower.py
    look_ups = lower_tables(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    run = sum(choice.sparse24 for choice in choices)
    how = f", {run} of {len(choices)} 2:4 layers as 2:4 ({sparse.reason})" if choices else ""
    layers = f"{len(nodes)} int8 layers through Triton-language kernels{how}"
    return f"{layers}{told(crosses, triangles, look_ups)}", choices


def _place_rows(module: GraphModule, node: Node) -> None:
    from recpress_kernels.int8_linear.cuda import pad_rows  # triton exists on Linux alone

    owner, _, name = node.args[1].target.rpartition(".")
    setattr(module.get_submodule(owner), name, pad_rows(module.get_buffer(node.args[1].target)))


def _place_sparse(module: GraphModule, node: Node, name: str, gpu: str, sparse: Support) -> Choice:
    x, _values, _indices, *rest = node.args
    stored = stored_sparse(module, node)
    _, (choice,) = choose_stack([stored], isa=gpu)
    if choice.sparse24 and sparse:
        packed = sparse24_gpu.pack(stored.values, stored.indices)
        target, operands = torch.ops.recpress.int8_sparse24_linear_fragments.default, packed.operands()
    else:
        target, operands = torch.ops.recpress.int8_linear.default, (decompress(stored),)
        choice = replace(choice, sparse24=False)
    given = [_held(module, f"{name}_{place}", operand) for place, operand in enumerate(operands)]
    with module.graph.inserting_before(node):
        given = [module.graph.get_attr(operand) if isinstance(operand, str) else operand for operand in given]
        call = module.graph.call_function(target, (x, *given, *rest))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    if target is torch.ops.recpress.int8_linear.default:
        _place_rows(module, call)
    return choice


def _held(module: GraphModule, name: str, operand: Tensor | int) -> str | int:
    """A tensor by the name of the buffer that holds it now."""
    if not isinstance(operand, Tensor):
        return operand
    module.register_buffer(name, operand)
    return name
