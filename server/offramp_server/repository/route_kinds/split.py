"""`kind = "split"`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from offramp_adapters.routes.split import Arm, Shadow, SplitRoute
from offramp_common.toml_schema import between, matches

from offramp_server.repository.route_kinds.agreement import AgreementToml
from offramp_server.repository.route_kinds.load import SplitLoadToml, load_rules
from offramp_server.repository.route_kinds.targets import Label, TargetName, Version, target


@dataclass(frozen=True, slots=True)
class ArmToml:
    """`[[arms]]`."""

    model: TargetName
    # Left out: as the model.
    name: Label | None = None
    version: Version = None
    weight: Annotated[float, between(0)] = 1.0

    def arm(self) -> Arm:
        return Arm(self.name or self.model, target(self.model, self.version), self.weight)


@dataclass(frozen=True, slots=True)
class ShadowToml:
    """`[[shadows]]`."""

    model: TargetName
    # Left out: as the model.
    name: Label | None = None
    version: Version = None
    # Of the requests.
    share: Annotated[float, between(0, 1)] = 1.0

    def shadow(self) -> Shadow:
        return Shadow(self.name or self.model, target(self.model, self.version), self.share)


@dataclass(frozen=True, slots=True)
class SplitToml:
    """The file as written."""

    kind: Literal["split"]
    # What tells this experiment from others: the same units fall differently under another. Without NUL, which
    # separates it from what it is hashed with.
    salt: Annotated[str, matches(r"[^\0]+", "a string of at least one character, none of them NUL")]
    arms: tuple[ArmToml, ...]
    shadows: tuple[ShadowToml, ...] = ()
    agreement: AgreementToml = field(default_factory=AgreementToml)
    output: str | None = None
    load: SplitLoadToml = field(default_factory=SplitLoadToml)

    def definition(self) -> SplitRoute:
        """Raises ValueError."""
        return SplitRoute(
            self.salt,
            tuple(entry.arm() for entry in self.arms),
            tuple(entry.shadow() for entry in self.shadows),
            self.agreement.agreement(),
            self.output,
            load_rules(self.load),
        )
