"""Inputs that a worker puts together of what it has kept are what would have travelled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.routes.held import Held
from offramp_server.scheduling.held import Keep, KeptBatch, KeptRow
from offramp_server.workers.engines.on_device import DeviceTensor
from offramp_server.workers.kept import HeldInput, KeptOutputs, Place, pack_places, places_of, unpack_places
from open_inference.tensor import Tensor

ROWS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def kept_in_host() -> KeptOutputs:
    """Two batches of four rows; the second has a hundred more in every element."""
    kept = KeptOutputs()
    for number in (1, 2):
        outputs = [Tensor.from_numpy("logits", np.zeros((4, 1), np.float32)), Tensor.from_numpy("h", rows_of(number))]
        kept.keep(Keep(number, 0b10), outputs)
    return kept


def kept_on_device() -> KeptOutputs:
    kept = KeptOutputs()
    for number in (1, 2):
        there = DeviceTensor("h", "FP32", ROWS.shape, b"", torch.from_numpy(rows_of(number)))
        kept.keep(Keep(number, 0b10), [Tensor("logits", "FP32", (4, 1), bytes(16)), there])
    return kept


def rows_of(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return ROWS + np.float32(100 * (number - 1))


def held_input(places: list[tuple[int, int]]) -> HeldInput:
    return HeldInput("h", "FP32", (len(places), 2, 3), b"", [Place(batch, 1, row) for batch, row in places])


def expected(places: list[tuple[int, int]]) -> list[object]:
    return [rows_of(batch)[row].tolist() for batch, row in places]


some_places = st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 3)), min_size=1, max_size=12)


@given(places=some_places)
def test_rows_of_any_batches_in_any_order_become_one_input(places: list[tuple[int, int]]) -> None:
    plain = Tensor("x", "FP32", (1,), bytes(4))
    gathered, same = kept_in_host().resolved([held_input(places), plain])
    assert gathered.shape == (len(places), 2, 3)
    assert gathered.numpy().tolist() == expected(places)
    assert same is plain


@given(places=some_places)
def test_so_they_do_on_a_device(places: list[tuple[int, int]]) -> None:
    [gathered] = kept_on_device().resolved([held_input(places)])
    assert isinstance(gathered, DeviceTensor)
    assert gathered.shape == (len(places), 2, 3)
    assert gathered.value.tolist() == expected(places)


def test_rows_on_a_device_join_those_that_had_come_to_the_host() -> None:
    kept = kept_on_device()
    kept.keep(Keep(3, 0b10), [Tensor("logits", "FP32", (4, 1), bytes(16)), Tensor.from_numpy("h", rows_of(3))])
    places = [(3, 1), (1, 0), (3, 2)]
    [gathered] = kept.resolved([held_input(places)])
    assert isinstance(gathered, DeviceTensor)
    assert gathered.value.tolist() == expected(places)


def test_a_whole_batch_goes_on_without_a_copy() -> None:
    kept = kept_in_host()
    whole = [(1, row) for row in range(4)]
    assert kept.resolved([held_input(whole)])[0] is kept.resolved([held_input(whole)])[0]


def test_what_was_let_go_of_is_not_there_any_more() -> None:
    kept = kept_in_host()
    kept.release([1, 99])
    assert len(kept) == 1
    with pytest.raises(KeyError):
        kept.resolved([held_input([(1, 0)])])


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 63), st.integers(0, 2**32 - 1))))
def test_places_arrive_as_they_were_sent(fields: list[tuple[int, int, int]]) -> None:
    places = [Place(*each) for each in fields]
    assert unpack_places(memoryview(pack_places(places))) == places


def test_rows_that_were_taken_and_joined_are_found_where_they_are() -> None:
    parts = [
        Held("h", "FP32", (4, 2), b"", "w", tuple(KeptRow(batch_numbered(number), 1, row) for row in range(4)))
        for number in (1, 2)
    ]
    joined = Held.join([parts[1].take([3, 0]), parts[0].take([2])])
    assert (joined.shape, joined.home) == ((3, 2), "w")
    assert places_of(joined) == [(2, 1, 3), (2, 1, 0), (1, 1, 2)]


@pytest.mark.parametrize(
    ("home", "datatype", "shape"), [("v", "FP32", (1, 2)), ("w", "FP16", (1, 2)), ("w", "FP32", (1, 3))]
)
def test_rows_that_are_not_alike_cannot_be_joined(home: str, datatype: str, shape: tuple[int, ...]) -> None:
    first = Held("h", "FP32", (1, 2), b"", "w", ("a",))
    with pytest.raises(ValueError, match="different workers, shapes or datatypes"):
        Held.join([first, Held("h", datatype, shape, b"", home, ("b",))])


def batch_numbered(number: int) -> KeptBatch:
    return cast(KeptBatch, SimpleNamespace(number=number))
