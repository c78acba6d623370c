"""Models, devices and measurements for tests of tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from offramp_server.engine_choice import EngineChoice
from offramp_server.machine.identity import DeviceIdentity
from offramp_server.model_spec import EngineSettings, ModelSpec, TensorSpec
from offramp_server.tuning.decision import Decision, Measurement
from offramp_server.tuning.key import TuningKey, tuning_key

CPU = DeviceIdentity("cpu", "a processor", "")
VERSIONS = {"torch": "2.13.0", "python": "3.11"}


def pt2_spec(backend: str = "auto", **fields: object) -> ModelSpec:
    inputs, outputs = (TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (2,)),)
    engine = EngineSettings(backend=backend)
    spec = ModelSpec("digits", 1, Path("model.pt2"), "pt2", 16, inputs, outputs, engine=engine, digest="d" * 64)
    return replace(spec, **fields)  # type: ignore[arg-type]


def key_of(spec: ModelSpec, device: DeviceIdentity = CPU, threads: int = 2) -> TuningKey:
    return tuning_key(spec, device, threads, {}, VERSIONS)


def timed(first: float, full: float | None = None, difference: float = 0.0) -> Measurement:
    """Milliseconds."""
    return Measurement(first / 1e3, (first if full is None else full) / 1e3, difference)


def decision(artifacts: Path | None = None, **fields: object) -> Decision:
    choice = EngineChoice(
        "aot-inductor", "frozen", 2, artifacts, "auto: it was measured", {"torch-eager": 0.02}, {"openvino": "missing"}
    )
    made = Decision(choice, {"torch-eager": timed(2, 20)}, {1: timed(3, 30), 2: timed(2, 20)})
    return replace(made, **fields)  # type: ignore[arg-type]
