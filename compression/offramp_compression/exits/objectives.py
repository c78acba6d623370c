"""What multi-exit networks are trained for. The networks return a tuple of logits, the deepest exit last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from offramp_compression.data.batches import Batch
from offramp_compression.distillation.losses import soft_divergence
from offramp_compression.errors import ModelError
from offramp_compression.exits.network import MultiExit
from offramp_compression.training.objective import Objective


class JointExits(Objective):
    """The weighted mean of all exits' cross-entropies (Teerapittayanon et al., BranchyNet, 2016, equation 2).

    `weights` has one number for each exit, the deepest last; none: all alike. With `freeze_trunk` only the heads learn:
    the trunk keeps its weights and stays in evaluation mode, so that its batch norms keep their statistics and its own
    answer does not change.
    """

    def __init__(
        self, weights: Sequence[float] = (), *, label_smoothing: float = 0.0, freeze_trunk: bool = False
    ) -> None:
        if weights and (min(weights) < 0 or sum(weights) <= 0):
            raise ModelError(f"exit weights {list(weights)}: expected none below 0 and at least one above")
        self.freeze_trunk = freeze_trunk
        self._weights = tuple(weights)
        self._label_smoothing = label_smoothing
        self._accuracy: dict[str, float] = {}

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        exits = _answers(module, batch)
        self._accuracy = _accuracies(exits, batch.labels)
        return self._mean([self._one(logits, exits[-1], batch.labels) for logits in exits])

    def prepare(self, module: nn.Module) -> AbstractContextManager[None]:
        return _frozen(module.trunk) if self.freeze_trunk and isinstance(module, MultiExit) else nullcontext()

    def describe(self) -> Mapping[str, Any]:
        return {
            "objective": type(self).__name__,
            "weights": list(self._weights),
            "label_smoothing": self._label_smoothing,
            "freeze_trunk": self.freeze_trunk,
        }

    def live(self) -> Mapping[str, float]:
        return self._accuracy

    def _one(self, logits: Tensor, deepest: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self._label_smoothing)

    def _mean(self, losses: Sequence[Tensor]) -> Tensor:
        weights = self._weights or (1.0,) * len(losses)
        if len(weights) != len(losses):
            raise ModelError(f"{len(weights)} weights for {len(losses)} exits; give one for each, the deepest last")
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        return sum(weighted[1:], weighted[0]) / sum(weights)


class SelfDistilledExits(JointExits):
    """Early exits that learn from the deepest as well as from the labels (Zhang et al., Be Your Own Teacher, 2019).

    An early exit's loss is (1 - share) times its cross-entropy plus `share` times the divergence of its softened answer
    from that of the deepest exit, which is no further influenced by it. The deepest exit learns from the labels alone.
    """

    def __init__(
        self,
        weights: Sequence[float] = (),
        *,
        share: float = 0.5,
        temperature: float = 3.0,
        label_smoothing: float = 0.0,
        freeze_trunk: bool = False,
    ) -> None:
        super().__init__(weights, label_smoothing=label_smoothing, freeze_trunk=freeze_trunk)
        if not 0 <= share <= 1 or temperature <= 0:
            raise ModelError(f"share {share:g} and temperature {temperature:g}: expected 0 to 1, and more than 0")
        self._share = share
        self._temperature = temperature

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "share": self._share, "temperature": self._temperature}

    def _one(self, logits: Tensor, deepest: Tensor, labels: Tensor) -> Tensor:
        hard = super()._one(logits, deepest, labels)
        if logits is deepest:
            return hard
        return (1 - self._share) * hard + self._share * soft_divergence(logits, deepest.detach(), self._temperature)


@contextmanager
def _frozen(trunk: nn.Module) -> Iterator[None]:
    frozen = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _answers(module: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    exits = module(*batch.inputs)
    if not isinstance(exits, tuple):
        raise ModelError("the network has one answer only; attach exits to it first (offramp attach-exits)")
    return exits


def _accuracies(exits: Sequence[Tensor], labels: Tensor) -> dict[str, float]:
    """Of the early exits; the trainer shows the last one's itself."""
    right = [(logits.detach().argmax(1) == labels).float().mean().item() for logits in exits[:-1]]
    return {f"exit_{number}": accuracy for number, accuracy in enumerate(right, 1)}
