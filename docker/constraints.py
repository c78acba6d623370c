"""Print what pip may install: what the tests were run with, or what goes with the torch that the base image has.

    python3 docker/constraints.py constraints.txt > all.txt

NVIDIA's images bring a torch of their own, built against the CUDA, cuDNN and TensorRT beside it, which no package
index has. There everything that the image has stays as it is, and the rest is the newest that fits: packages go
together in families (grpcio's with protobuf), of which one cannot pin a half by another list.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

# Of the base image, what installs packages and runs none. torch wants newer ones than Python comes with.
TOOLS = frozenset({"pip", "setuptools", "wheel"})
PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")


def constraints(base: Iterable[tuple[str, str]], tested: Iterable[str]) -> Iterator[str]:
    """Lines "name==version", of `base` (names and versions) if it has torch, otherwise of `tested` (such lines)."""
    pins = {_normalized(name): version for name, version in base if _normalized(name) not in TOOLS}
    if "torch" not in pins:
        pins = {_normalized(match[1]): match[2] for match in map(PIN.match, tested) if match}
    return (f"{name}=={version}" for name, version in sorted(pins.items()))


def _normalized(name: str) -> str:
    """PEP 503: one package has several spellings."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    installed = ((each.metadata["Name"], each.version) for each in metadata.distributions())
    tested = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    print("\n".join(constraints(installed, tested)))


if __name__ == "__main__":
    main()
