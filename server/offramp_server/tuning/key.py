"""What a decision depends on. When any of it changes, the model is tuned anew."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from offramp_server.machine.identity import DeviceIdentity
from offramp_server.model_spec import ModelSpec, TensorSpec

# Of the decision's own form, and of what is written beside it.
SCHEMA = 1
DISTRIBUTIONS = (
    "offramp",
    "torch",
    "torch-tensorrt",
    "tensorrt",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
)

DescribeDevice = Callable[[str], DeviceIdentity]


@dataclass(frozen=True, slots=True)
class TuningKey:
    """The facts, in words that can be read in the cache."""

    facts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:40]


def tuning_key(
    spec: ModelSpec, device: DeviceIdentity, threads: int, missing: Mapping[str, str], versions: Mapping[str, str]
) -> TuningKey:
    """`missing`: by engine that `auto` would try, what is not installed for it; one that was installed since may be the
    better one.

    The model's name and version are not among the facts: the same file is the same model.
    """
    facts = {
        "schema": SCHEMA,
        "model": spec.digest,
        "format": spec.format,
        "inputs": [_shape(tensor) for tensor in spec.inputs],
        "outputs": [_shape(tensor) for tensor in spec.outputs],
        "max_batch_size": spec.max_batch_size,
        "warmup": [list(spec.warmup.batch_sizes), spec.warmup.variable_dim],
        "engine": spec.engine.backend,
        "precision": spec.engine.precision,
        # Without an answer of model.toml, numbers of threads are compared as well.
        "threads": [threads, not (spec.engine.threads or spec.engine.instances)],
        "device": [device.device, device.name, device.driver],
        "missing": sorted(name for name, what in missing.items() if what),
        "versions": dict(versions),
    }
    return TuningKey(json.loads(json.dumps(facts)))


def library_versions() -> dict[str, str]:
    """Of those that are installed. Reads their metadata and imports none."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _shape(tensor: TensorSpec) -> list[Any]:
    return [tensor.name, tensor.source, tensor.datatype, list(tensor.dims), list(tensor.symbols), list(tensor.ranges)]
