"""What a trial does with a candidate, in the trial's own process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_inference.tensor import Tensor

from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.tuning.choosing import full_batch
from offramp_server.tuning.disk_space import is_disk_full
from offramp_server.workers.control import Message, load_request_from_wire
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineKind, EngineRequest
from offramp_server.workers.engines.kinds.torch_compile import lacking_compiler
from offramp_server.workers.engines.load import load_engine, usable_kind
from offramp_server.workers.engines.parity import compare
from offramp_server.workers.engines.warmup import sample_inputs, telling_inputs, warm_up

# One timing: at least this long, and at least so many runs.
TIMING_SECONDS = 0.04
TIMING_RUNS = 3
# Libraries explain themselves at length.
MAX_ERROR_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class _Loaded:
    engine: Engine
    spec: ModelSpec


class Steps:
    """The candidates that are loaded here, by number."""

    def __init__(self, kinds: Sequence[EngineKind] | None = None) -> None:
        self._kinds = engine_kinds() if kinds is None else kinds
        self._loaded: dict[int, _Loaded] = {}

    def carry_out(self, message: Message) -> Message:
        """The answer, with "error" for whatever goes wrong, "disk_full" if it was for want of space, and "passing" if
        it was for want of a compiler."""
        try:
            step = {
                "build": self._build,
                "load": self._load,
                "write_answers": self._write_answers,
                "compare_answers": self._compare_answers,
                "time": self._time,
                "unload": self._unload,
            }[message["do"]]
            return step(message)
        except LoadError as error:
            return _failure(str(error), error)
        except Exception as error:
            return _failure(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, error)

    def _build(self, message: Message) -> Message:
        _, spec, placement = load_request_from_wire(message)
        choice = _chosen(placement.choice)
        kind = usable_kind(spec, placement.device, choice.backend, self._kinds)
        try:
            kind.build(EngineRequest(spec, placement.device, choice.threads or placement.threads, choice))
        except LoadError as error:
            # It is part of no key, since nothing that is loaded needs it.
            lacks = lacking_compiler(kind.name)
            return _failure(str(error), error) | {"passing": bool(lacks) and lacks in str(error)}
        return {}

    def _load(self, message: Message) -> Message:
        number, spec, placement = load_request_from_wire(message)
        engine = load_engine(spec, placement.device, placement.threads, placement.choice, self._kinds)
        self._loaded[number] = _Loaded(engine, spec)
        warm_up(engine, spec)
        return {}

    def _unload(self, message: Message) -> Message:
        loaded = self._loaded.pop(message["handle"], None)
        if loaded is not None:
            loaded.engine.close()
        return {}

    def _write_answers(self, message: Message) -> Message:
        """And the inputs that they are the answers to."""
        loaded = self._loaded[message["handle"]]
        for items in _sizes(loaded.spec):
            inputs, answers = _answered(loaded, items)
            write_tensors(Path(message["folder"]), f"{items}-inputs", inputs)
            write_tensors(Path(message["folder"]), f"{items}-answers", answers)
        return {}

    def _compare_answers(self, message: Message) -> Message:
        loaded, folder = self._loaded[message["handle"]], Path(message["folder"])
        differences = (
            compare(
                loaded.engine.execute(read_tensors(folder, f"{items}-inputs")),
                read_tensors(folder, f"{items}-answers"),
            )
            for items in _sizes(loaded.spec)
        )
        return {"difference": max(differences)}

    def _time(self, message: Message) -> Message:
        loaded = self._loaded[message["handle"]]
        inputs = sample_inputs(loaded.spec, message["items"])
        runs: list[float] = []
        until = time.perf_counter() + TIMING_SECONDS
        while len(runs) < TIMING_RUNS or time.perf_counter() < until:
            started = time.perf_counter()
            loaded.engine.execute(inputs)
            runs.append(time.perf_counter() - started)
        # Other load only ever adds.
        return {"seconds": min(runs)}


def _failure(words: str, error: Exception) -> Message:
    return {"error": words[:MAX_ERROR_CHARACTERS], "disk_full": is_disk_full(error)}


def _answered(loaded: _Loaded, items: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs, and what the plain engine makes of them."""
    telling = telling_inputs(loaded.spec, items)
    try:
        return telling, loaded.engine.execute(telling)
    except Exception:
        # Not every model bears them; it has borne the others when it was warmed up.
        plain = sample_inputs(loaded.spec, items)
        return plain, loaded.engine.execute(plain)


def write_tensors(folder: Path, name: str, tensors: Sequence[Tensor]) -> None:
    described = []
    for at, tensor in enumerate(tensors):
        (folder / f"{name}-{at}").write_bytes(tensor.data)
        described.append({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape})
    (folder / f"{name}.json").write_text(json.dumps(described), encoding="utf-8")


def read_tensors(folder: Path, name: str) -> list[Tensor]:
    described: list[Mapping[str, Any]] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return [
        Tensor(each["name"], each["datatype"], tuple(each["shape"]), (folder / f"{name}-{at}").read_bytes())
        for at, each in enumerate(described)
    ]


def _sizes(spec: ModelSpec) -> list[int]:
    return sorted({1, full_batch(spec)})


def _chosen(choice: EngineChoice | None) -> EngineChoice:
    assert choice is not None
    return choice
