"""A network's answers on a whole data set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp_compression.data.dataset import Dataset, tensors

Logits = NDArray[np.float32]


def predict(module: nn.Module, data: Dataset, batch_size: int = 256) -> Logits:
    """Logits, float32 [N, classes], of a module in evaluation mode; of the last exit if it has several.

    Every part of the module is left in the mode in which it was. The answers do not depend on the batch size, but for
    rounding.
    """
    return predict_exits(module, data, batch_size)[-1]


def accuracy(module: nn.Module, data: Dataset, batch_size: int = 256) -> float:
    """The share of examples whose highest logit is their label's."""
    return float(np.mean(predict(module, data, batch_size).argmax(axis=1) == data.labels))


def predict_exits(module: nn.Module, data: Dataset, batch_size: int = 256) -> list[Logits]:
    """Logits of every exit, the first exit first: one array for a module that returns a single tensor."""
    modes = [(part, part.training) for part in module.modules()]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        answers = [_answers(module, data, start, batch_size, device) for start in range(0, len(data), batch_size)]
    finally:
        # One by one: frozen parts stay in evaluation mode while others train.
        for part, mode in modes:
            part.training = mode
    return [np.concatenate(batches) for batches in zip(*answers, strict=True)]


@torch.inference_mode()
def _answers(module: nn.Module, data: Dataset, start: int, batch_size: int, device: torch.device) -> list[Logits]:
    rows = np.arange(start, min(start + batch_size, len(data)))
    answer = module(*(tensor.to(device) for tensor in tensors(data, rows)))
    exits: tuple[Tensor, ...] = answer if isinstance(answer, tuple) else (answer,)
    return [logits.float().cpu().numpy() for logits in exits]
