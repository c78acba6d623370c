"""Where and with how many threads to compute."""

from __future__ import annotations

import torch
from offramp_common.errors import ConfigurationError


def prepare(seed: int, threads: int, device: str) -> torch.device:
    """Seed torch's global random state and set its threads; returns the device.

    Raises ConfigurationError for fewer than one thread, a negative seed, or a device that is not there.
    """
    if threads < 1:
        raise ConfigurationError(f"{threads} threads: expected at least 1")
    if seed < 0:
        raise ConfigurationError(f"seed {seed}: expected 0 or more")
    chosen = _device(device)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    return chosen


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f'device "{name}" cannot be used: {reason}; expected "cpu" or one that is here'
        ) from None
    return device
