"""`kind = "single"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offramp_adapters.routes.single import SingleRoute

from offramp_server.repository.route_kinds.targets import TargetName, Version, target


@dataclass(frozen=True, slots=True)
class SingleToml:
    """The file as written."""

    kind: Literal["single"]
    model: TargetName
    version: Version = None

    def definition(self) -> SingleRoute:
        return SingleRoute(target(self.model, self.version))
