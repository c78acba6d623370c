"""Telling that memory ran out from whatever else may go wrong in a batch."""

from __future__ import annotations

import gc
import sys

# What the libraries write where their error has no class of its own. Where each was read:
_SIGNS = (
    # torch's allocator of the CPU, a RuntimeError (c10/core/impl/alloc_cpu.cpp, torch 2.13, run here).
    "DefaultCPUAllocator: can't allocate memory",
    # cudaMalloc and libraries outside torch's own allocator, which raises torch.OutOfMemoryError
    # (c10/cuda/CUDAException.cpp, aten/src/ATen/cuda/Exceptions.cpp).
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    # ONNX Runtime's arena on any device (core/framework/bfc_arena.cc; run here on the CPU with 1.31, and on CUDA in
    # github.com/microsoft/onnxruntime/issues/22702), and without its arena (run here).
    "Failed to allocate memory for requested buffer of size",
    "std::bad_alloc",
    # ONNX Runtime's CUDA calls (core/providers/cuda/cuda_call.cc).
    "CUDA failure 2: out of memory",
    # TensorRT: github.com/NVIDIA/TensorRT/issues/840 and 948, github.com/microsoft/onnxruntime/issues/10770 (its
    # allocator), github.com/marcoslucianops/DeepStream-Yolo/issues/366 (its memory pools).
    "Cuda Error in allocate: 2 (out of memory)",
    "DefaultAllocator::allocate: 2 (out of memory)",
    "Error Code 2: OutOfMemory",
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it was raised from, says that memory for a batch could not be had."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or _is_torchs(seen) or any(sign in str(seen) for sign in _SIGNS):
            return True
        seen = seen.__cause__
    return False


def free_caches() -> None:
    """Give back what allocators keep for later, in case it lies in pieces that are too small."""
    # An error's traceback holds on to the tensors of the attempt, in cycles at times.
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _is_torchs(error: BaseException) -> bool:
    """torch is never imported for the question: an error of its class can only come from where it is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
