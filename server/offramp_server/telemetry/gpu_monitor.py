"""Reads the GPUs when somebody scrapes, beside the event loop: NVML's calls enter the driver, and one that has lost its
device may not come back from them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

from offramp_server.machine.nvml import GpuReading, Library, Nvml, NvmlMissing, NvmlUnavailable, open_nvml

# How long a scrape waits for the driver. Seconds.
PATIENCE_SECONDS = 1.0

log = logging.getLogger("offramp.telemetry")


class GpuMonitor:
    """Opens NVML at the first reading and keeps it open: that takes far longer than a reading."""

    def __init__(
        self,
        library: Library | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._library = library
        self._environment = environment
        self._patience = patience
        self._opened = ExitStack()
        self._nvml: Nvml | None = None
        self._missing = False
        # The last reason for having no metrics: once is enough for each.
        self._told = ""
        self._reading: Future[Sequence[GpuReading]] | None = None

    async def readings(self) -> Sequence[GpuReading]:
        """None where there are no GPUs, or while the driver does not answer: there is one reading at a time."""
        if self._missing:
            return ()
        if self._reading is None or self._reading.done():
            self._reading = _in_thread(self)
        try:
            # A reading that takes longer goes on, and must not be cancelled with the scrape.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._reading)), self._patience)
        except TimeoutError:
            log.warning("the NVIDIA driver does not answer; metrics of the GPUs are left out")
            return ()

    def read(self) -> Sequence[GpuReading]:
        """Of the calling thread, which may have to wait."""
        try:
            if self._nvml is None:
                self._nvml = self._opened.enter_context(open_nvml(self._library, self._environment))
            return self._nvml.readings()
        except NvmlUnavailable as error:
            # A driver that is not loaded yet, or is being exchanged, may answer the next time.
            self._missing = isinstance(error, NvmlMissing)
            self._tell(logging.INFO, str(error))
        except Exception as error:
            self._tell(logging.WARNING, f"{type(error).__name__}: {error}")
        return ()

    def _tell(self, level: int, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            log.log(level, "no metrics of GPUs: %s", reason)

    def close(self) -> None:
        """Unless a reading is stuck, which nobody waits for."""
        if self._reading is None or self._reading.done():
            self._opened.close()


def _in_thread(monitor: GpuMonitor) -> Future[Sequence[GpuReading]]:
    """A thread of its own that does not keep the process from ending, unlike those of a pool."""
    future: Future[Sequence[GpuReading]] = Future()

    def read() -> None:
        try:
            future.set_result(monitor.read())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=read, name="gpu readings", daemon=True).start()
    return future
