"""Is the machine busy with something else while a model is timed?"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

# Below it, times say more about the other load than about the model. An idle machine has at least 0.95.
_UNDISTURBED = 0.8


class ProcessorShare:
    """A context manager; afterwards `value` is the share of the elapsed time that the calling thread was computing.

    torch and ONNX Runtime compute in the calling thread, with others beside it or alone, so that what is missing from 1
    is time in which it had to wait for a processor.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, busy: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._busy = busy
        self.value = 1.0

    def __enter__(self) -> Self:
        self._began, self._worked = self._clock(), self._busy()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        elapsed = self._clock() - self._began
        self.value = min(1.0, (self._busy() - self._worked) / elapsed) if elapsed > 0 else 1.0


def remark(share: float) -> str:
    """What to say beside times that were measured with this share of a processor; empty if they can be trusted."""
    if share >= _UNDISTURBED:
        return ""
    return (
        f"the machine was busy with something else: while timing, this process had a processor for {share:.0%} of the "
        f"time only. Times are too long, and differences between models uncertain; measure again on an idle machine"
    )
