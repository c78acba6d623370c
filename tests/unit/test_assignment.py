"""Units of an experiment: who gets which arm, and who moves when weights change."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from offramp_adapters.experiments.assignment import assign, choose, point

UNITS = 100_000
# Of a normal distribution: one wrong alarm in ten million.
DEVIATIONS = 5.3
SALT = "checkout-2026"


def assigned(weights: Mapping[str, float], units: int = UNITS) -> list[str]:
    return [assign(SALT, weights, f"user-{number}") for number in range(units)]


def assert_shares(arms: list[str], weights: Mapping[str, float]) -> None:
    counts = Counter(arms)
    for arm, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(counts[arm] - len(arms) * share) <= DEVIATIONS * math.sqrt(len(arms) * share * (1 - share))


def moves(before: list[str], after: list[str]) -> Counter[tuple[str, str]]:
    return Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)


@pytest.fixture(scope="module")
def halves() -> list[str]:
    return assigned({"teacher": 50, "student": 50})


def test_arms_get_their_shares_of_100000_units(halves: list[str]) -> None:
    assert_shares(halves, {"teacher": 1, "student": 1})
    assert_shares(assigned({"teacher": 1, "student": 9}), {"teacher": 1, "student": 9})


def test_from_50_50_to_60_40_a_tenth_of_the_units_moves_and_all_of_them_one_way(halves: list[str]) -> None:
    after = assigned({"teacher": 60, "student": 40})
    moved = moves(halves, after)
    assert_shares(after, {"teacher": 60, "student": 40})
    assert set(moved) == {("student", "teacher")}
    assert abs(moved.total() - 0.1 * UNITS) <= DEVIATIONS * math.sqrt(UNITS * 0.1 * 0.9)


def test_only_ratios_of_weights_count(halves: list[str]) -> None:
    assert assigned({"student": 0.25, "teacher": 0.25}, 1000) == halves[:1000]


def test_of_three_arms_one_that_grows_takes_from_the_others_which_exchange_nothing() -> None:
    before, after = assigned({"a": 1, "b": 1, "c": 1}, 50_000), assigned({"a": 2, "b": 1, "c": 1}, 50_000)
    moved = moves(before, after)
    assert_shares(before, {"a": 1, "b": 1, "c": 1})
    assert_shares(after, {"a": 2, "b": 1, "c": 1})
    assert set(moved) == {("b", "a"), ("c", "a")}
    # From a third to a half.
    assert abs(moved.total() - 50_000 / 6) <= DEVIATIONS * math.sqrt(50_000 * 5 / 36)


def test_an_arm_that_comes_takes_only_its_share_and_one_that_goes_leaves_the_rest_alone(halves: list[str]) -> None:
    three = {"teacher": 40, "student": 40, "tiny": 20}
    with_third = assigned(three)
    assert_shares(with_third, three)
    assert {new for _, new in moves(halves, with_third)} == {"tiny"}
    assert moves(halves, with_third).total() == with_third.count("tiny")


def test_an_arm_without_weight_has_no_units() -> None:
    assert set(assigned({"teacher": 1, "student": 0}, 1000)) == {"teacher"}


def test_another_salt_is_another_experiment_that_tells_nothing_of_the_first(halves: list[str]) -> None:
    others = [assign("search-2026", {"teacher": 50, "student": 50}, f"user-{number}") for number in range(UNITS)]
    both = Counter(zip(halves, others, strict=True))
    for count in both.values():
        assert abs(count - UNITS / 4) <= DEVIATIONS * math.sqrt(UNITS * 3 / 16)


def test_a_number_is_the_same_unit_as_its_digits() -> None:
    weights = {"a": 1.0, "b": 1.0}
    assert [assign(SALT, weights, n) for n in range(-50, 50)] == [assign(SALT, weights, str(n)) for n in range(-50, 50)]


def test_without_a_unit_the_coin_decides_by_the_same_shares() -> None:
    weights = {"a": 2.0, "nobody": 0.0, "b": 6.0}
    assert [choose(weights, coin) for coin in (0.0, 0.2499, 0.25, 0.9999999999999999)] == ["a", "a", "b", "b"]
    draw = random.Random(5).random
    assert_shares([choose(weights, draw()) for _ in range(20_000)], {"a": 2, "b": 6})


def test_the_documented_vectors_hold() -> None:
    """Another implementation checks itself by these; they must never change, or every unit changes its arm."""
    page = Path(__file__).parents[2] / "docs" / "routes.md"
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| `(\S+)` \| (0\.\d+) \|$", page.read_text(), re.MULTILINE)
    assert len(rows) >= 6
    for salt, arm, unit, expected in rows:
        assert point(salt, arm, unit) == float(expected)


def test_the_documented_assignments_hold() -> None:
    page = Path(__file__).parents[2] / "docs" / "routes.md"
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| (\w+) \|$", page.read_text(), re.MULTILINE)
    assert len(rows) >= 5
    for unit, halves, sixty_forty in rows:
        assert assign("checkout-2026", {"teacher": 50, "student": 50}, unit) == halves
        assert assign("checkout-2026", {"teacher": 60, "student": 40}, unit) == sixty_forty
