"""Say what was wrong where a network is given inputs that are not for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError


def try_out(module: nn.Module, data: Dataset) -> object:
    """What `module`, in evaluation mode, answers to the first two examples.

    Better now than in the first step of training, by a traceback: raises ModelError as `understood` does.
    """
    examples = tensors(data, np.arange(min(2, len(data))))
    with torch.inference_mode(), understood(examples):
        answer: object = module(*examples)
    return answer


@contextmanager
def understood(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Raise ModelError, with the inputs' shapes, for what a network raises while it runs on `inputs`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        shapes = ", ".join(f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in inputs)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the network does not run on inputs {shapes}: {reason}") from error
