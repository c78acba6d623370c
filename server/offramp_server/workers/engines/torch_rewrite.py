"""Rewritings of an exported program that compute the same, but for rounding, and may be faster on the CPU."""

from __future__ import annotations

import torch

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.fold import convolutions, fold_batch_norms
from offramp_server.workers.engines.kind import NotWorthTrying
from offramp_server.workers.engines.kinds.torch_models import CHANNELS_LAST, FOLDED
from offramp_server.workers.engines.program import ExportedProgram, Program, program_of


def rewritten_program(exported: ExportedProgram, spec: ModelSpec, variant: str) -> Program:
    """The program as exported ("") or in one of the variants of torch-eager.

    Raises NotWorthTrying where the variant is the program as it was, LoadError where the spec does not fit it.
    """
    program = program_of(exported, spec)
    if not variant:
        return program
    folded = fold_batch_norms(program.module)
    changed = {FOLDED: lambda: folded > 0, CHANNELS_LAST: lambda: _channels_last(program.module)}[variant]()
    if not changed:
        raise NotWorthTrying(f'model "{spec.name}": {variant} would change nothing')
    return program


def _channels_last(module: torch.fx.GraphModule) -> bool:
    """Lay out the weights of 2-d convolutions so that activations follow. False where that is no use, or not safe."""
    # A view may not be possible in another layout, for some shapes only: no trial would show it.
    if any(node.target is torch.ops.aten.view.default for node in module.graph.nodes):
        return False
    weights = {str(node.args[1]): node.args[1] for node in convolutions(module)}
    targets = [
        str(node.target) for node in weights.values() if isinstance(node, torch.fx.Node) and node.op == "get_attr"
    ]
    return sum(_relayout(module, target) for target in targets) > 0


def _relayout(module: torch.fx.GraphModule, target: str) -> bool:
    owner_name, _, attribute = target.rpartition(".")
    owner = module.get_submodule(owner_name)
    weight = getattr(owner, attribute)
    if weight.dim() != 4:
        return False
    # A new tensor, not new strides for the old one: other candidates share it.
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    delattr(owner, attribute)
    owner.register_buffer(attribute, weight)
    return True
