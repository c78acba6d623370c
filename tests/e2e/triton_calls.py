"""Requests as users of tritonclient write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

Array = npt.NDArray[Any]
WIDTH = 16


def tensor(name: str, values: Array, datatype: str) -> triton.InferInput:
    found = triton.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values)
    return found


def operands(rows: int = 1, seed: int = 0) -> tuple[Array, Array]:
    """Two INT32 [rows, 16]."""
    random = np.random.default_rng(seed)
    left, right = random.integers(-(2**30), 2**30, (2, rows, WIDTH), dtype=np.int32)
    return left, right


def add_sub(left: Array, right: Array) -> list[triton.InferInput]:
    return [tensor("INPUT0", left, "INT32"), tensor("INPUT1", right, "INT32")]


def check_add_sub(result: triton.InferResult, left: Array, right: Array) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), left + right)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), left - right)
