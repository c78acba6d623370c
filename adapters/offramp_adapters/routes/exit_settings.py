"""What an early-exit route is told by its file, and what of that can be set live."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from offramp_common.text import did_you_mean, quoted

from offramp_adapters.audits.subject import NOT_IN_ANSWERS, NOT_JUDGED
from offramp_adapters.confidence.agreement import Agreement
from offramp_adapters.confidence.temperature import TEMPERATURES
from offramp_adapters.control.rules import LoadRule, check_thresholds
from offramp_adapters.routes.deciding import Scale
from offramp_adapters.routes.exit_stages import PATIENCE, SOFTMAX, ExitScore
from offramp_adapters.routes.parts import Part
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Level, RouteInvalid

AUDIT_RATE = "audit_rate"
_THRESHOLD, _TEMPERATURE = "threshold.", "temperature."


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of an early-exit route."""

    target: Target
    # None: the last stage, which answers whatever its score.
    threshold: float | None = field(default=None, metadata=NOT_JUDGED)
    # In the names of settings and in `offramp_exit`; empty: the target's.
    name: str = field(default="", metadata=NOT_IN_ANSWERS)
    # What the stage says is divided by it on the scale of logits.
    temperature: float = 1.0
    # Of single classes, by their label or number, instead of `threshold`.
    thresholds_by_class: Mapping[str, float] = field(default_factory=dict, metadata=NOT_JUDGED)
    # None: the route's.
    score: ExitScore | None = None

    @property
    def label(self) -> str:
        return self.name or self.target.name


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """Raises RouteInvalid for what does not go together whatever the stages are."""

    stages: tuple[Stage, ...]
    score: ExitScore = "max_probability"
    # None: found by their names (deciding.py).
    output: str | None = None
    scale: Scale | None = None
    # With score = "patience": how many times in a row an exit has to agree with the one before.
    patience: int | None = None
    # Share of the items that exit for which the reference is run as well.
    audit_rate: float = field(default=0.0, metadata=NOT_IN_ANSWERS)
    agreement: Agreement = field(default_factory=Agreement)
    load: Mapping[Level, LoadRule] = field(default_factory=dict, metadata=NOT_JUDGED)
    # Of the coins that the route tosses, for tests; None: the system's.
    seed: int | None = field(default=None, metadata=NOT_IN_ANSWERS)

    def __post_init__(self) -> None:
        _check_stages(self.stages)
        _check_scores(self)
        _check_rates(self)

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(stage.target for stage in self.stages)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(stage.target, "stage", stage.label) for stage in self.stages)

    @property
    def exits(self) -> tuple[Stage, ...]:
        """All stages but the reference."""
        return self.stages[:-1]

    def score_of(self, stage: Stage) -> ExitScore:
        return stage.score or self.score

    def settings(self) -> Mapping[str, float]:
        """What can be set live."""
        thresholds = {f"{_THRESHOLD}{stage.label}": stage.threshold or 0.0 for stage in self.exits}
        temperatures = {
            f"{_TEMPERATURE}{stage.label}": stage.temperature
            for stage in self.stages
            if self.score_of(stage) in SOFTMAX
        }
        return {**thresholds, **temperatures, AUDIT_RATE: self.audit_rate}

    def with_settings(self, changes: Mapping[str, float]) -> Self:
        """Raises RouteInvalid."""
        known = self.settings()
        for key in changes:
            if key not in known:
                raise RouteInvalid(f"this route has no setting {quoted(key)}{did_you_mean(key, known)}")
        stages = tuple(
            replace(
                stage,
                threshold=changes.get(f"{_THRESHOLD}{stage.label}", stage.threshold),
                temperature=changes.get(f"{_TEMPERATURE}{stage.label}", stage.temperature),
            )
            for stage in self.stages
        )
        return replace(self, stages=stages, audit_rate=changes.get(AUDIT_RATE, self.audit_rate))


def _check_stages(stages: tuple[Stage, ...]) -> None:
    if len(stages) < 2:
        raise RouteInvalid(f"an early-exit route has at least two stages, got {len(stages)}")
    labels = [stage.label for stage in stages]
    for stage in stages:
        if labels.count(stage.label) > 1:
            raise RouteInvalid(f"stage {quoted(stage.label)} is there twice; give each stage a name of its own")
    for stage in stages[:-1]:
        _check_exit(stage)
    last = stages[-1]
    if last.threshold is not None or last.thresholds_by_class:
        raise RouteInvalid(f"stage {quoted(last.label)} is the last one, which always answers: it has no threshold")
    low, high = TEMPERATURES
    for stage in stages:
        if not low <= stage.temperature <= high:
            raise RouteInvalid(
                f"{_TEMPERATURE}{stage.label}: expected a number from {low:g} to {high:g}, got {stage.temperature:g}"
            )


def _check_exit(stage: Stage) -> None:
    if stage.threshold is None:
        raise RouteInvalid(f"stage {quoted(stage.label)} needs a threshold; only the last stage has none")
    _check_threshold(f"{_THRESHOLD}{stage.label}", stage.threshold)
    for name, value in stage.thresholds_by_class.items():
        _check_threshold(f"{_THRESHOLD}{stage.label}, class {name}", value)


def _check_threshold(what: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise RouteInvalid(
            f"{what}: expected a number of at least 0, where one above 1 is never reached, got {value:g}"
        )


def _check_scores(route: ExitSettings) -> None:
    if (route.patience is None) == (route.score == PATIENCE):
        wrong = "needs" if route.patience is None else "does not use"
        raise RouteInvalid(f'score = "{route.score}" {wrong} patience')
    for stage in route.stages:
        score = route.score_of(stage)
        if (score == PATIENCE) != (route.score == PATIENCE):
            raise RouteInvalid(f'stage {quoted(stage.label)}: score = "patience" counts over all stages or none')
        if score not in SOFTMAX and stage.temperature != 1 and stage is not route.stages[-1]:
            raise RouteInvalid(f'stage {quoted(stage.label)}: a temperature does not change the score "{score}"')
    exits = len(route.exits)
    if route.patience is not None and not 1 <= route.patience < exits:
        raise RouteInvalid(
            f"patience: an exit that agrees {route.patience} times in a row with the one before takes more than "
            f"{max(route.patience, 1)} exits before the last stage, there are {exits}"
            if route.patience >= 1
            else f"patience: expected an integer of at least 1, got {route.patience}"
        )


def _check_rates(route: ExitSettings) -> None:
    if not 0 <= route.audit_rate <= 1:
        raise RouteInvalid(f"{AUDIT_RATE}: expected a number from 0 to 1, got {route.audit_rate:g}")
    check_thresholds(route.load, [stage.threshold or 0.0 for stage in route.exits])
    for level, rule in route.load.items():
        where = f"load.{level.name.lower()}"
        for value in rule.thresholds or ():
            _check_threshold(f"{where}.thresholds", value)
        if not 0 <= rule.audits < math.inf:
            raise RouteInvalid(f"{where}.audits: expected a factor of at least 0, got {rule.audits:g}")
        if not 0 <= rule.shed <= 1:
            raise RouteInvalid(f"{where}.shed: expected a share from 0 to 1, got {rule.shed:g}")
