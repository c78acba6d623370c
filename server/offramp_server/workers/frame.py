"""How a batch and its outcome lie in a slab: a small packed header, then the tensors at aligned offsets."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from open_inference.tensor import BYTES, DATATYPES, Buffer, Tensor, byte_size

from offramp_server.scheduling.work import Timing
from offramp_server.workers.slab import Slab

# Room for the header: 64 tensors of 16 dimensions need 10 KB.
HEADER_BYTES = 16384
ALIGNMENT = 64
MAX_MESSAGE_BYTES = 8000

# One byte at the end of the header, which no description reaches.
_TAKEN = HEADER_BYTES - 1

# handle, number of tensors
_REQUEST = struct.Struct("<QH")
# 0 ok | 1 failed, number of tensors or bytes of message, total bytes, input, infer and output nanoseconds
_RESPONSE = struct.Struct("<BHQQQQ")
# datatype, number of dimensions, offset, bytes
_TENSOR = struct.Struct("<BBQQ")
_DATATYPE_CODES = {name: code for code, name in enumerate(DATATYPES)}

Parts = Sequence[Buffer]
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker says of one batch. `outputs` are unnamed views of the slab; `error` is None if it went well."""

    outputs: list[Tensor]
    timing: Timing
    error: str | None


def write_request(slab: Slab, handle: int, tensors: Sequence[tuple[Tensor, Parts]]) -> None:
    """Lay out a batch; each tensor's bytes are given in parts that are written side by side."""
    places = _place([sum(map(len, parts)) for _, parts in tensors])
    slab.require(places[-1][1] if places else HEADER_BYTES)
    view = slab.view
    view[_TAKEN] = 0
    _REQUEST.pack_into(view, 0, handle, len(tensors))
    position = _REQUEST.size
    for (tensor, parts), (start, end) in zip(tensors, places, strict=True):
        position = _write_description(view, position, tensor, start, end - start)
        _write_parts(view, start, parts)


def _write_parts(view: memoryview, offset: int, parts: Parts) -> None:
    for part in parts:
        view[offset : offset + len(part)] = part
        offset += len(part)


def read_request(slab: Slab) -> tuple[int, list[Tensor]]:
    """The model's handle and the inputs as unnamed views of the slab. Leaves a mark that they were taken."""
    slab.view[_TAKEN] = 1
    handle, count = _REQUEST.unpack_from(slab.view, 0)
    return handle, _read_tensors(slab, _REQUEST.size, count)


def was_taken(slab: Slab) -> bool:
    """Whether the worker has begun with the batch that was written last."""
    return bool(slab.view[_TAKEN])


def write_outputs(slab: Slab, outputs: Sequence[Tensor], input_ns: int, infer_ns: int, clock: Clock) -> None:
    """Lay out the outputs of a batch over its inputs, which nobody needs any more."""
    started = clock()
    raw = [memoryview(output.data).cast("B") for output in outputs]
    places = _place([len(data) for data in raw])
    total = places[-1][1] if places else HEADER_BYTES
    slab.require(total)
    view = slab.view
    position = _RESPONSE.size
    for output, data, (start, end) in zip(outputs, raw, places, strict=True):
        position = _write_description(view, position, output, start, end - start)
        view[start:end] = data
    _RESPONSE.pack_into(view, 0, 0, len(outputs), total, input_ns, infer_ns, clock() - started)


def write_error(slab: Slab, message: str) -> None:
    text = message.encode(errors="replace")[:MAX_MESSAGE_BYTES]
    _RESPONSE.pack_into(slab.view, 0, 1, len(text), HEADER_BYTES, 0, 0, 0)
    slab.view[_RESPONSE.size : _RESPONSE.size + len(text)] = text


def read_outcome(slab: Slab) -> Outcome:
    """Raises ValueError if what the worker wrote makes no sense: it may be about to crash."""
    failed, count, total, input_ns, infer_ns, output_ns = _RESPONSE.unpack_from(slab.view, 0)
    timing = Timing(input_ns, infer_ns, output_ns)
    if failed:
        text = bytes(slab.view[_RESPONSE.size : _RESPONSE.size + count]).decode(errors="replace")
        return Outcome([], timing, text)
    if total > len(slab.view):
        _remap(slab, total)
    return Outcome(_read_tensors(slab, _RESPONSE.size, count), timing, None)


def _place(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of each tensor behind the header."""
    places = []
    position = HEADER_BYTES
    for size in sizes:
        places.append((position, position + size))
        position = -(-(position + size) // ALIGNMENT) * ALIGNMENT
    return places


def _write_description(view: memoryview, position: int, tensor: Tensor, offset: int, size: int) -> int:
    rank = len(tensor.shape)
    dims = struct.Struct(f"<{rank}q")
    if position + _TENSOR.size + dims.size > _TAKEN:
        raise ValueError(f"too many tensors or dimensions for one batch (header of {HEADER_BYTES} bytes)")
    _TENSOR.pack_into(view, position, _DATATYPE_CODES[tensor.datatype], rank, offset, size)
    dims.pack_into(view, position + _TENSOR.size, *tensor.shape)
    return position + _TENSOR.size + dims.size


def _read_tensors(slab: Slab, position: int, count: int) -> list[Tensor]:
    tensors = []
    for _ in range(count):
        code, rank, offset, size = _TENSOR.unpack_from(slab.view, position)
        shape = struct.unpack_from(f"<{rank}q", slab.view, position + _TENSOR.size)
        position += _TENSOR.size + 8 * rank
        if offset + size > len(slab.view):
            _remap(slab, offset + size)
        tensors.append(_checked(Tensor("", DATATYPES[code], shape, slab.view[offset : offset + size])))
    return tensors


def _checked(tensor: Tensor) -> Tensor:
    if tensor.datatype != BYTES and byte_size(tensor.datatype, tensor.shape) != len(tensor.data):
        raise ValueError(f"{len(tensor.data)} bytes for {tensor.datatype}{list(tensor.shape)}")
    return tensor


def _remap(slab: Slab, size: int) -> None:
    """The other side has grown the file. A size that it has not grown to is nonsense, and must not grow it further."""
    if not slab.covers(size):
        raise ValueError(f"a frame of {size} bytes in a slab that is smaller")
    slab.require(size)
