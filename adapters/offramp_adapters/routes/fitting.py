"""What the numbers of an ensemble ought to be, from what its members said of labelled examples.

Needs scipy, which comes with the extra "compression"; nothing that serves imports this. Log-probabilities are natural
logarithms, [members, N, classes], none of them NaN; labels are int64 [N].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from open_inference.tensor import Tensor
from scipy.optimize import minimize, minimize_scalar

from offramp_adapters.confidence.temperature import log_probabilities
from offramp_adapters.routes import combine
from offramp_adapters.routes.combine import Floats, Stack
from offramp_adapters.routes.deciding import LOGITS
from offramp_adapters.routes.ensemble import Combine, EnsembleRoute, Member
from offramp_adapters.routes.plan import Answer
from offramp_adapters.routes.strategy import Endpoint, Query, TensorFacts

Labels = NDArray[np.int64]

# Natural logarithms of the temperatures that are tried: beyond them a member is certain of everything, or of nothing.
_LOG_TEMPERATURES = (-4.0, 4.0)
# How far a number is expected to lie from where it would be without examples, as the standard deviation of a normal
# prior. The logarithm of a temperature from 0.
_SPREAD = 0.5
# A stack's weights from those of the geometric mean. Two classifiers of Fashion-MNIST with 300, 2,000 and 10,000
# examples are best off with 0.01, 0.01 and 0.1, and lose most with 1.
_STACK_SPREAD = 0.05
# An EM step is the last one once the negative log-likelihood is within this of the lowest possible.
_GAP = 1e-7
_MAX_STEPS = 20_000


def fit(route: EnsembleRoute, how: Combine, logarithms: Floats, labels: Labels) -> EnsembleRoute:
    """The route with `how` for its combine and every number fitted: the temperature of each member by itself, the
    weights of members so scaled, and for a mean both once more, together. `logarithms` are at temperature 1."""
    temperatures = [fit_temperature(member, labels) for member in logarithms]
    weights = _weights(how, _scaled(logarithms, temperatures), labels)
    if how in ("mean", "weighted_mean"):
        temperatures = _together(logarithms, labels, temperatures, weights)
        weights = _weights(how, _scaled(logarithms, temperatures), labels)
    members = tuple(
        Member(member.target, weight, temperature)
        for member, weight, temperature in zip(route.members, weights, temperatures, strict=True)
    )
    stack = fit_stack(_scaled(logarithms, temperatures), labels) if how == "stack" else None
    quorum = None if route.quorum is None else min(route.quorum, sum(weight > 0 for weight in weights))
    return replace(route, members=members, combine=how, stack=stack, quorum=quorum)


def cross_validated(
    route: EnsembleRoute, how: Combine, logarithms: Floats, labels: Labels, folds: int, seed: int = 0
) -> Floats:
    """Probabilities, [N, classes]: those of each fold by the route that is fitted to all other folds."""
    probabilities = np.empty(logarithms.shape[1:])
    for inside, outside in _folds(len(labels), folds, seed):
        fitted = fit(route, how, logarithms[:, inside], labels[inside])
        probabilities[outside] = answer(fitted, logarithms[:, outside])
    return probabilities


def answer(route: EnsembleRoute, logarithms: Floats) -> Floats:
    """Probabilities, [N, classes], that the route gives for what its members say: its own plan, played."""
    _, items, classes = logarithms.shape
    endpoint = Endpoint((), (TensorFacts(LOGITS, "FP64", (classes,)),), items)
    strategy = replace(route, output=None, scale=None).bind(dict.fromkeys(route.targets, endpoint))
    plan = strategy.plan(Query({}, (), float))
    said = dict(zip(route.targets, logarithms, strict=True))
    outcomes = tuple(Answer([Tensor.from_numpy(LOGITS, said[run.target])]) for run in next(plan).runs)
    try:
        plan.send(outcomes)
    except StopIteration as end:
        combined: Answer = end.value
    return np.exp(combined.outputs[0].numpy())


def accuracy(probabilities: Floats, labels: Labels) -> float:
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """Mean of -log p(label), in nats; infinite if a label was thought impossible."""
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(probabilities[np.arange(len(labels)), labels])))


# Temperatures


def _scaled(logarithms: Floats, temperatures: Sequence[float]) -> Floats:
    return np.stack([log_probabilities(said, LOGITS, t) for said, t in zip(logarithms, temperatures, strict=True)])


def _together(
    logarithms: Floats, labels: Labels, temperatures: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """The temperatures with which the weighted mean is most likely, from those with which each member is: the mean of
    members that are as sure as they may be is not sure enough (Rahaman and Thiery, Uncertainty Quantification and Deep
    Ensembles, 2021), and who knows little should say it quietly."""
    shares = np.array(weights) / sum(weights)

    def loss(log_temperatures: Floats) -> float:
        scaled = _scaled(logarithms, list(np.exp(log_temperatures)))
        likelihoods = shares @ np.exp(_of_labels(scaled, labels))
        return float((log_temperatures**2).sum() / 2 / _SPREAD**2 - np.log(likelihoods).sum()) / len(labels)

    bounds = [_LOG_TEMPERATURES] * len(temperatures)
    found = minimize(loss, np.log(temperatures), method="L-BFGS-B", bounds=bounds)
    return [float(temperature) for temperature in np.exp(found.x)]


def fit_temperature(logarithms: Floats, labels: Labels) -> float:
    """The temperature of highest posterior probability for log-probabilities [N, classes] (Guo et al., On Calibration
    of Modern Neural Networks, 2017, with a prior: or a few examples that are all right would make it certain)."""

    def loss(log_temperature: float) -> float:
        scaled = log_probabilities(logarithms, LOGITS, float(np.exp(log_temperature)))
        return float(log_temperature**2 / 2 / _SPREAD**2 - _of_labels(scaled, labels).sum())

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


def _of_labels(logarithms: Floats, labels: Labels) -> Floats:
    """[..., N] of [..., N, classes]; what is impossible counts as hardly possible, so that sums stay finite."""
    chosen: Floats = np.maximum(logarithms[..., np.arange(len(labels)), labels], combine.FLOOR)
    return chosen


# Weights


def _weights(how: Combine, logarithms: Floats, labels: Labels) -> list[float]:
    if how == "weighted_mean":
        found = fit_mixture(logarithms, labels)
    elif how == "vote":
        found = fit_votes(logarithms, labels)
    else:
        found = np.ones(len(logarithms))
    return [float(weight) for weight in found]


def fit_mixture(logarithms: Floats, labels: Labels) -> Floats:
    """Weights, [members] on the simplex, of the mean of probabilities with the highest likelihood, by expectation
    maximisation (Dempster, Laird and Rubin, 1977): the problem is convex, and no step makes it worse.

    A member whose weight comes out as hardly anything gets none.
    """
    likelihoods = np.exp(_of_labels(logarithms, labels))
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(_MAX_STEPS):
        # How much each member's weight is worth; its largest value bounds how much there is to gain (Frank-Wolfe gap).
        worth = (likelihoods / (weights @ likelihoods)).mean(axis=1)
        if worth.max() - 1 < _GAP:
            break
        weights = weights * worth
    weights[weights < 1e-4] = 0.0
    total: Floats = weights / weights.sum()
    return total


def fit_votes(logarithms: Floats, labels: Labels) -> Floats:
    """Weights, [members], by which a vote of independent members is most often right: the log-odds of each one's
    accuracy (Nitzan and Paroush, Optimal Decision Rules in Uncertain Dichotomous Choice Situations, 1982), against
    chance among the classes. The largest is 1; one that is no better than chance gets 0."""
    classes = logarithms.shape[2]
    # As if each had been right and wrong once more, by which no log-odds are infinite.
    right = (logarithms.argmax(axis=2) == labels).sum(axis=1) + 1.0
    wrong = len(labels) + 2.0 - right
    odds = np.maximum(np.log(right / wrong * (classes - 1)), 0.0)
    shares: Floats = odds / odds.max() if odds.max() > 0 else np.ones(len(odds))
    return shares


def fit_stack(logarithms: Floats, labels: Labels) -> Stack:
    """Multinomial logistic regression over the members' log-probabilities, maximum a posteriori around their geometric
    mean (stacked generalisation: Wolpert, 1992): with few examples it stays near that."""
    members, _, classes = logarithms.shape
    inputs = combine.features(logarithms)
    prior = np.vstack([np.tile(np.eye(classes), (members, 1)) / members, np.zeros((1, classes))])
    ones = np.hstack([inputs, np.ones((len(inputs), 1))])
    wanted = np.eye(classes)[labels]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(prior.shape)
        scores = log_probabilities(ones @ weights, LOGITS)
        away = (weights - prior) / _STACK_SPREAD**2
        value = float(((weights - prior) * away).sum() / 2 - (scores * wanted).sum())
        slope = ones.T @ (np.exp(scores) - wanted) + away
        return value / len(labels), slope.ravel() / len(labels)

    found = minimize(loss, prior.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    weights = found.x.reshape(prior.shape)
    return Stack(tuple(tuple(map(float, row)) for row in weights[:-1]), tuple(map(float, weights[-1])))


def _folds(count: int, folds: int, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Positions outside and inside of each fold; the order of the examples does not matter."""
    fold = np.random.default_rng(seed).permutation(count) % folds
    for number in range(folds):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)
