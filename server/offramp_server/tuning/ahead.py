"""`offramp tune`: what servers would find out at their first start, found out before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp_server.errors import ConfigurationError, LoadError
from offramp_server.machine.plan import Topology
from offramp_server.model_spec import ModelSpec
from offramp_server.repository.layout import folder_names, is_route
from offramp_server.repository.reader import read_model
from offramp_server.tuning.choosing import full_batch
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial import Job
from offramp_server.workers.devices import Devices
from offramp_server.workers.placing import Placing


@dataclass(frozen=True, slots=True)
class Wanted:
    # Seconds for each model; None: as many as it needs.
    budget: float | None = None
    # Whatever is remembered.
    again: bool = False


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of one version of one model."""

    spec: ModelSpec
    device: str
    # None: `problem` says why.
    decision: Decision | None
    problem: str = ""

    @property
    def full_batch(self) -> int:
        """Items of the batch that was timed beside a single one."""
        return full_batch(self.spec)


def model_names(repository: Path) -> list[str]:
    return [name for name in folder_names(repository) if not is_route(repository / name)]


def read_models(repository: Path, names: Sequence[str]) -> list[ModelSpec]:
    """Every version that would be served. Raises NotFound, ConfigurationError or LoadError."""
    return [spec for name in names for spec in read_model(repository, name)]


def read_what_can_be(repository: Path, names: Sequence[str]) -> tuple[list[ModelSpec], list[str]]:
    """The same of the models that can be read, and what is wrong with the others. Raises NotFound."""
    specs: list[ModelSpec] = []
    problems = []
    for name in names:
        try:
            specs += read_model(repository, name)
        except (ConfigurationError, LoadError) as error:
            problems.append(str(error))
    return specs, problems


async def tune_ahead(
    specs: Sequence[ModelSpec], engines: Engines, topology: Topology, wanted: Wanted
) -> AsyncIterator[Tuned]:
    """One after the other: what is timed must not have to share the machine."""
    devices = Devices()
    for spec in specs:
        device = await devices.of(spec)
        job = Job(spec, device, Placing(device, topology).threads_by_itself(spec.engine))
        try:
            decision = await engines.ahead(job, wanted.budget, wanted.again)
        except LoadError as error:
            yield Tuned(spec, device, None, str(error))
            continue
        yield Tuned(spec, device, decision)
        # No worker runs it here, and a cache that is too large may lose it again.
        await engines.release(decision)
