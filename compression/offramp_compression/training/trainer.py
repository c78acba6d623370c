"""Train a network, from the beginning or from where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp_common.errors import ConfigurationError
from torch import nn

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.training import checkpoint as checkpoint_file
from offramp_compression.training import interrupts, placement
from offramp_compression.training.history import Epoch, History
from offramp_compression.training.identity import identity
from offramp_compression.training.monitor import Monitor
from offramp_compression.training.objective import Objective
from offramp_compression.training.placement import Placement
from offramp_compression.training.run import Run
from offramp_compression.training.settings import TrainingSettings


def fit(
    module: nn.Module,
    train: Batches,
    settings: TrainingSettings,
    objective: Objective,
    *,
    validate: Dataset | None = None,
    checkpoint: Path | None = None,
    origin: str = "",
    tensorboard: Path | None = None,
    progress: bool = False,
    name: str = "train",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train those parameters of `module` that require a gradient, in place, and leave it in evaluation mode.

    If `checkpoint` is there already, the run goes on from it: on a CPU with one thread it ends with the very bits of a
    run that was never stopped. Ctrl-C writes it before KeyboardInterrupt is raised. The checkpoint of a finished run
    stays; fitting again then only loads the weights. `origin` is the digest of what the run starts from, so that a
    checkpoint cannot be taken for that of a run from elsewhere.

    `tensorboard` is a folder for event files; `progress` shows a bar called `name` on stderr; `on_epoch` hears of every
    epoch. torch's global random state and number of threads are left as they were.

    Raises CheckpointError for a checkpoint of another run or one that cannot be written, ConfigurationError for a
    device or precision that is missing and for patience without `validate`, TrainingError if the loss stops being
    finite or all parameters are frozen.
    """
    if settings.patience and validate is None:
        raise ConfigurationError("patience needs a validation set to watch; hold some data out, or set patience to 0")
    if checkpoint is not None:
        checkpoint_file.require_writable(checkpoint)
    with _running(module, train, settings, objective, validate) as run:
        store = _Store(checkpoint, identity(module, train, settings, objective, validate, origin))
        store.restore(run)
        with Monitor(name, run.step, run.total, progress=progress, tensorboard=tensorboard) as monitor:
            _drive(run, monitor, store, on_epoch)
        return run.finish()


@contextmanager
def _running(
    module: nn.Module, train: Batches, settings: TrainingSettings, objective: Objective, validate: Dataset | None
) -> Iterator[Run]:
    place = Placement.of(settings, module)
    extras = nn.ModuleDict(dict(objective.modules()))
    with (
        placement.threads(settings.threads),
        placement.seeded(settings.seed, place.device),
        place.module(module),
        place.module(extras),
        objective.prepare(module),
    ):
        yield Run(module, train, settings, objective, extras, place, validate)


def _drive(run: Run, monitor: Monitor, store: _Store, on_epoch: Callable[[Epoch], None] | None) -> None:
    with interrupts.deferred() as interrupted:
        while not run.done:
            run.train_step()
            monitor.step(run.step, run.progress, run.learning_rate, run.means.means)
            if run.at_end_of_epoch:
                epoch = run.end_epoch()
                monitor.epoch(run.step, epoch.figures)
                store.save(run)
                if on_epoch is not None:
                    on_epoch(epoch)
            elif interrupted.wanted or run.step % run.settings.checkpoint_every == 0:
                store.save(run)
            if interrupted.wanted:
                raise KeyboardInterrupt


class _Store:
    """A run's checkpoint, if it is to have one."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = identity

    def save(self, run: Run) -> None:
        if self._path is not None:
            checkpoint_file.write(self._path, self._identity, run.state())

    def restore(self, run: Run) -> None:
        if self._path is not None and self._path.exists():
            run.load(checkpoint_file.read(self._path, self._identity))
