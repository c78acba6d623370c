"""Loading a model into the engine that was chosen for it. Libraries are imported by the first model that needs them."""

from __future__ import annotations

from collections.abc import Sequence

from offramp_common.engine_names import AUTO, ENGINES

from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.machine.cores import usable_cores
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineKind, EngineRequest

PRECISIONS = ("fp32", "fp16", "bf16")
ASKED_FOR = "asked for by model.toml"
NOT_TUNED = "auto: the plain engine, nothing was measured"


def load_engine(
    spec: ModelSpec,
    device: str,
    threads: int,
    choice: EngineChoice | None = None,
    kinds: Sequence[EngineKind] | None = None,
) -> Engine:
    """Load `spec` for `device` (cpu, cuda:N) with that many intra-op threads (0: all cores), as `choice` says.

    Without a choice it is what `[engine]` names, or the plain engine of the format. Raises LoadError if the file cannot
    be loaded, or if what is asked for cannot run here: nothing is replaced by something else silently.
    """
    choice = choice or plain_choice(spec)
    kind = usable_kind(spec, device, choice.backend, engine_kinds() if kinds is None else kinds)
    request = EngineRequest(spec, device, choice.threads or threads or usable_cores(), choice)
    try:
        return kind.load(request)
    except ModuleNotFoundError as error:
        raise LoadError(f'model "{spec.name}": {error.name} is not installed; pip install "offramp[server]"') from error


def plain_choice(spec: ModelSpec) -> EngineChoice:
    """What `[engine]` names, or what runs the format as it is."""
    if spec.engine.backend != AUTO:
        return EngineChoice(spec.engine.backend, reason=ASKED_FOR)
    return EngineChoice(ENGINES[spec.format][0], reason=NOT_TUNED)


def usable_kind(spec: ModelSpec, device: str, backend: str, kinds: Sequence[EngineKind]) -> EngineKind:
    """The engine of that name. Raises LoadError where it cannot run this model here."""
    choices = ENGINES[spec.format]
    if backend not in choices:
        raise LoadError(
            f'model "{spec.name}": engine "{backend}" cannot run a .{spec.format} file; '
            f"one of {_listed((AUTO, *choices))} can"
        )
    if spec.engine.precision not in PRECISIONS:
        raise LoadError(
            f'model "{spec.name}": there is no precision "{spec.engine.precision}"; one of {_listed(PRECISIONS)}'
        )
    kind = next(kind for kind in kinds if kind.name == backend)
    problem = kind.missing(device) or kind.refusal(spec, device)
    if problem:
        raise LoadError(f'model "{spec.name}": {problem}')
    return kind


def _listed(choices: Sequence[str]) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)
