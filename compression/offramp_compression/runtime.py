"""Where and with how many threads to compute."""

from __future__ import annotations

import torch
from offramp_common.errors import ConfigurationError
from offramp_common.text import quoted


def prepare(seed: int, threads: int, device: str) -> torch.device:
    """Seed torch's global random state and set its threads; returns the device.

    Raises ConfigurationError for fewer than one thread, a negative seed, or a device that is not there.
    """
    if threads < 1:
        raise ConfigurationError(f"{threads} threads: expected at least 1")
    if seed < 0:
        raise ConfigurationError(f"seed {seed}: expected 0 or more")
    chosen = find_device(device)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    return chosen


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first accelerator, or the CPU where there is none.

    Raises ConfigurationError for a device that is not there.
    """
    present = _present()
    if name == "auto":
        return torch.device(present[1 if len(present) > 1 else 0])
    # A kind without a number means the first of it.
    if name not in present and f"{name}:0" not in present:
        raise ConfigurationError(f"device {quoted(name)} is not here; expected {' or '.join(map(quoted, present))}")
    return torch.device(name)


def _present() -> list[str]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
