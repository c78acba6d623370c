"""Say what was wrong where a network is given inputs that are not for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from offramp_compression.errors import ModelError


@contextmanager
def understood(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Raise ModelError, with the inputs' shapes, for what a network raises while it runs on `inputs`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        shapes = ", ".join(f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in inputs)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the network does not run on inputs {shapes}: {reason}") from error
