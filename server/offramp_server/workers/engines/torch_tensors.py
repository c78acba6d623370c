"""Between the bytes on the wire and torch tensors, without a copy wherever that is safe."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from types import MappingProxyType

import numpy as np
import torch
from open_inference.tensor import BF16, NUMPY_TYPES, Buffer, Tensor

TORCH_TYPES = MappingProxyType(
    {
        "BOOL": torch.bool,
        "UINT8": torch.uint8,
        "UINT16": torch.uint16,
        "UINT32": torch.uint32,
        "UINT64": torch.uint64,
        "INT8": torch.int8,
        "INT16": torch.int16,
        "INT32": torch.int32,
        "INT64": torch.int64,
        "FP16": torch.float16,
        "FP32": torch.float32,
        "FP64": torch.float64,
        "BF16": torch.bfloat16,
    }
)
# Below this a copy costs less than the question whose memory it is.
SMALL_BYTES = 64 * 1024

_DATATYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def from_wire(tensor: Tensor, copy: bool) -> torch.Tensor:
    """A CPU tensor over the wire's memory, or over a copy of it if `copy` is set or the memory is read-only."""
    data = memoryview(tensor.data)
    # torch has no read-only tensors and warns about memory that it could write to by mistake.
    writable = bytearray(data) if copy or data.readonly else data
    # By way of numpy, which gives a buffer its type and shape in one step; torch.frombuffer needs three.
    values = torch.from_numpy(np.ndarray(tensor.shape, NUMPY_TYPES[tensor.datatype], writable))
    return values.view(torch.bfloat16) if tensor.datatype == BF16 else values


def to_wire(tensor: torch.Tensor, weights: Addresses, inputs: Iterable[torch.Tensor]) -> Buffer:
    """The bytes of a CPU tensor, which are not in the memory of the weights or of the (contiguous) inputs."""
    # The one lazy form that a real tensor can have is resolved too.
    tensor = tensor.resolve_neg().contiguous()
    size = tensor.nbytes
    if size <= SMALL_BYTES:
        return ctypes.string_at(tensor.data_ptr(), size)
    if weights.hold(tensor) or any(_starts_in(tensor, other) for other in inputs):
        tensor = tensor.clone()
    # A view, which keeps the tensor alive. numpy has no BF16.
    values = tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor
    return values.numpy().data.cast("B")


class Addresses:
    """The memory of some tensors, to ask whether another one is a view of it."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = [tensor.untyped_storage() for tensor in tensors]
        ranges = sorted((storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages)
        self._starts = [start for start, _ in ranges]
        # Storages may lie in one another, in one file that is mapped into memory.
        self._ends = list(accumulate((end for _, end in ranges), max))

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor, which has elements, starts in this memory."""
        address = tensor.data_ptr()
        below = bisect_right(self._starts, address)
        return below > 0 and address < self._ends[below - 1]


def _starts_in(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    # By addresses: torch makes a Python object of a storage when it is asked for one, which takes 5 us.
    start = other.data_ptr()
    return start <= tensor.data_ptr() < start + other.nbytes


def datatype_of(tensor: torch.Tensor) -> str:
    """The protocol's name, or torch's own name for a type that the protocol does not have."""
    return _DATATYPES.get(tensor.dtype, str(tensor.dtype))
