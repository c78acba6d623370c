"""What the processor can do with eight-bit integers."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Each multiplies bytes and adds up in 32 bits, in one instruction.
_EXACT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})


def needs_reduced_range(cpuinfo: Path = CPUINFO, machine: str | None = None) -> bool:
    """Whether weights should have 7 bits: x86 without VNNI adds two products in 16 bits, where 8-bit weights saturate.

    One of which nothing is known counts as one without VNNI: that costs a bit, and the contrary a wrong answer.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return False
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return flags is None or _EXACT.isdisjoint(flags.group(1).split())
