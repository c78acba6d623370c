"""Where a network came from: enough to judge it, and to make it again."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("offramp", "torch", "torchao", "torch-pruning", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Provenance:
    """`method` is what made the network ("distill", "prune", ...) with which `settings`, which can be written as JSON.

    `data_digest` is that of the `Dataset` it learnt from, `parents` the digests of the networks it was made of,
    `versions` those of the packages that made it, and `metrics` what was measured of it then.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    data_digest: str = ""
    parents: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def as_metadata(self) -> dict[str, str]:
        """Flat pairs of strings for `[metadata]` of a model.toml, all under keys that begin with "provenance."."""
        pairs = {
            "method": self.method,
            "seed": str(self.seed),
            "data_digest": self.data_digest,
            "parents": " ".join(self.parents),
        }
        for group in ("settings", "versions", "metrics"):
            pairs.update(_flat(group, getattr(self, group)))
        return {f"provenance.{key}": value for key, value in pairs.items() if value}


def installed_versions() -> dict[str, str]:
    """The versions of Python and of those packages that shape a network, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _flat(f"{prefix}.{key}", element)
    elif isinstance(value, (list, tuple)):
        yield prefix, " ".join(str(element) for element in value)
    else:
        yield prefix, f"{value:g}" if isinstance(value, float) else str(value)
