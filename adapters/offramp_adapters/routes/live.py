"""What of a route can be changed while it serves: numbers under flat keys.

early_exit: "threshold.<stage>" for every exit, "audit_rate"
ensemble:   "weight.<member>", "temperature.<member>"
split:      "weight.<arm>", "share.<shadow>"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from offramp_adapters.routes.strategy import Definition


@runtime_checkable
class Live(Protocol):
    """A definition with settings. Nothing of it changes in place: other settings are another definition."""

    def settings(self) -> Mapping[str, float]:
        """Every setting and its value now."""
        ...

    def with_settings(self, changes: Mapping[str, float]) -> Definition:
        """The same route with these changed. Raises RouteInvalid, naming the key, for one that the route does not have
        and for a value that it cannot take; then nothing has changed."""
        ...
