"""How far a student's answers are from its teachers'. Logits are [N, classes]; what comes back is a scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softened(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The weighted mean of several teachers' softened probabilities: [N, classes] from logits [K, N, classes].

    `weights`, [K], sum to 1. An ensemble is averaged after the softmax (Hinton et al., Distilling the Knowledge in a
    Neural Network, 2015).
    """
    probabilities = functional.softmax(logits.float() / temperature, -1)
    return torch.einsum("k,knc->nc", weights, probabilities)


def divergence(student: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || softmax(student / T)), the mean over the batch (Hinton et al., 2015).

    The square of the temperature undoes what the temperature takes from the gradients, so that the mix with the hard
    labels means the same at every temperature.
    """
    logarithms = functional.log_softmax(student.float() / temperature, -1)
    return functional.kl_div(logarithms, probabilities, reduction="batchmean") * temperature**2


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`divergence` from one teacher, given by its logits."""
    return divergence(student, functional.softmax(teacher.float() / temperature, -1), temperature)


def logit_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of logits (Ba & Caruana, Do Deep Nets Really Need to be Deep?, 2014)."""
    return functional.mse_loss(student.float(), teacher.float())
