"""Batch normalisation folded into the convolution before it (Ioffe & Szegedy 2015; Jacob et al. 2018, section 3.2).

At inference a batch norm is y = gamma (x - mean) / sqrt(var + eps) + beta with constants throughout, so that
norm(conv(x; W, b)) = conv(x; W s, (b - mean) s + beta), s = gamma / sqrt(var + eps) per output channel.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
CONVOLUTIONS = frozenset(
    {
        _aten.conv1d.default,
        _aten.conv1d.padding,
        _aten.conv2d.default,
        _aten.conv2d.padding,
        _aten.conv3d.default,
        _aten.conv3d.padding,
        _aten.convolution.default,
    }
)
_TRANSPOSED_ARGUMENT = 6


def convolutions(module: GraphModule) -> list[Node]:
    """Convolutions, not the transposed ones, in the order of execution."""
    return [node for node in module.graph.nodes if node.target in CONVOLUTIONS and not _transposed(node)]


def fold_batch_norms(module: GraphModule) -> int:
    """Rewrite `module` in place and return how many batch norms were folded. Weights are replaced, never written to."""
    folded = sum(_fold(module, node) for node in list(module.graph.nodes) if _is_batch_norm(node))
    if folded:
        _drop_unused_constants(module)
        module.recompile()
    return folded


def _fold(module: GraphModule, norm: Node) -> bool:
    conv = norm.args[0]
    if not isinstance(conv, Node) or conv.target not in CONVOLUTIONS or _transposed(conv) or len(conv.users) != 1:
        return False
    tensors = [_constant(module, arg) for arg in (*_pad(conv.args, 3)[1:3], *norm.args[1:5])]
    weight, bias, gamma, beta, mean, variance = tensors
    if weight is None or mean is None or variance is None or not _all_constant((*conv.args[1:3], *norm.args[1:5])):
        return False
    scale = (gamma if gamma is not None else 1.0) / torch.sqrt(variance.double() + _epsilon(norm))
    shift = ((bias if bias is not None else 0.0) - mean.double()) * scale + (beta if beta is not None else 0.0)
    new_weight = (weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    _replace(module, conv, new_weight, shift.to(weight.dtype))
    _remove(module, norm, conv)
    return True


def _is_batch_norm(node: Node) -> bool:
    if node.target is _aten.batch_norm.default:
        return node.args[5] is False
    if node.target is _aten._native_batch_norm_legit_no_training.default:
        return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
    return False


def _epsilon(norm: Node) -> float:
    position = 7 if norm.target is _aten.batch_norm.default else 6
    epsilon = norm.args[position]
    assert isinstance(epsilon, float)
    return epsilon


def _transposed(conv: Node) -> bool:
    return conv.target is _aten.convolution.default and bool(conv.args[_TRANSPOSED_ARGUMENT])


def _pad(args: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    return args + (None,) * (length - len(args))


def _all_constant(args: tuple[Any, ...]) -> bool:
    return all(arg is None or (isinstance(arg, Node) and arg.op == "get_attr") for arg in args)


def _constant(module: GraphModule, arg: Any) -> torch.Tensor | None:
    if not isinstance(arg, Node) or arg.op != "get_attr":
        return None
    tensor = operator.attrgetter(str(arg.target))(module)
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach()


def _replace(module: GraphModule, conv: Node, weight: torch.Tensor, bias: torch.Tensor) -> None:
    names = [f"folded_{conv.name}_weight", f"folded_{conv.name}_bias"]
    with module.graph.inserting_before(conv):
        for name, tensor in zip(names, (weight, bias), strict=True):
            module.register_buffer(name, tensor)
        nodes = [module.graph.get_attr(name) for name in names]
    conv.args = (conv.args[0], *nodes, *conv.args[3:])


def _remove(module: GraphModule, norm: Node, conv: Node) -> None:
    # The decomposed form returns a tuple of which only the first item is ever read.
    results = list(norm.users) if norm.target is not _aten.batch_norm.default else []
    for result in results:
        result.replace_all_uses_with(conv)
        module.graph.erase_node(result)
    norm.replace_all_uses_with(conv)
    module.graph.erase_node(norm)


def _drop_unused_constants(module: GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in used]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
