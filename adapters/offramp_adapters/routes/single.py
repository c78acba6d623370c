"""A route over one model: a name that stays while the model behind it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from offramp_adapters.routes.strategy import Answer, Decision, ModelRef, Parameters, RouteRefused, Run

ROUTE_PARAMETER = "offramp_route"


@dataclass(frozen=True, slots=True)
class Single:
    """Every request runs the one model."""

    model: ModelRef
    kind: ClassVar[str] = "single"

    @property
    def models(self) -> tuple[ModelRef, ...]:
        return (self.model,)

    def begin(self, parameters: Parameters) -> Decision:
        wanted = parameters.get(ROUTE_PARAMETER, "")
        if wanted not in ("", self.kind, f"model:{self.model.name}"):
            raise RouteRefused(
                f'parameter "{ROUTE_PARAMETER}": expected "single" or "model:{self.model.name}", got "{wanted}"'
            )
        # The only model is its own reference: it never disagrees with it, so any bound is kept.
        return Run(self.model)

    def resume(self, run: Run, answer: Answer) -> Decision:
        return answer
