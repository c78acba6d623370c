"""Do two answers to the same items agree? What that means belongs to the route."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from open_inference.tensor import BYTES, Array, Tensor

from offramp_adapters.routes.deciding import Deciding
from offramp_adapters.routes.strategy import RouteInvalid

AgreementKind: TypeAlias = Literal["class", "top_k", "tolerance", "cosine"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """`[agreement]` of a route. Raises RouteInvalid for what does not go together.

        class       the same class is the most probable
        top_k       the reference's class is among the `k` most probable of the answer
        tolerance   no number of any output differs by more than `tolerance`, and texts are equal
        cosine      1 - cosine of the two deciding outputs is at most `tolerance`

    NaN agrees with nothing, not even with itself.
    """

    kind: AgreementKind = "class"
    k: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for key, kinds in (("k", ("top_k",)), ("tolerance", ("tolerance", "cosine"))):
            given = getattr(self, key) is not None
            if given != (self.kind in kinds):
                wrong = "does not use" if given else "needs"
                raise RouteInvalid(f'agreement.kind = "{self.kind}" {wrong} agreement.{key}')
        if self.k is not None and self.k < 1:
            raise RouteInvalid(f"agreement.k: expected an integer of at least 1, got {self.k}")
        if self.tolerance is not None and not 0 <= self.tolerance < float("inf"):
            raise RouteInvalid(f"agreement.tolerance: expected a number of at least 0, got {self.tolerance:g}")

    @property
    def of_classes(self) -> bool:
        return self.kind in ("class", "top_k")

    def check(self, decides: Deciding) -> None:
        """Raises RouteInvalid unless this can be asked of answers with that deciding output."""
        if not self.of_classes or decides.classes < 0:
            return
        if decides.classes < 2:
            raise RouteInvalid(
                f'output {decides.facts} has one class, so that agreement.kind = "{self.kind}" always holds; '
                'expected "tolerance" or "cosine"'
            )
        if self.k is not None and self.k >= decides.classes:
            raise RouteInvalid(
                f"agreement.k: expected fewer than the {decides.classes} classes of output {decides.name}, got {self.k}"
            )

    def compare(self, answer: Sequence[Tensor], reference: Sequence[Tensor], output: str, batched: bool) -> list[bool]:
        """Whether each item of `answer` agrees with the same one of `reference`. Both have the outputs of `answer`,
        and `output`, the deciding one, is among them."""
        there = {tensor.name: tensor for tensor in reference}
        if self.kind == "tolerance":
            agreed = [self._within(each, there[each.name], batched) for each in answer]
            return list(np.logical_and.reduce(agreed).tolist())
        [decides] = [tensor for tensor in answer if tensor.name == output]
        ours, theirs = _rows(decides, batched), _rows(there[output], batched)
        if ours.shape != theirs.shape:
            return [False] * len(ours)
        known = ~(np.isnan(ours).any(axis=1) | np.isnan(theirs).any(axis=1))
        return list((known & self._same(ours, theirs)).tolist())

    def _same(self, ours: Array, theirs: Array) -> Array:
        if self.kind == "cosine":
            return _cosine_distance(ours, theirs) <= (self.tolerance or 0.0)
        best = theirs.argmax(axis=1)
        if self.kind == "class":
            return np.asarray(ours.argmax(axis=1) == best)
        return np.asarray((ours > np.take_along_axis(ours, best[:, None], axis=1)).sum(axis=1) < (self.k or 1))

    def _within(self, ours: Tensor, theirs: Tensor, batched: bool) -> Array:
        items = ours.shape[0] if batched else 1
        if ours.shape != theirs.shape or (ours.datatype == BYTES) != (theirs.datatype == BYTES):
            return np.zeros(items, np.bool_)
        if ours.datatype == BYTES:
            return np.asarray((ours.numpy() == theirs.numpy()).reshape(items, -1).all(axis=1))
        # Infinity differs from itself by NaN, and from everything else by itself.
        one, other = _rows(ours, batched), _rows(theirs, batched)
        with np.errstate(invalid="ignore"):
            near = (np.abs(one - other) <= (self.tolerance or 0.0)) | (one == other)
        return np.asarray(near.all(axis=1))


def best_classes(tensor: Tensor, batched: bool) -> list[int | None]:
    """The most probable class of each item; None for one with NaN, or where there are no classes."""
    values = _rows(tensor, batched)
    if not values.shape[1]:
        return [None] * len(values)
    best = np.where(np.isnan(values).any(axis=1), -1, values.argmax(axis=1)).tolist()
    return [None if each < 0 else each for each in best]


def _rows(tensor: Tensor, batched: bool) -> Array:
    """[items, numbers]."""
    values = tensor.numpy().astype(np.float64)
    return values.reshape(len(values) if batched else 1, -1)


def _cosine_distance(ours: Array, theirs: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        # Of a vector without a direction it is NaN, which is within nothing.
        return np.asarray(1 - (ours * theirs).sum(axis=1) / norms)
