"""Engines that run out of memory, and engines that stage their work, for tests of those who call them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from offramp_server.engine_report import EngineReport
from offramp_server.workers.engines.on_device import DeviceTensor, as_torch
from open_inference.tensor import Tensor

REPORT = EngineReport("double", "cuda:0", "fp32", 1, "the test said so")


class Doubling:
    """Doubles its first input, `room` rows at a time. Notes how many rows it was asked for."""

    report = REPORT

    def __init__(self, room: int = 1 << 30, error: Exception | None = None) -> None:
        self.room = room
        self.asked: list[int] = []
        self._error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        rows = inputs[0].shape[0]
        self.asked.append(rows)
        if rows > self.room:
            raise self._error
        if isinstance(inputs[0], DeviceTensor):
            there = as_torch(inputs[0], copy=False) * 2
            return [DeviceTensor("y", "FP32", tuple(there.shape), b"", there)]
        return [Tensor.from_numpy("y", inputs[0].numpy() * 2)]

    def close(self) -> None:
        """There is nothing to let go of."""


class Staging(Doubling):
    """The same, begun and finished apart. Notes the order of all calls by the first value of each batch."""

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__(room)
        self.calls: list[str] = []
        self.closed = False

    def begin(self, inputs: Sequence[Tensor], staying: int = 0) -> tuple[float, list[Tensor]]:
        first = _first(inputs)
        self.calls.append(f"begin {first:g}")
        if first < 0:
            raise ValueError("no negative values")
        return first, self.execute(inputs, staying)

    def finish(self, begun: tuple[float, list[Tensor]]) -> list[Tensor]:
        first, outputs = begun
        assert not self.closed
        self.calls.append(f"finish {first:g}")
        if first >= 1000:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return outputs

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        outputs = super().execute(inputs, staying)
        if not self.calls or not self.calls[-1].startswith("begin"):
            self.calls.append(f"execute {_first(inputs):g} ({inputs[0].shape[0]} rows)")
        return outputs

    def close(self) -> None:
        self.closed = True


def rows(values: Sequence[float]) -> list[Tensor]:
    """One input with one number in each row."""
    return [Tensor.from_numpy("x", np.asarray(values, np.float32).reshape(-1, 1))]


def _first(inputs: Sequence[Tensor]) -> float:
    return float(inputs[0].numpy().reshape(-1)[0])
