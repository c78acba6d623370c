"""What a device can do, measured, and what a network asks of it (Williams, Waterman & Patterson, Roofline, 2009)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.runtimes.export_models import CLASSES, IMAGE

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Large enough that starting a kernel does not count, small enough for any GPU of today.
_COPY_BYTES = 1 << 29
_MATRIX = 8192
_REPEATS = 10


@dataclass(frozen=True)
class Ceilings:
    """Of one device."""

    # Read and written, by copying from one place of its memory to another.
    bytes_per_s: float
    # Of a product of two square matrices, by precision; fp32 without TF32.
    flops_per_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What one network cannot do without."""

    # Multiplications and additions for one item.
    flops: float
    parameters: int


def measured_ceilings(device: torch.device) -> Ceilings:
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source))
    return Ceilings(2 * _COPY_BYTES / seconds, {name: _matmul(dtype, device) for name, dtype in _TYPES.items()})


def cost_of(model: nn.Module) -> Cost:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *IMAGE))
    return Cost(float(counter.get_total_flops()), sum(each.numel() for each in model.parameters()))


def least_seconds(cost: Cost, ceilings: Ceilings, precision: str, batch: int) -> float:
    """No engine can be faster: all operations at the ceiling, or weights, inputs and outputs moved once.

    Weights and activations are held in fp32 (lower precisions are autocast), and hidden activations count as if they
    never left the chip, so that it is a bound and not an estimate.
    """
    item_bytes = 4 * (torch.Size(IMAGE).numel() + CLASSES)
    moved = 4 * cost.parameters + batch * item_bytes
    return max(batch * cost.flops / ceilings.flops_per_s[precision], moved / ceilings.bytes_per_s)


def _matmul(dtype: torch.dtype, device: torch.device) -> float:
    first, second = (torch.randn(_MATRIX, _MATRIX, device=device).to(dtype) for _ in range(2))
    return 2 * _MATRIX**3 / _best(lambda: first @ second)


def _best(work: Callable[[], object]) -> float:
    return min(event_seconds(work, torch.cuda.current_stream()) for _ in range(_REPEATS))


def event_seconds(work: Callable[[], object], stream: Any) -> float:
    """What the device takes for what `work` sends to `stream`, by CUDA events."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record(stream)
    work()
    after.record(stream)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3
