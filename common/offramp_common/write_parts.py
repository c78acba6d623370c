"""Large writes to asyncio's transports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


def write_parts(transport: asyncio.WriteTransport, parts: Sequence[bytes | memoryview]) -> None:
    """As `transport.writelines`.

    Python 3.12 before 3.12.9 and 3.13 before 3.13.2 do not pause who writes after `writelines` (CVE-2024-12254): what
    waits for a peer that reads nothing would have no bound. `write` does.
    """
    transport.writelines(parts[:-1])
    transport.write(parts[-1])
