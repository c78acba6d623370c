"""On which device a model is to run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.kinds.onnx_runtime import OnnxRuntimeKind

NVIDIA_DRIVER = Path("/dev/nvidiactl")
FIRST_GPU = "cuda:0"
CUDA_PROBE = "import torch; raise SystemExit(0 if torch.cuda.is_available() else 1)"


class Devices:
    """What `[engine] device` comes to on this machine."""

    def __init__(self) -> None:
        self._cuda: bool | None = None

    async def of(self, spec: ModelSpec) -> str:
        """cpu | cuda:N"""
        device = spec.engine.device
        if device == "auto":
            return FIRST_GPU if could_use_cuda(spec) and await self._has_cuda() else "cpu"
        return FIRST_GPU if device == "cuda" else device

    async def _has_cuda(self) -> bool:
        """Asked of a process of its own, once: the front end never imports torch."""
        if self._cuda is None:
            self._cuda = await asyncio.to_thread(_probe_cuda)
        return self._cuda


def could_use_cuda(spec: ModelSpec) -> bool:
    """Whether an engine for GPUs that is installed runs files of this format, and this one."""
    onnx = OnnxRuntimeKind()
    return spec.format == "pt2" or not (onnx.missing(FIRST_GPU) or onnx.refusal(spec, FIRST_GPU))


def _probe_cuda() -> bool:
    if not NVIDIA_DRIVER.exists():
        return False
    return subprocess.run([sys.executable, "-c", CUDA_PROBE], check=False, capture_output=True).returncode == 0
