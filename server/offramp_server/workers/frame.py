"""How a batch and its outcome lie in a slab: a small packed header, then the tensors at aligned offsets."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offramp_adapters.routes.held import Held
from open_inference.tensor import BYTES, DATATYPES, Buffer, Tensor, byte_size

from offramp_server.scheduling.held import Keep
from offramp_server.scheduling.work import Timing
from offramp_server.workers.kept import HeldInput, pack_places, places_of, unpack_places
from offramp_server.workers.slab import Slab

# Room for the header: 64 tensors of 16 dimensions need 10 KB.
HEADER_BYTES = 16384
ALIGNMENT = 64
MAX_MESSAGE_BYTES = 8000

# One byte at the end of the header, which no description reaches.
_TAKEN = HEADER_BYTES - 1

# handle, number of tensors; of what is kept: number, outputs, those copied; batches whose outputs are let go of, offset
_REQUEST = struct.Struct("<QHQQQHQ")
# 0 ok | 1 failed, number of tensors or bytes of message, times cut for want of memory, total bytes, input, infer and
# output nanoseconds
_RESPONSE = struct.Struct("<BHHQQQQ")
_MAX_SPLITS = 0xFFFF
# datatype, number of dimensions, offset, bytes
_TENSOR = struct.Struct("<BBQQ")
_DATATYPE_CODES = {name: code for code, name in enumerate(DATATYPES)}
# Beside the datatype of a tensor that is, or stays, with the worker: there are places instead of elements, or nothing.
_HELD = 0x80
_NUMBER = struct.Struct("<Q")
# Further ones wait for the next batch.
MAX_RELEASES = 4096

Parts = Sequence[Buffer]
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker says of one batch. `outputs` are unnamed views of the slab; `error` is None if it went well."""

    outputs: list[Tensor]
    timing: Timing
    error: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker is to compute. `inputs` are unnamed: views of the slab, or `HeldInput`."""

    handle: int
    inputs: list[Tensor]
    keep: Keep | None
    # Numbers of batches whose outputs are not needed any more, by this one neither.
    released: Sequence[int]


def write_request(
    slab: Slab,
    handle: int,
    tensors: Sequence[tuple[Tensor, Sequence[Tensor]]],
    keep: Keep | None = None,
    released: Sequence[int] = (),
) -> None:
    """Lay out a batch. Each tensor's bytes are those of its parts, side by side; of a `Held` it is the places of its
    rows."""
    parts_of = [_bytes_of(tensor, parts) for tensor, parts in tensors]
    places = _place([*(sum(map(len, parts)) for parts in parts_of), _NUMBER.size * len(released)])
    slab.require(places[-1][1])
    view = slab.view
    view[_TAKEN] = 0
    kept = (0, 0, 0) if keep is None else (keep.number, keep.outputs, keep.copied)
    *tensor_places, (numbers, _) = places
    _REQUEST.pack_into(view, 0, handle, len(tensors), *kept, len(released), numbers)
    position = _REQUEST.size
    for (tensor, _), parts, (start, end) in zip(tensors, parts_of, tensor_places, strict=True):
        position = _write_description(view, position, tensor, start, end - start, isinstance(tensor, Held))
        _write_parts(view, start, parts)
    for number in released:
        _NUMBER.pack_into(view, numbers, number)
        numbers += _NUMBER.size


def _bytes_of(tensor: Tensor, parts: Sequence[Tensor]) -> Parts:
    return [pack_places(places_of(tensor))] if isinstance(tensor, Held) else [part.data for part in parts]


def _write_parts(view: memoryview, offset: int, parts: Parts) -> None:
    for part in parts:
        view[offset : offset + len(part)] = part
        offset += len(part)


def read_request(slab: Slab) -> Request:
    """Leaves a mark that it was taken."""
    slab.view[_TAKEN] = 1
    handle, count, number, outputs, copied, released, offset = _REQUEST.unpack_from(slab.view, 0)
    keep = Keep(number, outputs, copied) if number else None
    inputs = _read_tensors(slab, _REQUEST.size, count)
    numbers: Sequence[int] = ()
    if released:
        if offset + released * _NUMBER.size > len(slab.view):
            _remap(slab, offset + released * _NUMBER.size)
        numbers = struct.unpack_from(f"<{released}Q", slab.view, offset)
    return Request(handle, inputs, keep, numbers)


def was_taken(slab: Slab) -> bool:
    """Whether the worker has begun with the batch that was written last."""
    return bool(slab.view[_TAKEN])


def write_outputs(
    slab: Slab,
    outputs: Sequence[Tensor],
    input_ns: int,
    infer_ns: int,
    clock: Clock,
    only_kept: int = 0,
    splits: int = 0,
) -> None:
    """Lay out the outputs of a batch over its inputs, which nobody needs any more. `only_kept`: a bit for each output
    that does not travel. `splits`: how often the batch was cut in two for want of memory."""
    started = clock()
    stays = [bool(only_kept >> at & 1) for at in range(len(outputs))]
    raw = [memoryview(b"" if held else output.data).cast("B") for output, held in zip(outputs, stays, strict=True)]
    places = _place([len(data) for data in raw])
    total = places[-1][1] if places else HEADER_BYTES
    slab.require(total)
    view = slab.view
    position = _RESPONSE.size
    for output, data, held, (start, end) in zip(outputs, raw, stays, places, strict=True):
        position = _write_description(view, position, output, start, end - start, held)
        view[start:end] = data
    splits = min(splits, _MAX_SPLITS)
    _RESPONSE.pack_into(view, 0, 0, len(outputs), splits, total, input_ns, infer_ns, clock() - started)


def write_error(slab: Slab, message: str) -> None:
    text = message.encode(errors="replace")[:MAX_MESSAGE_BYTES]
    _RESPONSE.pack_into(slab.view, 0, 1, len(text), 0, HEADER_BYTES, 0, 0, 0)
    slab.view[_RESPONSE.size : _RESPONSE.size + len(text)] = text


def read_outcome(slab: Slab) -> Outcome:
    """Raises ValueError if what the worker wrote makes no sense: it may be about to crash."""
    failed, count, splits, total, input_ns, infer_ns, output_ns = _RESPONSE.unpack_from(slab.view, 0)
    timing = Timing(input_ns, infer_ns, output_ns, splits)
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


def _write_description(view: memoryview, position: int, tensor: Tensor, offset: int, size: int, held: bool) -> int:
    rank = len(tensor.shape)
    dims = struct.Struct(f"<{rank}q")
    if position + _TENSOR.size + dims.size > _TAKEN:
        raise ValueError(f"too many tensors or dimensions for one batch (header of {HEADER_BYTES} bytes)")
    code = _DATATYPE_CODES[tensor.datatype] | (_HELD if held else 0)
    _TENSOR.pack_into(view, position, code, rank, offset, size)
    dims.pack_into(view, position + _TENSOR.size, *tensor.shape)
    return position + _TENSOR.size + dims.size


def _read_tensors(slab: Slab, position: int, count: int) -> list[Tensor]:
    tensors: list[Tensor] = []
    for _ in range(count):
        code, rank, offset, size = _TENSOR.unpack_from(slab.view, position)
        shape = struct.unpack_from(f"<{rank}q", slab.view, position + _TENSOR.size)
        position += _TENSOR.size + 8 * rank
        if offset + size > len(slab.view):
            _remap(slab, offset + size)
        data = slab.view[offset : offset + size]
        datatype = DATATYPES[code & ~_HELD]
        if code & _HELD:
            tensors.append(HeldInput("", datatype, shape, b"", unpack_places(data)))
        else:
            tensors.append(_checked(Tensor("", datatype, shape, data)))
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
