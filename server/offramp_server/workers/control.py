"""Control messages between the front end and a worker: one JSON object a line over a socket pair.

Neither side unpickles what the other sends: a worker runs other people's models.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.model_spec import BatchingSettings, EngineSettings, ModelSpec, TensorSpec, WarmupSettings
from offramp_server.workers.host import LoadReport, Placement

Message = dict[str, Any]


class ControlChannel:
    """The worker's blocking end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def messages(self) -> Iterator[Message]:
        """Until the other side closes."""
        with self._connection.makefile("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._connection.sendall(encode(message))


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def load_request_to_wire(handle: int, spec: ModelSpec, placement: Placement) -> Message:
    # What comes before and after the network is the front end's.
    network = replace(spec, preprocess=None, zero_shot=None)
    return {
        "do": "load",
        "handle": handle,
        "spec": asdict(network) | {"path": str(spec.path), "metadata": dict(spec.metadata)},
        "placement": asdict(placement) | {"choice": _choice_to_wire(placement.choice)},
    }


def load_request_from_wire(message: Mapping[str, Any]) -> tuple[int, ModelSpec, Placement]:
    spec = dict(message["spec"])
    spec["path"] = Path(spec["path"])
    spec["inputs"] = tuple(map(_tensor_spec, spec["inputs"]))
    spec["outputs"] = tuple(map(_tensor_spec, spec["outputs"]))
    spec["engine"] = EngineSettings(**spec["engine"])
    spec["batching"] = BatchingSettings(**spec["batching"])
    warmup = spec["warmup"]
    spec["warmup"] = WarmupSettings(**(warmup | {"batch_sizes": tuple(warmup["batch_sizes"])}))
    return int(message["handle"]), ModelSpec(**spec), _placement(message["placement"])


def load_report_to_wire(report: LoadReport) -> Message:
    engine = asdict(report.engine)
    return {"engine": engine, "seconds_by_items": list(report.seconds_by_items.items())}


def load_report_from_wire(message: Mapping[str, Any]) -> LoadReport:
    seconds = {int(items): float(value) for items, value in message["seconds_by_items"]}
    return LoadReport(EngineReport(**message["engine"]), seconds)


def _choice_to_wire(choice: EngineChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return asdict(choice) | {"artifacts": None if choice.artifacts is None else str(choice.artifacts)}


def _placement(fields: Mapping[str, Any]) -> Placement:
    choice = fields["choice"]
    if choice is not None:
        artifacts = choice["artifacts"]
        choice = EngineChoice(**(choice | {"artifacts": None if artifacts is None else Path(artifacts)}))
    return Placement(**(dict(fields) | {"choice": choice}))


def _tensor_spec(fields: Mapping[str, Any]) -> TensorSpec:
    ranges = tuple(None if bound is None else (bound[0], bound[1]) for bound in fields["ranges"])
    sequences = {key: tuple(fields[key]) for key in ("dims", "symbols", "labels")}
    return TensorSpec(**(dict(fields) | sequences | {"ranges": ranges}))
