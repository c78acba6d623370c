"""What a new network is told of its data."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from data_sets import images
from numpy.typing import NDArray
from offramp_compression.new_network import mean_and_spread, new_network


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mean_and_spread_are_those_of_all_pixels_of_a_channel(dtype: type) -> None:
    pictures: NDArray[Any] = np.random.default_rng(0).integers(0, 256, (600, 3, 5, 4)).astype(dtype)
    mean, spread = mean_and_spread(pictures)
    np.testing.assert_allclose(mean, pictures.mean((0, 2, 3), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(spread, pictures.std((0, 2, 3), dtype=np.float64), rtol=1e-12)


def test_looking_at_the_pixels_takes_less_memory_than_they_do() -> None:
    pictures = np.zeros((4000, 3, 32, 32), np.uint8)
    tracemalloc.start()
    mean_and_spread(pictures)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * pictures.nbytes


def test_a_network_normalises_by_what_was_measured() -> None:
    data = images(30, shape=(3, 8, 8))
    arguments = new_network("tiny_cnn", {"channels": [4]}, data).blueprint.arguments
    expected = data.inputs[0].mean((0, 2, 3)) / 255
    assert arguments["mean"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert arguments["std"] == pytest.approx((data.inputs[0].std((0, 2, 3)) / 255).tolist(), abs=1e-4)


def test_pictures_of_one_colour_are_not_divided_by_nothing() -> None:
    grey = replace(images(30), inputs=(np.full((30, 1, 8, 8), 7, np.uint8),))
    assert new_network("tiny_cnn", {"channels": [2]}, grey).blueprint.arguments["std"] == [1.0]
