"""Do the targets of a route take the same inputs, and give classes that mean the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations, product

from offramp_adapters.routes.deciding import HIDDEN, Deciding
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Endpoint, RouteInvalid, TensorFacts


def check_inputs(targets: Sequence[Target], endpoints: Mapping[Target, Endpoint]) -> None:
    """Raises RouteInvalid unless a request to the first of them fits all: names, datatypes and dimensions of the
    inputs, in any order, and whether there is a batch dimension."""
    first = targets[0]
    for other in targets[1:]:
        for wanted, found in ((first, other), (other, first)):
            _check_named(wanted, endpoints[wanted], found, endpoints[found])
        if bool(endpoints[first].max_batch_size) != bool(endpoints[other].max_batch_size):
            with_batches, without = (first, other) if endpoints[first].max_batch_size else (other, first)
            raise RouteInvalid(f'"{with_batches}" has a batch dimension and "{without}" has none; expected the same')


def _check_named(wanted: Target, endpoint: Endpoint, found: Target, other: Endpoint) -> None:
    there = {facts.name: facts for facts in other.inputs}
    for facts in endpoint.inputs:
        match = there.get(facts.name)
        if match is None:
            raise RouteInvalid(f'"{wanted}" takes input {facts} and "{found}" does not; expected the same inputs')
        if (match.datatype, match.dims) != (facts.datatype, facts.dims):
            raise RouteInvalid(f'"{wanted}" takes input {facts} and "{found}" takes {match}; expected the same')


def public_outputs(endpoint: Endpoint) -> dict[str, TensorFacts]:
    """By name, without hidden states, which are for the next segment of a network."""
    return {facts.name: facts for facts in endpoint.outputs if not facts.name.startswith(HIDDEN)}


def check_outputs(targets: Sequence[Target], others: Sequence[Target], endpoints: Mapping[Target, Endpoint]) -> None:
    """Raises RouteInvalid unless the answer of each of `targets` may stand for that of any other: the same outputs,
    with the same labels where there are any. Each of `others` gives at least those."""
    for wanted, found in (*permutations(targets, 2), *product(targets, others)):
        _check_gives(wanted, found, endpoints)


def _check_gives(wanted: Target, found: Target, endpoints: Mapping[Target, Endpoint]) -> None:
    there = public_outputs(endpoints[found])
    for name, facts in public_outputs(endpoints[wanted]).items():
        match = there.get(name)
        if match is None:
            raise RouteInvalid(f'"{wanted}" gives output {facts} and "{found}" does not; expected the same outputs')
        if (match.datatype, match.dims) != (facts.datatype, facts.dims):
            raise RouteInvalid(f'"{wanted}" gives output {facts} and "{found}" gives {match}; expected the same')
        _check_same_labels(wanted, facts, found, match)


def check_classes(targets: Sequence[Target], deciding: Mapping[Target, Deciding]) -> None:
    """Raises RouteInvalid unless the deciding outputs of all have one name, one scale, as many classes, and the same
    labels in the same order wherever there are labels."""
    first = targets[0]
    labelled = next((target for target in targets if deciding[target].facts.labels), first)
    for other in targets[1:]:
        one, two = deciding[first], deciding[other]
        if one.name != two.name:
            raise RouteInvalid(
                f'"{first}" answers with output {one.facts} and "{other}" with {two.facts}; expected one name '
                f"(a model.toml can give an output another: [[outputs]] name, source)"
            )
        if one.classes != two.classes:
            raise RouteInvalid(
                f'output {one.name}: "{first}" has {_count(one)} classes and "{other}" has {_count(two)}; '
                f"expected the same"
            )
        _check_same_labels(labelled, deciding[labelled].facts, other, two.facts)


def _check_same_labels(first: Target, one: TensorFacts, other: Target, two: TensorFacts) -> None:
    ours, theirs = one.labels, two.labels
    if not ours or not theirs or ours == theirs:
        return
    if len(ours) != len(theirs):
        raise RouteInvalid(
            f'output {one.name}: "{first}" has {len(ours)} labels and "{other}" has {len(theirs)}; expected the same'
        )
    at = next(at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    raise RouteInvalid(
        f'output {one.name}: class {at} is "{ours[at]}" of "{first}" and "{theirs[at]}" of "{other}"; '
        f"expected the same labels in the same order"
    )


def _count(deciding: Deciding) -> str:
    return "any number of" if deciding.classes < 0 else str(deciding.classes)
