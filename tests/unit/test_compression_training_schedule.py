"""The learning rate over a run."""

from __future__ import annotations

import pytest
import torch
from offramp_compression.training.schedule import factor


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch counts the rise in steps from the first to the highest, hence its pct_start of (rise + 1) / total.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=20, pct_start=6 / 20, cycle_momentum=False, base_momentum=0.9
    )
    for step in range(20):
        assert factor("one_cycle", step, 20, 5 / 20) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        if step < 19:
            schedule.step()


def test_cosine_falls_from_the_highest_rate_to_nothing() -> None:
    rates = [factor("cosine", step, 11, 0.0) for step in range(11)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)


def test_step_falls_to_a_tenth_at_half_and_at_three_quarters() -> None:
    rates = [factor("step", step, 8, 0.0) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays() -> None:
    assert {factor("constant", step, 8, 0.0) for step in range(8)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_the_rate_rises_on_a_straight_line_during_the_warmup(schedule: str) -> None:
    assert [factor(schedule, step, 40, 0.1) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_run_of_a_few_steps_has_rates_too(schedule: str, total: int) -> None:
    assert all(0 <= factor(schedule, step, total, 0.5) <= 1 for step in range(total))  # type: ignore[arg-type]
    assert factor(schedule, 0, total, 0.5) > 0  # type: ignore[arg-type]
