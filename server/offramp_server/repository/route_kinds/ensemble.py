"""`kind = "ensemble"`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from offramp_adapters.confidence.temperature import TEMPERATURES
from offramp_adapters.routes.combine import Stack
from offramp_adapters.routes.deciding import Scale
from offramp_adapters.routes.ensemble import Combine, EnsembleRoute, Member
from offramp_common.toml_schema import between

from offramp_server.repository.route_kinds.targets import TargetName, Version, target


@dataclass(frozen=True, slots=True)
class MemberToml:
    """`[[members]]`, and `[[fitted.members]]`, which takes its place."""

    model: TargetName
    version: Version = None
    # Only for "weighted_mean" and "vote"; None: 1.
    weight: Annotated[float, between(0)] | None = None
    temperature: Annotated[float, between(*TEMPERATURES)] = 1.0

    def member(self) -> Member:
        return Member(target(self.model, self.version), 1.0 if self.weight is None else self.weight, self.temperature)


@dataclass(frozen=True, slots=True)
class FittedToml:
    """`[fitted]`, which `offramp fit-ensemble` writes. `stack` is [members * classes][classes], `bias` [classes]."""

    members: tuple[MemberToml, ...]
    stack: tuple[tuple[float, ...], ...] | None = None
    bias: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class EnsembleToml:
    """The file as written."""

    kind: Literal["ensemble"]
    members: tuple[MemberToml, ...]
    combine: Combine = "mean"
    output: str | None = None
    scale: Scale | None = None
    quorum: Annotated[int, between(1)] | None = None
    margin: Annotated[float, between(0)] = 0.002
    fitted: FittedToml | None = None

    def definition(self) -> EnsembleRoute:
        """Raises ValueError."""
        self._check()
        members = tuple(entry.member() for entry in (self.fitted or self).members)
        return EnsembleRoute(members, self.combine, self.output, self.scale, self.quorum, self.margin, self._stack())

    def unfitted(self, combine: Combine) -> EnsembleRoute:
        """The route that numbers are to be fitted for; a stack is the mean until it has some. Raises ValueError."""
        said = replace(self, combine=combine, fitted=None)
        said._check()
        return replace(said, combine="mean" if combine == "stack" else combine).definition()

    @property
    def has_stack(self) -> bool:
        return self.fitted is not None and self.fitted.stack is not None

    def _check(self) -> None:
        if self.combine in ("mean", "stack") and any(member.weight is not None for member in self.members):
            raise ValueError(
                f'members.weight: combine = "{self.combine}" has no use for it; leave it out, or use "weighted_mean" '
                'or "vote"'
            )
        if self.fitted is not None and _names(self.fitted.members) != _names(self.members):
            raise ValueError(
                f"[fitted] is for members {', '.join(_names(self.fitted.members))}, and the route has "
                f"{', '.join(_names(self.members))}; run offramp fit-ensemble again, or take [fitted] out"
            )

    def _stack(self) -> Stack | None:
        if self.combine != "stack" or self.fitted is None or self.fitted.stack is None:
            return None
        widths = {len(row) for row in self.fitted.stack} | {len(self.fitted.bias)}
        if len(widths) != 1:
            raise ValueError("fitted.stack: expected rows as long as fitted.bias, one number for each class")
        return Stack(self.fitted.stack, self.fitted.bias)


def _names(members: tuple[MemberToml, ...]) -> list[str]:
    return [str(target(member.model, member.version)) for member in members]
