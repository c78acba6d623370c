"""Telling that memory ran out from whatever else may go wrong in a batch."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

# What the libraries write where their error has no class of its own. Where each was read:
_SIGNS = (
    # torch's allocator of the CPU, a RuntimeError (c10/core/impl/alloc_cpu.cpp, torch 2.13, run here).
    "DefaultCPUAllocator: can't allocate memory",
    # cudaMalloc and libraries outside torch's own allocator, which raises torch.OutOfMemoryError
    # (c10/cuda/CUDAException.cpp, aten/src/ATen/cuda/Exceptions.cpp).
    "CUDA error: out of memory",
    # torch's allocator of CUDA, where its class is lost: packages of AOTInductor hand on the words alone
    # (c10/cuda/CUDACachingAllocator.cpp; torch 2.13, run here on the CPU).
    "CUDA out of memory. Tried to allocate",
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
# Packages of AOTInductor allocate through functions of C. torch 2.13 hands on why one failed, other releases tell the
# call alone.
_FAILED_ALLOCATION = re.compile(r"aoti_torch_(empty_strided|_alloc_from_pool)\w*\(.*API call failed", re.DOTALL)
# What is said when memory runs out, and when other things go wrong too.
_DOUBTFUL_SIGNS = (
    # cuDNN tries its kernels, and none that failed is told from one that found no room for its workspace
    # (aten/src/ATen/native/cudnn/Conv_v8.cpp).
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
)
# Whatever fails inside of a package of AOTInductor, in releases that write the reason to stderr alone
# (torch/csrc/inductor/aoti_runner/model_container_runner.cpp).
_FAILED_PACKAGE = re.compile(r"run_func_\(.*API call failed", re.DOTALL)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it was raised from, says that memory for a batch could not be had."""
    return any(isinstance(each, MemoryError) or _is_torchs(each) or _says_so(str(each)) for each in _causes(error))


def may_have_run_out_of_memory(error: BaseException) -> bool:
    """Whether it says so, or says what libraries also say then. Smaller batches tell: what fails for one row as well
    was something else, or cannot be helped."""
    return ran_out_of_memory(error) or any(_may_say_so(str(each)) for each in _causes(error))


def free_caches() -> None:
    """Give back what allocators keep for later, in case it lies in pieces that are too small."""
    # An error's traceback holds on to the tensors of the attempt, in cycles at times.
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def with_caches_freed(work: Callable[[], T]) -> T:
    """What `work` returns, which is called once more where memory runs out, with what was kept for later given back."""
    try:
        return work()
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
    free_caches()
    return work()


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _says_so(message: str) -> bool:
    return any(sign in message for sign in _SIGNS) or _FAILED_ALLOCATION.search(message) is not None


def _may_say_so(message: str) -> bool:
    return any(sign in message for sign in _DOUBTFUL_SIGNS) or _FAILED_PACKAGE.search(message) is not None


def _is_torchs(error: BaseException) -> bool:
    """torch is never imported for the question: an error of its class can only come from where it is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
