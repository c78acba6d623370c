"""What a long-lived process may expect of the collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from offramp_server.collector import spare_what_stays


class Node:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_there_is_not_looked_at_again_and_garbage_is_not_kept() -> None:
    garbage = weakref.ref(Node())
    stays = Node()
    spare_what_stays()
    assert garbage() is None
    assert stays not in gc.get_objects()


def test_what_comes_later_is_found_without_being_asked_for() -> None:
    spare_what_stays()
    later = weakref.ref(Node())
    # As many as a busy server makes in a moment.
    kept = [Node() for _ in range(100_000)]
    assert later() is None
    assert kept
