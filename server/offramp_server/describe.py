"""What metadata and configuration say of a loaded model or a route."""

from __future__ import annotations

import json
from collections.abc import Sequence

from offramp_adapters.routes.strategy import Strategy

from offramp_server.endpoints import EndpointInfo
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.backend import LoadedModel

PLATFORMS = {"pt2": "pytorch_exported_program", "onnx": "onnx_onnxv1"}


def model(loaded: LoadedModel, versions: Sequence[str]) -> EndpointInfo:
    spec, engine = loaded.spec, loaded.report.engine
    return EndpointInfo(
        name=spec.name,
        versions=tuple(versions),
        platform=PLATFORMS[spec.format],
        backend=engine.backend,
        max_batch_size=spec.max_batch_size,
        inputs=spec.public_inputs,
        outputs=spec.public_outputs,
        device=engine.device,
        instances=spec.engine.instances,
        max_queue_items=spec.batching.max_queue_items,
        default_timeout=spec.batching.default_timeout,
        model_filename=spec.path.name,
        parameters={
            **spec.metadata,
            **_ends(spec),
            "engine": engine.backend,
            "engine_reason": engine.reason,
            "precision": engine.precision,
            "threads": str(engine.threads),
            "sha256": spec.digest,
            "size_bytes": str(spec.size_bytes),
        },
    )


def route(name: str, strategy: Strategy, first: LoadedModel, version: str) -> EndpointInfo:
    """A route takes and answers what its first model does."""
    spec = first.spec
    return EndpointInfo(
        name=name,
        versions=(version,),
        platform=f"offramp_route_{strategy.kind}",
        backend="offramp",
        max_batch_size=spec.max_batch_size,
        inputs=spec.public_inputs,
        outputs=spec.public_outputs,
        device=first.report.engine.device,
        instances=spec.engine.instances,
        max_queue_items=spec.batching.max_queue_items,
        default_timeout=spec.batching.default_timeout,
        parameters=_ends(spec),
        composing=tuple(model.name for model in strategy.models),
    )


def _ends(spec: ModelSpec) -> dict[str, str]:
    """What clients may send besides the declared inputs, for those that ask the configuration."""
    found = {}
    if spec.preprocess is not None:
        found["preprocess"] = spec.preprocess.kind
        found["tensor_inputs"] = ", ".join(map(str, spec.inputs))
    if spec.zero_shot is not None:
        found["zero_shot"] = json.dumps(spec.zero_shot.templates, ensure_ascii=False)
    return found
