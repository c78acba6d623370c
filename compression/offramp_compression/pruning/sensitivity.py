"""How well a network answers with fewer and fewer channels of one group."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.predict import predict
from offramp_compression.pruning.channels import Channels, kept
from offramp_compression.pruning.importance import Ranking, least
from offramp_compression.pruning.slicing import shrink

_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, slots=True)
class Point:
    """``stay`` units of a group were left; ``accuracy`` and ``loss`` (cross-entropy, nats) are without any recovery."""

    stay: int
    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True)
class Scan:
    """``curves``: group name -> points, from all units down.

    ``network`` is the digest of what was scanned, ``importance`` what its units were ranked by.
    """

    network: str
    importance: str
    curves: Mapping[str, tuple[Point, ...]]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Scan:
        """Raises ModelError for a file that is not a scan."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            curves = {name: tuple(Point(**point) for point in points) for name, points in found["curves"].items()}
            return Scan(found["network"], found["importance"], curves)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is not a sensitivity scan of `offramp prune`: {error}") from error


def scan(
    module: nn.Module,
    channels: Channels,
    ranking: Ranking,
    held_out: Dataset,
    *,
    network: str = "",
    importance: str = "",
    ratios: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    settle: Dataset | None = None,
    progress: Callable[[str, Point], None] = lambda name, point: None,
) -> Scan:
    """Take the least important units of one group at a time, at each of ``ratios``, and see what is left.

    With ``settle``, batch normalisations first learn their statistics anew from these examples: the accuracies then say
    more of what a network is worth after fine-tuning (Li et al., EagleEye, 2020). ``progress`` hears of every point.
    """
    whole = _measured(module, held_out, 0)
    curves = {}
    for group in channels.groups:
        points = [Point(group.size, whole.accuracy, whole.loss)]
        for stay in _counts(group.size, ratios):
            keep = kept([group], least(ranking, {group.name: stay}))
            narrow, _ = shrink(module, keep)
            if settle is not None:
                settle_norms(narrow, settle)
            points.append(_measured(narrow, held_out, stay))
            progress(group.name, points[-1])
        curves[group.name] = tuple(points)
    return Scan(network, importance, curves)


@torch.no_grad()
def settle_norms(module: nn.Module, data: Dataset, batch_size: int = 128) -> None:
    """Replace the running statistics of batch normalisations by the averages over ``data``, weights untouched."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NORMS) and layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        # None: the plain average over all that is seen.
        layer.momentum = None
        layer.train()
    for start in range(0, len(data), batch_size):
        module(*tensors(data, np.arange(start, min(start + batch_size, len(data)))))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _counts(size: int, ratios: Sequence[float]) -> Iterator[int]:
    yield from sorted({max(1, round(size * (1 - ratio))) for ratio in ratios} - {size}, reverse=True)


def _measured(module: nn.Module, data: Dataset, stay: int) -> Point:
    logits = predict(module, data)
    chances = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(data)), data.labels]
    return Point(stay, float((logits.argmax(1) == data.labels).mean()), float(-chances.mean()))
