"""One answer out of several members' answers: the arithmetic, on arrays [members, items, classes].

A member that is missing for an item, because it did not answer in time or gave NaN, has weight 0 there; the weights of
the others are used in proportion to each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from offramp_adapters.routes.deciding import LOGITS, Scale

Floats: TypeAlias = NDArray[np.float64]

# A stack's features are log-probabilities no smaller than this: a probability of 0 must not outweigh everything else.
FLOOR = -16.0
_LOWEST = np.exp(FLOOR)
_AS_IT_IS = np.ones((1, 1, 1))
# Sums of weights that differ by less than this part of all weights are equal but for rounding.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Stack:
    """Multinomial logistic regression over the members' log-probabilities (stacking: Wolpert, 1992).

    `weights` are [members * classes][classes], the members one after another; `bias` is [classes].
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


def by_all(there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[items]: no member is missing, by who is there, [members, items]."""
    whole: NDArray[np.bool_] = np.logical_and.reduce(there)
    return whole


def probabilities_of(values: Floats, scale: Scale, temperatures: Floats) -> Floats:
    """Normalised probabilities, [members, items, classes], of what members say on that scale, each at its temperature
    [members, 1, 1] (Guo et al., On Calibration, 2017). What holds NaN, or no probability at all, becomes NaN.

    It runs for every request on the server's one thread: few passes, and no logarithms that are undone again.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        highest = values.max(axis=2, keepdims=True)
        if scale == LOGITS:
            powers = np.exp((values - highest) / temperatures)
        else:
            powers = np.where(values < 0, np.nan, values / highest) ** (1 / temperatures)
        normalised: Floats = powers / powers.sum(axis=2, keepdims=True)
    return normalised


def known(values: Floats) -> NDArray[np.bool_]:
    """Whether there is an answer: the last dimension holds no NaN."""
    found: NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=-1))
    return found


def as_scale(probabilities: Floats, scale: Scale) -> Floats:
    """Logits are logarithms of the probabilities: their softmax gives the probabilities back."""
    if scale != LOGITS:
        return probabilities
    with np.errstate(divide="ignore"):
        logarithms: Floats = np.log(probabilities)
    return logarithms


def mean(probabilities: Floats, weights: Floats) -> Floats:
    """Weighted mean, [items, classes], of probabilities [members, items, classes] with weights [members, items]; NaN
    for an item that nobody has weight for."""
    total = weights.sum(axis=0)
    if not weights.all():
        probabilities = np.where(weights[:, :, None] > 0, probabilities, 0.0)
        total = np.where(total > 0, total, np.nan)
    combined: Floats = (weights[:, :, None] * probabilities).sum(axis=0) / total[:, None]
    return combined


def vote(probabilities: Floats, weights: Floats) -> Floats:
    """Each class's share of the members' weighted votes, [items, classes].

    A tie for the first place goes to the class with the higher mean probability: the tied classes divide what they
    have together in proportion to theirs. If those are equal too, the class that comes first leads.
    """
    members, items, classes = probabilities.shape
    ballots = np.zeros((members, items, classes))
    chosen = np.where(weights > 0, _best(probabilities), 0)
    np.put_along_axis(ballots, chosen[:, :, None], 1.0, axis=2)
    shares = mean(ballots, weights)
    leading = shares >= shares.max(axis=1, keepdims=True) - _SAME
    tied = leading.sum(axis=1) > 1
    if tied.any():
        shares[tied] = _divided(shares[tied], leading[tied], mean(probabilities[:, tied], weights[:, tied]))
    return shares


def _divided(shares: Floats, leading: NDArray[np.bool_], liked: Floats) -> Floats:
    """What those that are `leading` have together goes to them as they are liked."""
    liked = np.where(leading, liked, 0.0)
    together = np.where(leading, shares, 0.0).sum(axis=1, keepdims=True)
    return np.where(leading, together * liked / liked.sum(axis=1, keepdims=True), shares)


def stacked(probabilities: Floats, weights: Floats, bias: Floats) -> Floats:
    """Probabilities, [items, classes], by a stack's `weights` [members * classes, classes] and `bias` [classes]."""
    scores = features(np.log(np.maximum(probabilities, _LOWEST))) @ weights + bias
    combined: Floats = probabilities_of(scores[None], LOGITS, _AS_IT_IS)[0]
    return combined


def features(logarithms: Floats) -> Floats:
    """What a stack sees, [items, members * classes], of log-probabilities [members, items, classes]."""
    members, items, classes = logarithms.shape
    return np.maximum(logarithms, FLOOR).transpose(1, 0, 2).reshape(items, members * classes)


def agreement(probabilities: Floats, weights: Floats, combined: Floats, total: float) -> Floats:
    """Per item, the share of the `total` weight that is with members whose class is the combined one, [items].

    `weights` are [members, items]. If `total` is that of all members, one that is missing has not agreed.
    """
    same = _best(probabilities) == _best(combined)
    share: Floats = (weights * same).sum(axis=0) / total
    return share


def confidence(combined: Floats) -> Floats:
    """Probability of the combined class, [items]."""
    highest: Floats = combined.max(axis=1)
    return highest


def _best(probabilities: Floats) -> NDArray[np.intp]:
    """Where two classes are equal, the one that comes first: the same for the same numbers, always."""
    best: NDArray[np.intp] = probabilities.argmax(axis=-1)
    return best
