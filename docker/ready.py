"""The container's health check: exits with 0 if the server takes requests."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 2.0


def main() -> int:
    port = os.environ.get("OFFRAMP_SERVER__HTTP_PORT", "8002")
    # A proxy of the environment is for what is outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://127.0.0.1:{port}/readyz", timeout=TIMEOUT_SECONDS).close()
    except (urllib.error.URLError, OSError) as error:
        # Docker keeps what a check prints.
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
