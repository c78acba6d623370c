"""A kind of route with settings and nothing else, over models that are only names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.single import Single
from offramp_adapters.routes.strategy import Endpoint, Face, RouteInvalid
from offramp_server.errors import NotFound
from offramp_server.repository.route_toml import RouteFile
from offramp_server.routing.table import RouteTable
from offramp_server.store.epochs import Epoch


@dataclass(frozen=True)
class Dials:
    """Settings from 0 to 1, each of which may be anything as long as all together are no more than `most`."""

    values: Mapping[str, float] = field(default_factory=lambda: {"left": 0.25, "right": 0.5})
    most: float = 2.0
    model: str = "m"
    kind: ClassVar[str] = "dials"

    @property
    def targets(self) -> tuple[Target, ...]:
        return (Target(self.model),)

    def settings(self) -> Mapping[str, float]:
        return self.values

    def with_settings(self, changes: Mapping[str, float]) -> Dials:
        for key, value in changes.items():
            if key not in self.values:
                raise RouteInvalid(f"there is no {key}")
            if not 0 <= value <= 1:
                raise RouteInvalid(f"{key}: expected a number from 0 to 1, got {value:g}")
        return replace(self, values={**self.values, **changes})

    def bind(self, endpoints: Mapping[Target, Endpoint]) -> Single:
        if sum(self.values.values()) > self.most:
            raise RouteInvalid(f"all together may be {self.most:g}")
        [target] = self.targets
        return Single(target, Face(target, target, (), endpoints[target].max_batch_size))


@dataclass
class Models:
    """What a table asks of the registry."""

    names: set[str] = field(default_factory=lambda: {"m"})
    on_change: Any = None
    before_switch: Any = None

    def get(self, name: str, version: str = "") -> Any:
        if name not in self.names:
            raise NotFound(f'there is no model "{name}"')
        spec = SimpleNamespace(
            name=name, version=7, digest="d", public_inputs=(), public_outputs=(), max_batch_size=8, metadata={}
        )
        engine = SimpleNamespace(backend="b", device="cpu", precision="fp32")
        return SimpleNamespace(spec=spec, report=SimpleNamespace(engine=engine), group=SimpleNamespace(device="cpu"))

    def change(self, *names: str) -> None:
        self.names = set(names)
        self.on_change()


def table_of(models: Models) -> RouteTable:
    return RouteTable(models, lambda route, subject: Epoch(1, route, 1, "f", subject, 0.0))  # type: ignore[arg-type]


def file_of(definition: Dials, digest: str = "first") -> RouteFile:
    return RouteFile(definition, digest)
