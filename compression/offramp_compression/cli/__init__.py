"""The commands of `offramp` that make and judge students. Each module imports torch only when its command runs."""

from __future__ import annotations

from types import ModuleType

from offramp_compression.cli import (
    attach_exits,
    distill,
    evaluate,
    export,
    factorize,
    fine_tune,
    make,
    profile,
    prune,
    quantize,
    quantize_train,
    share_weights,
    train,
    zero_shot,
)

COMMANDS: tuple[ModuleType, ...] = (
    attach_exits,
    distill,
    evaluate,
    export,
    factorize,
    fine_tune,
    make,
    profile,
    prune,
    quantize,
    quantize_train,
    share_weights,
    train,
    zero_shot,
)
