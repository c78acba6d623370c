"""What the supervisor needs of an executor beyond computing batches, so that both kinds can stand behind it."""

from __future__ import annotations

from typing import Protocol

from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.batch import Executor
from offramp_server.workers.host import LoadReport, Placement


class ModelExecutor(Executor, Protocol):
    """An executor that models can be loaded into."""

    @property
    def alive(self) -> bool: ...

    @property
    def process_id(self) -> int | None:
        """None: it runs in this process."""
        ...

    async def start(self) -> None:
        """Return when it can load models. Raises LoadError if it does not come up."""
        ...

    async def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        """Load and warm up while other models go on being computed. Raises LoadError, also if the worker dies."""
        ...

    async def unload(self, handle: int) -> None: ...

    async def close(self) -> None:
        """Stop at once; batches in flight are not reported any more."""
        ...
