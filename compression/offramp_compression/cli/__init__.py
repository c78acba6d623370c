"""The commands of `offramp` that make and judge students. Each module imports torch only when its command runs."""

from __future__ import annotations

from types import ModuleType

from offramp_compression.cli import distill, evaluate, export, fine_tune, make, train

COMMANDS: tuple[ModuleType, ...] = (distill, evaluate, export, fine_tune, make, train)
