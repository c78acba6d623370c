"""Feature matching: a student's features learn to be translated into a teacher's (Romero et al., FitNets, 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from offramp_common.text import quoted
from torch import Tensor, nn
from torch.nn import functional

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module

# What the modules of one network returned last, by name.
Features = dict[str, Tensor]


class FeatureMatching:
    """Regressors from named modules of a student to named modules of a teacher, and the error that they leave.

    `pairs` maps the student's names to the teacher's. A regressor is a 1x1 convolution for [N, C, H, W] and linear for
    [N, L, D] and [N, D]; pictures of different sizes are averaged down to the smaller one first. `example` holds
    forward's arguments for a small batch, which runs once through both networks to learn the shapes. The regressors'
    weights are drawn from torch's global random state.

    Raises ModelError for a module that does not exist, that returns no tensor, or shapes that do not go together.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: Mapping[str, str], example: tuple[Tensor, ...]
    ) -> None:
        self._pairs = dict(pairs)
        self._teacher = teacher
        self._student_features: Features = {}
        self._teacher_features: Features = {}
        seen = _shapes(student, pairs.keys(), example), _shapes(teacher, pairs.values(), example)
        # Numbered, as a name with dots cannot be that of a child.
        self.regressors: dict[str, nn.Module] = {
            str(number): _regressor(mine, seen[0][mine], theirs, seen[1][theirs])
            for number, (mine, theirs) in enumerate(pairs.items())
        }

    def error(self) -> Tensor:
        """The mean over all pairs of the mean squared error, for the batch that both networks saw last."""
        errors = [
            self._error(regressor, mine, theirs)
            for regressor, (mine, theirs) in zip(self.regressors.values(), self._pairs.items(), strict=True)
        ]
        self._student_features.clear()
        self._teacher_features.clear()
        return torch.stack(errors).mean()

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        """Have both networks' features noted as they run."""
        with (
            _noted(student, self._pairs.keys(), self._student_features),
            _noted(self._teacher, self._pairs.values(), self._teacher_features),
        ):
            yield

    def _error(self, regressor: nn.Module, mine: str, theirs: str) -> Tensor:
        student, teacher = _same_size(self._student_features[mine], self._teacher_features[theirs].detach())
        return functional.mse_loss(regressor(student).float(), teacher.float())


@contextmanager
def _noted(module: nn.Module, names: Any, features: Features) -> Iterator[None]:
    def note(name: str, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"module {quoted(name)} returns {type(output).__name__}; expected one that returns a tensor"
            )
        features[name] = output

    hooks = [
        get_module(module, name).register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shapes(module: nn.Module, names: Any, example: tuple[Tensor, ...]) -> Mapping[str, torch.Size]:
    features: Features = {}
    training = module.training
    with _noted(module.eval(), names, features), torch.no_grad():
        module(*example)
    module.train(training)
    missing = [name for name in names if name not in features]
    if missing:
        raise ModelError(f"module {quoted(missing[0])} does not run when the network does; name one that does")
    return {name: output.shape for name, output in features.items()}


def _regressor(mine: str, student: torch.Size, theirs: str, teacher: torch.Size) -> nn.Module:
    if (
        len(student) != len(teacher)
        or (len(student) == 3 and student[1] != teacher[1])
        or len(student) not in (2, 3, 4)
    ):
        raise ModelError(
            f"features {list(student)} of the student's {quoted(mine)} cannot be matched to {list(teacher)} of the "
            f"teacher's {quoted(theirs)}; name two modules that return [N, C, H, W], [N, D], or [N, L, D] of one length"
        )
    if len(student) == 4:
        return nn.Conv2d(student[1], teacher[1], 1)
    return nn.Linear(student[-1], teacher[-1])


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    height, width = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
    pooled = [functional.adaptive_avg_pool2d(features, (height, width)) for features in (student, teacher)]
    return pooled[0], pooled[1]
