"""How a model or a route looks to a client: plain data. To a client both look alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from offramp_server.model_spec import TensorSpec


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """What metadata, configuration and RouteService say about one name."""

    name: str
    # Every version that can answer, in ascending order; a route has "1".
    versions: tuple[str, ...]
    # pytorch_exported_program | onnx_onnxv1 | offramp_route_single
    platform: str
    # The engine that was really chosen, e.g. "onnxruntime"; "offramp" for a route.
    backend: str
    max_batch_size: int
    # Without the batch dimension.
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str = "cpu"
    instances: int = 1
    max_queue_items: int = 0
    default_timeout: float = 0.0
    model_filename: str = ""
    # Free text pairs shown in ModelConfig.parameters: engine, precision, digest, provenance.
    parameters: Mapping[str, str] = field(default_factory=dict)
    # Names of the models that a route runs, in order; empty for a model.
    composing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One row of the repository index. `state` is Triton's: READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A model or route that a route runs."""

    name: str
    # Pinned; empty: the latest.
    version: str = ""
    # The version that runs now; empty for a route, and for what cannot answer.
    resolved: str = ""
    # member | stage | arm | shadow; empty for the only one.
    role: str = ""
    # What the route calls it.
    label: str = ""


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """One route of the repository, whether it can answer or not."""

    name: str
    # single | ensemble | early_exit | split
    kind: str
    targets: tuple[RouteTarget, ...]
    ready: bool
    reason: str = ""
    # Stands for the file and the settings as they are.
    etag: str = ""
    # What can be changed live, and of that what the file says otherwise.
    settings: Mapping[str, float] = field(default_factory=dict)
    file_settings: Mapping[str, float] = field(default_factory=dict)
    # Of the last live change, in seconds since 1970; None: never changed.
    updated_at: float | None = None
    updated_by: str = ""
    epoch: int = 0
    # idle | normal | busy | overloaded
    level: str = "normal"
