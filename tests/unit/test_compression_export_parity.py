"""What counts as the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from offramp_compression.errors import ExportError
from offramp_compression.export.parity import FLOAT, INT8, Tolerance, check_parity

LOGITS = np.array([[1, 2], [4, 3], [0, 9], [5, 1]], dtype=np.float32)


def test_rounding_is_reported_and_accepted() -> None:
    parity = check_parity((LOGITS,), (LOGITS + np.float32(1e-5),), FLOAT, "torch eager")
    assert parity.rows == 4
    assert parity.difference == pytest.approx(1e-5, rel=0.1)
    assert parity.agreement == 1.0
    assert parity.as_metadata() == {
        "parity.reference": "torch eager",
        "parity.rows": "4",
        "parity.largest_difference": f"{parity.difference:.3g}",
        "parity.argmax_agreement": "1.0000",
    }


def test_more_than_rounding_is_refused_with_both_figures() -> None:
    with pytest.raises(ExportError, match=r"differs by 0\.01 .* at most 0\.0009"):
        check_parity((LOGITS,), (LOGITS + np.float32(0.01),), FLOAT, "torch eager")


def test_one_wrong_element_among_many_outputs_is_refused() -> None:
    wrong = LOGITS.copy()
    wrong[3, 1] += 1
    with pytest.raises(ExportError):
        check_parity((LOGITS, LOGITS), (LOGITS, wrong), FLOAT, "torch eager")


def test_int8_may_differ_as_long_as_the_answers_agree() -> None:
    moved = LOGITS + np.array([[0.3, -0.3]], dtype=np.float32)
    parity = check_parity((LOGITS,), (moved,), INT8, "the float network")
    assert parity.agreement == 1.0
    assert parity.difference == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(ExportError, match=r"same arg-max for 75\.00% of 4 rows; at least 95\.00%"):
        check_parity((LOGITS,), (np.vstack([LOGITS[:3], LOGITS[:1]]),), INT8, "the float network")


@pytest.mark.parametrize("tolerance", [FLOAT, INT8])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(tolerance: Tolerance, broken: float) -> None:
    wrong = LOGITS.copy()
    wrong[0, 1] = broken
    with pytest.raises(ExportError, match="differs by"):
        check_parity((LOGITS,), (wrong,), tolerance, "torch eager")


def test_a_network_that_answers_with_infinities_may_do_so_in_its_file() -> None:
    masked = LOGITS.copy()
    masked[0, 0] = -np.inf
    assert check_parity((masked,), (masked.copy(),), INT8, "torch eager").difference == 0


def test_another_shape_or_datatype_is_refused() -> None:
    with pytest.raises(ExportError, match=r"answers with .*float64"):
        check_parity((LOGITS,), (LOGITS.astype(np.float64),), FLOAT, "torch eager")
    with pytest.raises(ExportError, match="answers with"):
        check_parity((LOGITS,), (LOGITS, LOGITS), FLOAT, "torch eager")


def test_outputs_that_are_no_scores_have_no_agreement() -> None:
    hidden = np.ones((4, 3, 2, 2), dtype=np.float32)
    parity = check_parity((hidden,), (hidden,), FLOAT, "torch eager")
    assert parity.agreement is None
    assert "parity.argmax_agreement" not in parity.as_metadata()
