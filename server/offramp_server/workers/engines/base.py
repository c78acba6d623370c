"""What executes a model: the interface behind which every engine looks alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from open_inference.tensor import Tensor

from offramp_server.engine_report import EngineReport


class Engine(Protocol):
    """One loaded model on one device. Not thread-safe: one caller at a time."""

    @property
    def report(self) -> EngineReport: ...

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        """Run one batch.

        `inputs` come in the order of the model's spec, batch dimension included, and their `data` must not be kept
        or written to: it may be memory shared with another process that is reused after this call. The outputs come
        in the order of the spec and own their memory. Raises whatever the library raises for these inputs.

        `staying` has a bit for each output that only later batches of this process need: an engine may leave it on its
        device, as a tensor without `data` that is a `workers.kept.OnDevice`, and will be given it, or what its method
        returns, as an input.
        """
        ...

    def close(self) -> None:
        """Let go of the model's memory."""
        ...


class StagedEngine(Engine, Protocol):
    """An engine on a device of its own, which can be given the next batch while it computes one."""

    def begin(self, inputs: Sequence[Tensor], staying: int = 0) -> Any:
        """Send one batch on its way, without waiting for the device. Raises as `execute` does.

        The data of `inputs` stays as it is until `finish` returns.
        """
        ...

    def finish(self, begun: Any) -> list[Tensor]:
        """Wait for what `begin` returned, in the order in which it was begun, and answer as `execute` does."""
        ...
