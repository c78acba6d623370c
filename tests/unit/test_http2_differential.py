"""The engine beside h2's state machine: the same bytes have to mean the same to both."""

from __future__ import annotations

import pytest
from http2_beside_h2 import OF_A_STREAM, OF_THE_CONNECTION, SIZES, STREAMS, Step, compare
from http2_peer import Taken
from hypothesis import given, settings
from hypothesis import strategies as st

STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(OF_A_STREAM + OF_THE_CONNECTION),
        st.sampled_from(STREAMS),
        st.sampled_from(SIZES),
        st.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=300)
@given(STEPS)
def test_the_same_bytes_mean_the_same_to_h2(steps: list[Step]) -> None:
    compare(steps)


def test_the_comparison_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Taken, "on_data", lambda self, data, ended: None)
    with pytest.raises(AssertionError):
        compare([("request", 1, 0, True)])
