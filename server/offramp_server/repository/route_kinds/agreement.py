"""`[agreement]` of a route: what it means that two answers agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from offramp_adapters.confidence.agreement import Agreement, AgreementKind
from offramp_common.toml_schema import between


@dataclass(frozen=True, slots=True)
class AgreementToml:
    """The table as written."""

    kind: AgreementKind = "class"
    # Only of "top_k".
    k: Annotated[int, between(1)] | None = None
    # Only of "tolerance" and "cosine".
    tolerance: Annotated[float, between(0)] | None = None

    def agreement(self) -> Agreement:
        """Raises RouteInvalid."""
        return Agreement(self.kind, self.k, self.tolerance)
