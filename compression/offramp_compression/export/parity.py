"""Does a written file answer as the network does? Measured on real inputs, and refused where it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray
from offramp_common.differences import largest_difference, largest_value

from offramp_compression.errors import ExportError
from offramp_compression.export.answers import Arrays

Values: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a file may differ by.

    `difference` is the largest absolute difference of any element, in units of the largest absolute value of that
    output (at least 1); infinity: any finite one. `agreement` is the smallest share of rows whose arg-max is the same.
    """

    difference: float
    agreement: float


# Other kernels add in another order, and fold batch norms: FP32 differs in its last bits.
FLOAT = Tolerance(1e-4, 0.99)
# Rounding to eight bits moves logits; what counts is the answer.
INT8 = Tolerance(math.inf, 0.95)


@dataclass(frozen=True, slots=True)
class Parity:
    """`difference` is absolute and over all outputs. `agreement` is that of the output that agrees least, over its rows
    of scores [N, C > 1]; None if no output is such."""

    reference: str
    rows: int
    difference: float
    agreement: float | None

    def as_metadata(self) -> dict[str, str]:
        """Flat pairs of strings for `[metadata]` of a model.toml."""
        pairs = {
            "parity.reference": self.reference,
            "parity.rows": str(self.rows),
            "parity.largest_difference": f"{self.difference:.3g}",
        }
        if self.agreement is not None:
            pairs["parity.argmax_agreement"] = f"{self.agreement:.4f}"
        return pairs

    def __str__(self) -> str:
        agreement = "" if self.agreement is None else f", same arg-max for {self.agreement:.2%}"
        return f"largest difference {self.difference:.3g}{agreement} ({self.rows} rows, against {self.reference})"


def check_parity(expected: Arrays, actual: Arrays, tolerance: Tolerance, reference: str) -> Parity:
    """Compare outputs, each [N, ...]. `reference` says in words what `expected` came from.

    Raises ExportError if number, shape or datatype differ, or the values by more than `tolerance`.
    """
    _check_shapes(expected, actual)
    differences = [largest_difference(*pair) for pair in zip(expected, actual, strict=True)]
    agreements = [_agreement(*pair) for pair in zip(expected, actual, strict=True) if _are_scores(pair[0])]
    parity = Parity(reference, len(expected[0]), max(differences), min(agreements, default=None))
    for array, difference in zip(expected, differences, strict=True):
        _check_difference(difference, tolerance.difference * max(1.0, largest_value(array)))
    if parity.agreement is not None and parity.agreement < tolerance.agreement:
        raise ExportError(
            f"the written file and {reference} have the same arg-max for {parity.agreement:.2%} of {parity.rows} rows; "
            f"at least {tolerance.agreement:.2%} is wanted"
        )
    return parity


def _check_shapes(expected: Arrays, actual: Arrays) -> None:
    wanted = [(array.dtype.name, array.shape) for array in expected]
    found = [(array.dtype.name, array.shape) for array in actual]
    if wanted != found:
        raise ExportError(f"the written file answers with {found}, the network with {wanted}")


def _check_difference(difference: float, bound: float) -> None:
    if difference > bound or not math.isfinite(difference):
        raise ExportError(
            f"an answer of the written file differs by {difference:.3g} from the network's; at most {bound:.3g} is "
            f"wanted. If the network is random (dropout) or in training mode, call eval() first"
        )


def _are_scores(array: Values) -> bool:
    return array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f"


def _agreement(expected: Values, actual: Values) -> float:
    return float((expected.argmax(1) == actual.argmax(1)).mean())
