"""A network that answers at several depths."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from offramp_common.text import quoted
from torch import Tensor, nn

from offramp_compression.errors import ModelError
from offramp_compression.exits.heads import ExitHead
from offramp_compression.modules import get_module


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """A head on what the trunk's submodule `module` returns; `head` is a key of `heads.POOLINGS`."""

    module: str
    head: str
    features: int


class MultiExit(nn.Module):
    """A trunk with exit heads at some of its modules.

    It takes what the trunk takes and returns a tuple of logits [N, classes]: those of each exit in the order of
    `points`, then the trunk's own. `mask` names the argument of the trunk's forward, [N, L], that says which positions
    are not padding; None if there is none. Multi-exit networks: Teerapittayanon et al., BranchyNet (2016).
    """

    def __init__(
        self, trunk: nn.Module, points: Sequence[ExitPoint], num_classes: int, mask: str | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.points = tuple(points)
        self.mask = mask
        self.heads = nn.ModuleList(ExitHead(point.head, point.features, num_classes) for point in points)
        self._mask_position = None if mask is None else _position(trunk, mask)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        hidden, final = self._run(inputs)
        mask = self._mask_of(inputs)
        return (*(head(state, mask) for head, state in zip(self.heads, hidden, strict=True)), final)

    def pooled(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the linear layer of each head sees, [N, features] each, and the trunk's own logits."""
        hidden, final = self._run(inputs)
        mask = self._mask_of(inputs)
        heads = zip(self.heads, hidden, strict=True)
        return (*(head.pool(state, mask) for head, state in heads if isinstance(head, ExitHead)), final)

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        names = [point.module for point in self.points]
        with captured(self.trunk, names) as hidden:
            final = self.trunk(*inputs)
        return [hidden[name] for name in names], final

    def _mask_of(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        return None if self._mask_position is None else inputs[self._mask_position]


@contextmanager
def captured(trunk: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the submodules `names` return while the trunk runs once, in the order in which they run.

    Raises ModelError for a name that does not exist, and for a module that does not run exactly once or does not return
    a single tensor.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        if name in found:
            raise ModelError(f"module {quoted(name)} runs more than once; attach the exit to a module that runs once")
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ModelError(f"module {quoted(name)} returns a {kind}; attach the exit to one that returns a tensor")
        found[name] = output

    # For one run only: a hook that stays would keep the last batch's hidden states alive and be copied with the module.
    handles = [get_module(trunk, name).register_forward_hook(_hook(keep, name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in names if name not in found]
    if idle:
        raise ModelError(f"module {quoted(idle[0])} does not run when the network does; attach the exit to another")


def apply_exits(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The edit "exits": `exits` (a list of tables with `module`, `head`, `features`), `num_classes` and `mask`."""
    points = [ExitPoint(**point) for point in arguments["exits"]]
    for point in points:
        get_module(module, point.module)
    return MultiExit(module, points, arguments["num_classes"], arguments.get("mask"))


def _hook(keep: Any, name: str) -> Any:
    return lambda module, inputs, output: keep(name, output)


def _position(trunk: nn.Module, mask: str) -> int:
    arguments = list(inspect.signature(trunk.forward).parameters)
    if mask not in arguments:
        raise ModelError(
            f"the network takes {', '.join(arguments)}; the mask has to be one of them, not {quoted(mask)}"
        )
    return arguments.index(mask)
