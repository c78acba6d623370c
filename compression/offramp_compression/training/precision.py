"""Mixed precision where the device has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from offramp_common.errors import ConfigurationError

from offramp_compression.training.settings import MixedPrecision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast, and the loss scaling that fp16 needs (Micikevicius et al., Mixed Precision Training, 2017)."""

    def __init__(self, wanted: MixedPrecision, device: torch.device) -> None:
        """Raises ConfigurationError for fp16 on a device without it."""
        self.name = resolve(wanted, device)
        self._device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        if self.name == "off":
            return nullcontext()
        return torch.autocast(self._device.type, _DTYPES[self.name])


def resolve(wanted: MixedPrecision, device: torch.device) -> MixedPrecision:
    if wanted == "auto":
        # Measured on a CPU without hardware for it: bf16 is 10 to 35 times slower than fp32 there.
        if device.type != "cuda":
            return "off"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if wanted == "fp16" and device.type != "cuda":
        raise ConfigurationError(
            f'mixed_precision "fp16" needs a CUDA device and this run is on "{device.type}"; take "off" or "auto"'
        )
    return wanted
