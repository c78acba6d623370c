"""What metadata and configuration say of a loaded model or a route."""

from __future__ import annotations

import json
from collections.abc import Sequence

from offramp_server.endpoints import EndpointInfo
from offramp_server.engine_report import EngineReport
from offramp_server.model_spec import ModelSpec
from offramp_server.routing.binding import BoundModel, BoundRoute
from offramp_server.workers.backend import LoadedModel

# What clients may send besides the declared inputs, for those that ask the configuration.
_ENDS = ("preprocess", "tensor_inputs", "zero_shot")
PLATFORMS = {"pt2": "pytorch_exported_program", "onnx": "onnx_onnxv1"}


def model(loaded: LoadedModel, versions: Sequence[str]) -> EndpointInfo:
    spec, engine = loaded.spec, loaded.engine
    return EndpointInfo(
        name=spec.name,
        versions=tuple(versions),
        platform=PLATFORMS[spec.format],
        backend=engine.backend,
        max_batch_size=spec.max_batch_size,
        inputs=spec.public_inputs,
        outputs=spec.public_outputs,
        device=engine.device,
        instances=spec.engine.instances or len(loaded.group.actives),
        max_queue_items=spec.batching.max_queue_items,
        default_timeout=spec.batching.default_timeout,
        model_filename=spec.path.name,
        parameters={
            **spec.metadata,
            **_ends(spec),
            **_engine(engine),
            "sha256": spec.digest,
            "size_bytes": str(spec.size_bytes),
        },
    )


def route(bound: BoundRoute, version: str) -> EndpointInfo:
    """A route takes what one of its targets does, and answers as one of them does."""
    face = bound.strategy.face
    takes, gives = _target(bound.below[face.takes], version), _target(bound.below[face.gives], version)
    outputs = {output.name: output for output in gives.outputs}
    return EndpointInfo(
        name=bound.name,
        versions=(version,),
        platform=f"offramp_route_{bound.strategy.kind}",
        backend="offramp",
        max_batch_size=face.max_batch_size,
        inputs=takes.inputs,
        outputs=tuple(outputs[name] for name in face.outputs),
        device=takes.device,
        instances=takes.instances,
        max_queue_items=takes.max_queue_items,
        default_timeout=takes.default_timeout,
        parameters={key: takes.parameters[key] for key in _ENDS if key in takes.parameters},
        composing=tuple(dict.fromkeys(target.name for target in bound.strategy.targets)),
    )


def _target(target: BoundModel | BoundRoute, version: str) -> EndpointInfo:
    if isinstance(target, BoundRoute):
        return route(target, version)
    assert target.model is not None
    return model(target.model, ())


def _engine(engine: EngineReport) -> dict[str, str]:
    """What runs the model and why, with what each candidate needed for a full batch or what was wrong with it."""
    return {
        "engine": engine.backend,
        "engine.variant": engine.variant,
        "engine.reason": engine.reason,
        "engine.threads": str(engine.threads),
        "precision": engine.precision,
        **{f"engine.measured.{label}": f"{seconds * 1e3:.3g} ms" for label, seconds in engine.measured.items()},
        **{f"engine.rejected.{label}": reason for label, reason in engine.rejected.items()},
    }


def _ends(spec: ModelSpec) -> dict[str, str]:
    found = {}
    if spec.preprocess is not None:
        found["preprocess"] = spec.preprocess.kind
        found["tensor_inputs"] = ", ".join(map(str, spec.inputs))
    if spec.zero_shot is not None:
        found["zero_shot"] = json.dumps(spec.zero_shot.templates, ensure_ascii=False)
    return found
