"""How a network is trained: everything that the weights depend on besides data, objective and torch itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeAlias

from offramp_common.toml_schema import Rule, between

Optimizer: TypeAlias = Literal["sgd", "adamw"]
Schedule: TypeAlias = Literal["one_cycle", "cosine", "step", "constant"]
MixedPrecision: TypeAlias = Literal["auto", "off", "bf16", "fp16"]

_POSITIVE = Rule("a number above 0", lambda value: value > 0)


@dataclass(frozen=True, slots=True)
class UnseededTraining:
    """All but the seed."""

    epochs: Annotated[int, between(1)] = 10
    batch_size: Annotated[int, between(1)] = 128
    # The highest rate that the schedule reaches.
    learning_rate: Annotated[float, _POSITIVE] = 0.1
    # Of weights; norms and biases do not decay.
    weight_decay: Annotated[float, between(0)] = 5e-4
    # Nesterov's, of "sgd"; the first beta of "adamw".
    momentum: Annotated[float, between(0, 0.999)] = 0.9
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "one_cycle"
    # The share of the steps during which the rate rises.
    warmup: Annotated[float, between(0, 0.9)] = 0.1
    # Stop after so many epochs in which the accuracy on the validation set did not rise, and keep the weights of the
    # best epoch. 0: train to the end, and keep the last weights.
    patience: Annotated[int, between(0)] = 0
    # "auto" is bf16 or fp16 on a CUDA device, whichever it computes well, and off elsewhere.
    mixed_precision: MixedPrecision = "auto"
    # The norm to which gradients are clipped; 0: they are not.
    max_grad_norm: Annotated[float, between(0)] = 0.0
    # Convolutions are faster on such tensors, on a CPU as well; off for a network that takes views of images.
    channels_last: bool = True
    # "auto" is an accelerator if there is one.
    device: str = "cpu"
    # 0: as many as torch takes.
    threads: Annotated[int, between(0)] = 0
    # In steps; there is also a checkpoint after every epoch.
    checkpoint_every: Annotated[int, between(1)] = 200


@dataclass(frozen=True, slots=True)
class TrainingSettings(UnseededTraining):
    seed: Annotated[int, between(0)] = 0

    def identity(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint to go on from it."""
        where_it_runs = ("device", "threads", "checkpoint_every")
        return {name: value for name, value in asdict(self).items() if name not in where_it_runs}
