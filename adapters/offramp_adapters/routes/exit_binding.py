"""Do the stages of an early-exit route fit each other? And what each of them takes and hands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp_common.text import quoted

from offramp_adapters.confidence.scores import SoftmaxScore
from offramp_adapters.routes.alike import check_classes
from offramp_adapters.routes.deciding import Deciding, deciding_output
from offramp_adapters.routes.exit_computing import step
from offramp_adapters.routes.exit_settings import ExitSettings, Stage
from offramp_adapters.routes.exit_stages import AGREEMENT, PATIENCE, SOFTMAX, BoundExits, BoundStage
from offramp_adapters.routes.exit_thresholds import Threshold, rules_of
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Endpoint, Face, RouteInvalid, TensorFacts

# What the export of a network with exits writes into [metadata] of each segment.
_WEIGHTS = "provenance.settings.weights"
_STAGE = "provenance.settings.stage"


def bind(route: ExitSettings, endpoints: Mapping[Target, Endpoint]) -> tuple[Face, BoundExits]:
    """Raises RouteInvalid."""
    bound = [endpoints[stage.target] for stage in route.stages]
    _check_batches(route, bound)
    starts = _starts(route, bound)
    deciding = {
        stage.target: deciding_output(each, f"stage {quoted(stage.label)}", route.output, route.scale)
        for stage, each in zip(route.stages, bound, strict=True)
    }
    check_classes(route.targets, deciding)
    decides = next((each for each in reversed(deciding.values()) if each.facts.labels), deciding[route.targets[-1]])
    _check_judging(route, bound, decides)
    outputs = _shared(route, bound)
    stages = tuple(
        _stage(route, bound, number, starts, deciding[stage.target], outputs)
        for number, stage in enumerate(route.stages)
    )
    largest = [each.max_batch_size for each in bound]
    gives = next(target for target in reversed(deciding) if deciding[target].facts.labels == decides.facts.labels)
    exits = BoundExits(
        stages,
        rules_of([_threshold(stage, decides) for stage in route.exits], route.audit_rate, route.load),
        outputs, decides.name, largest[0] > 0, min(largest) if min(largest) < largest[0] else None,
        route.agreement, _classifies(route), route.patience or 0,
    )  # fmt: skip
    return Face(route.targets[0], gives, outputs, min(largest)), exits


def _check_batches(route: ExitSettings, bound: Sequence[Endpoint]) -> None:
    with_batches = [stage.label for stage, each in zip(route.stages, bound, strict=True) if each.max_batch_size]
    without = [stage.label for stage, each in zip(route.stages, bound, strict=True) if not each.max_batch_size]
    if with_batches and without:
        raise RouteInvalid(
            f"stage {quoted(with_batches[0])} has a batch dimension and stage {quoted(without[0])} has none; "
            "expected the same of all stages"
        )


# What stages take


def _starts(route: ExitSettings, bound: Sequence[Endpoint]) -> list[int]:
    """For each stage, where the network begins that it is a segment of."""
    starts = [0]
    for number in range(1, len(bound)):
        if _takes_the_request(bound[0], bound[number]):
            starts.append(number)
        else:
            _check_handed_on(route, bound, number)
            starts.append(starts[-1])
    return starts


def _takes_the_request(first: Endpoint, stage: Endpoint) -> bool:
    there = {facts.name: facts for facts in first.inputs}
    return len(there) == len(stage.inputs) and all(
        facts.name in there and _fits(there[facts.name], facts) for facts in stage.inputs
    )


def _check_handed_on(route: ExitSettings, bound: Sequence[Endpoint], number: int) -> None:
    """Raises RouteInvalid unless the stage takes outputs of the one before, and is the next segment of its network."""
    here, before = route.stages[number], route.stages[number - 1]
    there = {facts.name: facts for facts in bound[number - 1].outputs}
    if not any(facts.name in there for facts in bound[number].inputs):
        raise _foreign(route, bound, number)
    for facts in bound[number].inputs:
        given = there.get(facts.name)
        if given is None or not _fits(given, facts):
            gives = "does not give it" if given is None else f"gives {given}"
            raise RouteInvalid(
                f"stage {quoted(here.label)} takes {facts}, and stage {quoted(before.label)} before it {gives}; "
                "expected segments of one network, in order"
            )
    _check_one_network(before, bound[number - 1].metadata, here, bound[number].metadata)


def _foreign(route: ExitSettings, bound: Sequence[Endpoint], number: int) -> RouteInvalid:
    first, here = route.stages[0], route.stages[number]
    return RouteInvalid(
        f"stage {quoted(here.label)} takes {_list(bound[number].inputs)}, and stage {quoted(first.label)} takes "
        f"{_list(bound[0].inputs)}; expected the same inputs, or outputs of the stage before it "
        f"({_list(bound[number - 1].outputs)})"
    )


def _check_one_network(before: Stage, its: Mapping[str, str], here: Stage, ours: Mapping[str, str]) -> None:
    """As far as both say what they are segments of."""
    one, two = its.get(_WEIGHTS), ours.get(_WEIGHTS)
    if one is not None and two is not None and one != two:
        raise RouteInvalid(
            f"stages {quoted(before.label)} and {quoted(here.label)} are segments of different networks (weights "
            f"{one[:12]} and {two[:12]}); expected segments of one export"
        )
    was, now = its.get(_STAGE, ""), ours.get(_STAGE, "")
    if was.isdecimal() and now.isdecimal() and int(now) != int(was) + 1:
        raise RouteInvalid(
            f"stage {quoted(here.label)} is segment {now} of its network, and {quoted(before.label)} before it "
            f"segment {was}; expected segment {int(was) + 1}"
        )


def _fits(given: TensorFacts, taken: TensorFacts) -> bool:
    """Whether whatever is `given` may be taken."""
    return (
        given.datatype == taken.datatype
        and len(given.dims) == len(taken.dims)
        and all(want in (-1, size) for size, want in zip(given.dims, taken.dims, strict=True))
    )


def _list(facts: Sequence[TensorFacts]) -> str:
    return ", ".join(map(str, facts)) or "nothing"


# What stages give


def _shared(route: ExitSettings, bound: Sequence[Endpoint]) -> tuple[str, ...]:
    """Outputs that every stage has, as the reference orders them. Raises RouteInvalid if they differ."""
    columns = [{facts.name: facts for facts in each.outputs} for each in bound]
    reference = columns[-1]
    names = tuple(name for name in reference if all(name in column for column in columns))
    for name in names:
        for stage, column in zip(route.stages, columns, strict=True):
            one, other = column[name], reference[name]
            if (one.datatype, one.dims) != (other.datatype, other.dims):
                raise RouteInvalid(
                    f"stage {quoted(stage.label)} gives {one}, and stage {quoted(route.stages[-1].label)} {other}; "
                    "expected the same datatype and dimensions"
                )
    return names


def _classifies(route: ExitSettings) -> bool:
    return route.agreement.of_classes or route.score != PATIENCE


def _check_judging(route: ExitSettings, bound: Sequence[Endpoint], decides: Deciding) -> None:
    route.agreement.check(decides)
    for stage, each in zip(route.exits, bound, strict=False):
        score = route.score_of(stage)
        if score == AGREEMENT and AGREEMENT not in each.scores:
            raise RouteInvalid(
                f'stage {quoted(stage.label)}: score = "agreement" is that of an ensemble, and '
                f'"{stage.target}" is none; expected another score for this stage'
            )
        if score in SOFTMAX and 0 <= decides.classes < 2:
            raise RouteInvalid(
                f'output {decides.facts} has one class, which is always certain; expected score = "patience"'
            )


def _stage(
    route: ExitSettings,
    bound: Sequence[Endpoint],
    number: int,
    starts: Sequence[int],
    decides: Deciding,
    outputs: Sequence[str],
) -> BoundStage:
    stage, endpoint = route.stages[number], bound[number]
    hands_on: tuple[str, ...] = ()
    if number + 1 < len(starts) and starts[number + 1] == starts[number]:
        hands_on = tuple(facts.name for facts in bound[number + 1].inputs)
    stays = bool(hands_on and endpoint.device) and endpoint.device == bound[number + 1].device
    inputs_are = (
        "" if starts[number] == number else f"what stage {quoted(route.stages[number - 1].label)} has handed on"
    )
    score = route.score_of(stage)
    softmax: SoftmaxScore = next((each for each in SOFTMAX if each == score), SOFTMAX[0])
    keep = frozenset(hands_on).difference(outputs) if stays else frozenset[str]()
    return BoundStage(
        stage.label, stage.target, starts[number],
        step(stage.target, number, may_continue=number + 1 < len(starts), keep=keep),
        hands_on, inputs_are, decides.name, endpoint.max_batch_size > 0, decides.scale, stage.temperature, softmax,
        # The reference may well be one model.
        score == AGREEMENT and AGREEMENT in endpoint.scores,
        keep,
    )  # fmt: skip


def _threshold(stage: Stage, decides: Deciding) -> Threshold:
    numbers = {name: _class_number(stage, name, decides) for name in stage.thresholds_by_class}
    assert stage.threshold is not None
    return Threshold(stage.threshold, {numbers[name]: value for name, value in stage.thresholds_by_class.items()})


def _class_number(stage: Stage, name: str, decides: Deciding) -> int:
    labels = decides.facts.labels
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and (decides.classes < 0 or int(name) < decides.classes):
        return int(name)
    known = ", ".join(map(quoted, labels[:10])) if labels else f"0 to {decides.classes - 1}"
    raise RouteInvalid(f"stage {quoted(stage.label)}: there is no class {quoted(name)}; expected one of {known}")
