"""`kind = "early_exit"`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from offramp_adapters.confidence.temperature import TEMPERATURES
from offramp_adapters.routes.deciding import Scale
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.exit_stages import PATIENCE, ExitScore
from offramp_common.toml_schema import between

from offramp_server.repository.route_kinds.agreement import AgreementToml
from offramp_server.repository.route_kinds.load import ExitLoadToml, load_rules
from offramp_server.repository.route_kinds.targets import Label, TargetName, Version, target


@dataclass(frozen=True, slots=True)
class StageToml:
    """`[[stages]]`, the cheapest first."""

    model: TargetName
    # Left out: as the model.
    name: Label | None = None
    version: Version = None
    # Of every stage but the last; with score = "patience" it may be left out, and is 1.
    threshold: Annotated[float, between(0)] | None = None
    thresholds_by_class: Mapping[str, Annotated[float, between(0)]] = field(default_factory=dict)
    temperature: Annotated[float, between(*TEMPERATURES)] = 1.0
    # Left out: the route's.
    score: ExitScore | None = None

    def stage(self, threshold: float | None) -> Stage:
        """`threshold` is what an exit asks without one of its own."""
        return Stage(
            target(self.model, self.version),
            threshold if self.threshold is None else self.threshold,
            self.name or "",
            self.temperature,
            self.thresholds_by_class,
            self.score,
        )


@dataclass(frozen=True, slots=True)
class AuditToml:
    """`[audit]`."""

    # Share of the items that exit for which the reference is run as well.
    rate: Annotated[float, between(0, 1)] = 0.0


@dataclass(frozen=True, slots=True)
class EarlyExitToml:
    """The file as written."""

    kind: Literal["early_exit"]
    stages: tuple[StageToml, ...]
    score: ExitScore = "max_probability"
    output: str | None = None
    scale: Scale | None = None
    patience: Annotated[int, between(1)] | None = None
    audit: AuditToml = field(default_factory=AuditToml)
    agreement: AgreementToml = field(default_factory=AgreementToml)
    load: ExitLoadToml = field(default_factory=ExitLoadToml)
    # Of the coins that the route tosses; for tests. Left out: the system's, which nobody can foresee.
    seed: Annotated[int, between(0)] | None = None

    def definition(self) -> EarlyExitRoute:
        """Raises ValueError."""
        asked = 1.0 if self.score == PATIENCE else None
        thresholds = [*[asked] * (len(self.stages) - 1), None]
        return EarlyExitRoute(
            tuple(stage.stage(each) for stage, each in zip(self.stages, thresholds, strict=False)),
            self.score,
            self.output,
            self.scale,
            self.patience,
            self.audit.rate,
            self.agreement.agreement(),
            load_rules(self.load),
            self.seed,
        )
