"""What a reader has to know about the machine and the moment of a run."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_average: float
    date: str


def describe_machine() -> Machine:
    """Return this machine and this moment (UTC)."""
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages * page_size / 2**30, 1),
        system=system_name(),
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def system_name() -> str:
    release = platform.freedesktop_os_release()
    return f"{release.get('PRETTY_NAME', 'Linux')}, Linux {platform.release()}"
