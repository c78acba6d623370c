"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from offramp_compression.distillation.losses import divergence, logit_error, soft_divergence, softened

# Softened at a temperature of 2: three quarters and a quarter.
SURE = torch.tensor([[2 * math.log(3), 0.0]])
EVEN = torch.tensor([[0.0, 0.0]])


def test_softened_probabilities_are_those_of_logits_over_the_temperature() -> None:
    assert softened(SURE[None], torch.tensor([1.0]), 2.0)[0].tolist() == pytest.approx([0.75, 0.25])


def test_several_teachers_are_averaged_by_weight_after_the_softmax() -> None:
    logits = torch.stack([SURE, SURE.flip(1)])
    found = softened(logits, torch.tensor([0.75, 0.25]), 2.0)
    assert found[0].tolist() == pytest.approx([0.75 * 0.75 + 0.25 * 0.25, 0.75 * 0.25 + 0.25 * 0.75])


def test_the_divergence_is_that_of_the_softened_answers_times_the_squared_temperature() -> None:
    by_hand = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert soft_divergence(EVEN, SURE, 2.0).item() == pytest.approx(by_hand)
    assert divergence(EVEN, torch.tensor([[0.75, 0.25]]), 2.0).item() == pytest.approx(by_hand)


def test_the_divergence_is_a_mean_over_the_batch() -> None:
    both = soft_divergence(torch.cat([EVEN, SURE]), torch.cat([SURE, SURE]), 2.0)
    assert both.item() == pytest.approx(soft_divergence(EVEN, SURE, 2.0).item() / 2)


def test_who_answers_as_the_teacher_does_has_nothing_to_learn() -> None:
    assert soft_divergence(SURE + 5, SURE, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_excludes_a_class_is_no_problem() -> None:
    assert divergence(EVEN, torch.tensor([[1.0, 0.0]]), 1.0).item() == pytest.approx(math.log(2))


def test_at_a_high_temperature_the_gradient_is_that_of_the_logits_differences() -> None:
    # Hinton et al. (2015), equation 4, times T squared.
    student = torch.tensor([[1.0, -2.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, -1.0, -2.0]])
    soft_divergence(student, teacher, 1000.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    expected = (student.detach() - teacher) / 3
    assert torch.allclose(student.grad, expected, atol=0.01)


def test_the_logit_error_is_the_mean_of_squared_differences() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [0.0, 4.0]])
    assert logit_error(student, teacher).item() == pytest.approx((4 + 0 + 0 + 16) / 4)
