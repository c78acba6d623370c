"""Ctrl-C between two steps and never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Remembers that somebody wants the run to stop."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        # Who asks a second time does not want to wait for the end of the step.
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextmanager
def deferred() -> Iterator[Interrupts]:
    """Hold SIGINT back while inside: an optimiser that is stopped halfway leaves weights that belong to no step.

    Only the main thread can do this; elsewhere SIGINT does what it did before.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
