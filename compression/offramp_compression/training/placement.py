"""Where a run computes, and how its tensors lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from offramp_compression.data.batches import Batch
from offramp_compression.runtime import find_device
from offramp_compression.training.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Placement:
    device: torch.device
    channels_last: bool

    @classmethod
    def of(cls, settings: TrainingSettings, trained: nn.Module | None = None) -> Placement:
        """For a module that is to be `trained` there. Raises ConfigurationError if the device is not there."""
        device = find_device(settings.device)
        safe = trained is None or device.type != "cpu" or not any(map(_corrupts_memory, trained.modules()))
        return cls(device, settings.channels_last and safe)

    @classmethod
    def like(cls, module: nn.Module) -> Placement:
        """That of a module which is in its place."""
        return cls(device_of(module), any(_is_channels_last(parameter) for parameter in module.parameters()))

    def batch(self, batch: Batch) -> Batch:
        """`batch` with inputs and labels on the device; the indices stay on the CPU, where the data are."""
        inputs = tuple(self._tensor(tensor) for tensor in batch.inputs)
        return replace(batch, inputs=inputs, labels=batch.labels.to(self.device))

    @contextmanager
    def module(self, module: nn.Module) -> Iterator[None]:
        """Have `module` there while inside, and back where it was, laid out as usual, afterwards."""
        before = device_of(module)
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            yield
        finally:
            module.to(before, memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def _tensor(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.device)
        return moved.contiguous(memory_format=torch.channels_last) if self.channels_last and moved.ndim == 4 else moved


def _corrupts_memory(module: nn.Module) -> bool:
    """Channels last, the backward pass of a strided 1x1 convolution of fewer than 8 channels writes beyond its buffers
    on CPUs (seen with torch 2.13 on AVX2; sooner or later the process crashes)."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < 8
    )


def _is_channels_last(tensor: Tensor) -> bool:
    # Tensors with one channel or one position are both; they say nothing.
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads while inside; 0: with as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of one's own while inside: what comes after is as random as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
