"""How a run is watched: a progress bar and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_WRITE_EVERY = 10
_VALIDATION = "validation_"


class Monitor:
    """A context manager around a run of `total` steps that begins with step `start`."""

    def __init__(self, name: str, start: int, total: int, *, progress: bool, tensorboard: Path | None) -> None:
        self._bar = tqdm(
            desc=name, initial=start, total=total, unit="step", mininterval=0.5, dynamic_ncols=True,
            disable=not progress,
        )  # fmt: skip
        self._validated: dict[str, float] = {}
        # Of a run that was killed, what was written after its last checkpoint is about to be written again.
        self._writer = None if tensorboard is None else _open_writer(tensorboard, start + 1)

    def step(self, step: int, epoch: str, learning_rate: float, figures: Mapping[str, float]) -> None:
        """`figures` of step `step` (counted from 1)."""
        shown = {name: f"{value:.3f}" for name, value in {**figures, **self._validated}.items()}
        self._bar.set_postfix({"epoch": epoch, **shown}, refresh=False)
        self._bar.update()
        if step % _WRITE_EVERY == 0:
            self._write("train", step, {"learning_rate": learning_rate, **figures})

    def epoch(self, step: int, figures: Mapping[str, float]) -> None:
        """`figures` of an epoch that ended with step `step`; those of training are known already."""
        validated = {name.removeprefix(_VALIDATION): figures[name] for name in figures if name.startswith(_VALIDATION)}
        self._write("validation", step, validated)
        self._validated = {"validation": validated["accuracy"]} if "accuracy" in validated else {}
        if self._writer is not None:
            self._writer.flush()

    def _write(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _open_writer(folder: Path, step: int) -> SummaryWriter:
    # Here, as it takes as long to import as torch does.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step)
