"""What there is to know of an engine before anything is loaded into it.

Nothing here imports a library that computes: the front end asks these questions, and a worker that needs one engine
must not pay for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine


class NotWorthTrying(LoadError):
    """A variant that changes nothing for this model."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A model that is to be built for, or loaded into, an engine."""

    spec: ModelSpec
    # cpu | cuda:N
    device: str
    # Intra-op threads, at least 1.
    threads: int
    choice: EngineChoice

    @property
    def artifacts(self) -> Path:
        """The folder of what is built ahead. Only for kinds that build. Raises LoadError where nothing was."""
        if self.choice.artifacts is None:
            raise LoadError(
                f'model "{self.spec.name}": {self.choice.backend} runs what is built of a .{self.spec.format} file '
                "beforehand; let the server load it, or `offramp tune` its repository"
            )
        return self.choice.artifacts

    def report(self, precision: str | None = None) -> EngineReport:
        """What an engine says of itself that does just this; `precision`: where it is not the one asked for."""
        choice = self.choice
        return EngineReport(
            backend=choice.backend,
            device=self.device,
            precision=precision or self.spec.engine.precision,
            threads=self.threads,
            reason=choice.reason,
            measured=choice.measured,
            variant=choice.variant,
            rejected=choice.rejected,
        )


class EngineKind(Protocol):
    """One engine that `[engine] backend` may name."""

    @property
    def name(self) -> str: ...

    def builds(self, spec: ModelSpec) -> bool:
        """Whether `load` needs what `build` writes. Building takes seconds to minutes, and is done once."""
        ...

    def missing(self, device: str) -> str:
        """What is not installed that it needs on this device, and how to install it; empty: nothing."""
        ...

    def refusal(self, spec: ModelSpec, device: str) -> str:
        """Why it cannot run this model, as a clause after `model "NAME": `, with what would be right; empty: it can."""
        ...

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        """What `auto` tries of it, the plain form ("") first if it is among them; empty: `auto` leaves it alone.

        A variant that turns out to change nothing for this model raises NotWorthTrying when it is built or loaded.
        """
        ...

    def build(self, request: EngineRequest) -> None:
        """Write what `load` needs into the folder `request.artifacts`, which exists and is empty. Raises LoadError."""
        ...

    def load(self, request: EngineRequest) -> Engine:
        """Raises LoadError."""
        ...
