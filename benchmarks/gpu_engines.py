"""The server's own engines on one device: what they answer and how long they take, for benchmarks/gpu.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import EngineSettings, ModelSpec, TensorSpec, WarmupSettings
from offramp_server.workers.engines.device_engine import DeviceEngine
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.parity import tolerance
from open_inference.tensor import Tensor
from torch import nn

from benchmarks.gpu_roofline import event_seconds
from benchmarks.runtimes.export_models import CLASSES, IMAGE, SEED, student, teacher

BATCHES = (1, 8, 32, 128)
PRECISIONS = ("fp32", "fp16", "bf16")
MODELS: Mapping[str, Callable[[], nn.Module]] = {"resnet18": teacher, "student": student}
REPEATS = 30
WARM_UP = 5

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """One engine at one batch size. Times are medians in seconds; None: not timed."""

    model: str
    backend: str
    precision: str
    batch: int
    # Largest difference from plain torch in fp32, relative to the largest output.
    error: float
    # What the server allows of an engine that it chooses by itself.
    tolerance: float
    # What the device computes, without copies from and to the host, by CUDA events.
    device_s: float | None = None
    # A whole call, from bytes to bytes.
    call_s: float | None = None
    # The same, when the next batch is begun before this one is finished.
    overlapped_s: float | None = None


def seeded(name: str) -> nn.Module:
    """Random weights, and statistics of batch norms that are not the identity."""
    torch.manual_seed(SEED)
    model = MODELS[name]()
    for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.running_mean = torch.randn(norm.num_features) * 0.1
        norm.running_var = torch.rand(norm.num_features) + 0.5
    return model.eval()


def exported(name: str, folder: Path) -> Path:
    path = folder / f"{name}.pt2"
    dynamic = {0: torch.export.Dim("batch", min=1, max=max(BATCHES))}
    program = torch.export.export(seeded(name), (torch.zeros(2, *IMAGE),), dynamic_shapes=(dynamic,), strict=False)
    torch.export.save(program, path)
    return path


def images(batch: int) -> Array:
    return np.random.default_rng(SEED).standard_normal((batch, *IMAGE), dtype=np.float32)


def plain_answers(path: Path, name: str, batch: int, device: str) -> Array:
    """Of the network itself, in fp32 and without TF32, by no engine of the server."""
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        answer: Array = seeded(name).to(device)(torch.from_numpy(images(batch)).to(device)).cpu().numpy()
    return answer


def spec_of(path: Path, name: str, precision: str, device: str, largest: int, backend: str = "auto") -> ModelSpec:
    return ModelSpec(
        name=name,
        version=1,
        path=path,
        format="pt2",
        max_batch_size=largest,
        inputs=(TensorSpec("input", "FP32", IMAGE),),
        outputs=(TensorSpec("output", "FP32", (CLASSES,)),),
        engine=EngineSettings(backend=backend, device=device, precision=precision),
        warmup=WarmupSettings(),
    )


def measure(
    path: Path, name: str, backend: str, precision: str, device: str, expected: Mapping[int, Array]
) -> list[Measured]:
    """One engine at all batch sizes. Raises LoadError where it cannot run."""
    spec = spec_of(path, name, precision, device, max(expected))
    threads = torch.get_num_threads()
    engine: Any = load_engine(spec, device, threads, EngineChoice(backend, reason="benchmarks/gpu.py"))
    try:
        found = []
        for batch, plain in expected.items():
            inputs = [Tensor("input", "FP32", (batch, *IMAGE), bytearray(images(batch).tobytes()))]
            [answer] = engine.execute(inputs)
            error = float(np.abs(answer.numpy() - plain).max() / np.abs(plain).max())
            times = _times(engine, inputs) if device != "cpu" else ()
            found.append(Measured(name, backend, precision, batch, error, tolerance(spec), *times))
        return found
    finally:
        engine.close()


def _times(engine: DeviceEngine, inputs: Sequence[Tensor]) -> tuple[float, float, float]:
    return device_seconds(engine, inputs), _median(lambda: engine.execute(inputs)), _overlapped(engine, inputs)


def device_seconds(engine: DeviceEngine, inputs: Sequence[Tensor]) -> float:
    """From event to event around the computation, with inputs that are on the device already."""
    accelerator, program = engine._accelerator, engine._program
    seconds = []
    with torch.inference_mode(), accelerator.on(accelerator.compute), engine._precision:
        # Made in here: compiled code is guarded by how its tensors were made.
        given = [torch.from_numpy(tensor.numpy().copy()).to(accelerator.device) for tensor in inputs]
        torch.cuda.synchronize()
        for turn in range(WARM_UP + REPEATS):
            taken = event_seconds(lambda: program.forward(given), accelerator.compute)
            if turn >= WARM_UP:
                seconds.append(taken)
    return statistics.median(seconds)


def _overlapped(engine: DeviceEngine, inputs: Sequence[Tensor]) -> float:
    """Seconds for one batch of a row of them."""
    for _ in range(WARM_UP):
        engine.execute(inputs)
    started = time.perf_counter()
    under_way = engine.begin(inputs)
    for _ in range(REPEATS - 1):
        following = engine.begin(inputs)
        engine.finish(under_way)
        under_way = following
    engine.finish(under_way)
    return (time.perf_counter() - started) / REPEATS


def _median(call: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        call()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
