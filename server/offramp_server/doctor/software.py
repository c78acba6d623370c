"""Python, the system, and which of the packages that offramp can use are installed."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterable
from importlib import metadata

from offramp_server.doctor.section import Section

# What `offramp serve` is made of, and what adds to it.
SERVER = "server"
EXTRAS = (SERVER, "gpu", "image", "text", "otel")
# Of the extra "server": a server starts without one of them, and says which models it cannot serve.
ENGINE_PACKAGES = frozenset({"torch", "onnxruntime", "onnx"})

VersionOf = Callable[[str], str | None]


def version_of(distribution: str) -> str | None:
    """The installed version; None: it is not installed. Nothing is imported."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def software(installed: VersionOf = version_of, requirements: Iterable[str] | None = None) -> Section:
    """`requirements` are those of this package, as its metadata has them."""
    needed = metadata.requires("offramp") if requirements is None else requirements
    missing = {extra: [name for name in _packages(needed or (), extra) if not installed(name)] for extra in EXTRAS}
    lines = (
        ("offramp", installed("offramp") or "not installed as a package"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("extras", ", ".join(f"{extra} {_state(names)}" for extra, names in missing.items())),
    )
    facts = {"offramp": installed("offramp"), "python": platform.python_version(), "executable": sys.executable,
             "system": platform.platform(), "missing_packages": missing}  # fmt: skip
    return Section("software", lines, facts, problems=_problems(missing[SERVER]))


def _packages(requirements: Iterable[str], extra: str) -> list[str]:
    """Names out of lines like 'aiohttp>=3.10; extra == "server"'."""
    marker = re.compile(rf"""extra\s*==\s*['"]{extra}['"]""")
    chosen = [line for line in requirements if marker.search(line)]
    return [match[0] for line in chosen if (match := re.match(r"[A-Za-z0-9._-]+", line))]


def _state(missing: list[str]) -> str:
    return f"(without {', '.join(missing)})" if missing else "ok"


def _problems(missing: list[str]) -> tuple[str, ...]:
    needed = [name for name in missing if name not in ENGINE_PACKAGES]
    if not needed:
        return ()
    return (f"`offramp serve` needs {', '.join(needed)}; install with: pip install 'offramp[{SERVER}]'",)
