"""What torch asks about the sizes of a program while it compiles it. Each answer holds for some sizes only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from offramp_server.workers.engines.program import ExportedProgram


class Questions:
    """Made before an exported program is compiled, and asked afterwards."""

    def __init__(self, exported: ExportedProgram, batches: bool) -> None:
        """What exporting it has asked is part of the program, and was checked then."""
        sizes: list[list[Any]] = [list(value.shape) for value in _inputs(exported)]
        varying = [size for each in sizes for size in each if isinstance(size, torch.SymInt)]
        # torch keeps its questions in the environment that all symbols of a program share.
        self._environment: Any = varying[0].node.shape_env if varying else _Nothing()
        self._before = len(self._environment.guards)
        # Sizes that are equal by the program's own rules.
        self._equal: Mapping[Any, Any] = dict(self._environment.replacements)
        batch: Any = sizes[0][0] if batches else 1
        self._batch: Any = batch.node.expr.xreplace(self._equal) if isinstance(batch, torch.SymInt) else None

    def same(self, size: int, lengths: Sequence[int]) -> bool:
        """Whether every answer for a batch of that size, and variable dimensions of all `lengths`, is the one that
        the code was compiled with."""
        return all(self._holds(expression, size, lengths) for expression in self._asked())

    def __str__(self) -> str:
        return ", ".join(map(str, self._asked()))

    def _asked(self) -> list[Any]:
        return [guard.expr.xreplace(self._equal) for guard in self._environment.guards[self._before :]]

    def _holds(self, expression: Any, size: int, lengths: Sequence[int]) -> bool:
        known = expression if self._batch is None else expression.subs(self._batch, size)
        others = sorted(known.free_symbols, key=str)
        combinations = itertools.product(lengths, repeat=len(others))
        return all(bool(known.subs(list(zip(others, each, strict=True)))) for each in combinations)


class _Nothing:
    """The environment of a program whose sizes are all fixed."""

    guards: Sequence[Any] = ()
    replacements: Mapping[Any, Any] = MappingProxyType({})


def _inputs(exported: ExportedProgram) -> Iterator[torch.Tensor]:
    names = exported.graph_signature.user_inputs
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            yield node.meta["val"]
