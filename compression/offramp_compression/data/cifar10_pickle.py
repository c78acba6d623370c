"""Pickles that hold arrays of bytes, lists, dictionaries, text and numbers, and nothing else.

Unpickling calls what the file names. Here the only names that a file may use are those that numpy writes for an array
of bytes, and each is answered with a recorder of this module: neither numpy nor anything else is called by a file.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from offramp_compression.errors import DataError


def read_pickle(path: Path) -> Any:
    """The value in the file; text of Python 2 comes as bytes, arrays as uint8. Raises DataError for anything else."""
    try:
        return _arrays(_Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load())
    except _Refused as refused:
        raise DataError(
            f"{path}: is a pickle that wants to call {refused}, which is not done here; expected CIFAR-10's python "
            f"version, or use its binary version (data_batch_1.bin, ...)"
        ) from None
    # A damaged pickle can make the unpickler stumble in any way.
    except Exception as error:
        raise DataError(f"{path}: not a whole pickle of CIFAR-10's python version ({error})") from error


class _Refused(Exception):
    """Names what a pickle wanted to call."""


class _Recorded:
    """What a pickle says of an array or of its data type: arguments and state, kept and not acted upon."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayClass(_Recorded):
    """Stands for the class numpy.ndarray, which is only ever an argument."""


class _DataType(_Recorded):
    pass


class _Array(_Recorded):
    pass


_NAMES = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _DataType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays(element) for key, element in value.items()}
    return _array(value) if isinstance(value, _Array) else value


def _array(recorded: _Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    _, shape, data_type, columns_first, content = recorded.state
    if not isinstance(data_type, _DataType) or data_type.arguments[0] not in ("u1", b"u1"):
        raise ValueError("expected arrays of unsigned bytes")
    if not isinstance(content, bytes) or len(content) != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} bytes for an array of shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")
