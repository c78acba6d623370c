"""Does a request fit the model? Decided before it is queued, so that nothing else has to ask again.

Runs for every request on the front end's one thread: what is right passes after a few comparisons, and only what is
wrong is looked at closely.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
from offramp_adapters.routes.held import Held
from offramp_common.text import did_you_mean, quoted
from open_inference.tensor import ITEM_SIZES, Buffer, Tensor, decode_bytes, skip_bytes

from offramp_server.errors import InvalidRequest
from offramp_server.inference import FormedInputs, InferRequest
from offramp_server.model_spec import VARIABLE, TensorSpec

# The shapes of one item of every input, marked where its rows are held by a worker; requests may share a batch only if
# they are equal.
ShapeKey: TypeAlias = tuple[tuple[int, ...], ...]
# What each symbol of the model's shapes stands for in this request, and the input that said so first.
_Symbols: TypeAlias = dict[str, tuple[int, str]]

_BYTES_PREFIX = 4
# That are remembered of one model.
_MOST_FORMS = 256
# At the end of the shape of an input whose rows are held by a worker: no dimension.
_HELD = -2


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a request may bring, whatever the model."""

    max_tensor_bytes: int = 64 * 1024 * 1024
    # Names of models, versions and tensors, request ids and parameter keys. Characters.
    max_name_length: int = 256
    # Inputs, requested outputs, and parameters, each.
    max_entries: int = 256
    max_rank: int = 16
    # Rows of the batch dimension, where a model would take more.
    max_batch_items: int = 4096


@dataclass(slots=True)
class ValidatedInputs:
    """Inputs that fit the model, in the order of its spec."""

    # Rows of the batch dimension; 1 for a model without one.
    items: int
    tensors: Sequence[Tensor]
    shape_key: ShapeKey
    # The worker that holds some of them; empty: all of them are here.
    home: str = ""


class FittingForms:
    """The forms of inputs that were found to fit one model, with the outputs that were wanted of it."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, tuple[str, ...]], tuple[int, ShapeKey]] = {}

    def validated(self, request: InferRequest, validate: Callable[[], ValidatedInputs]) -> ValidatedInputs:
        """What `validate` says of the request and the model, which for most is known."""
        tensors = request.inputs
        if type(tensors) is not FormedInputs:
            return validate()
        key = (tensors.form, tuple(request.outputs))
        known = self._known.get(key)
        if known is not None:
            return ValidatedInputs(known[0], tensors, known[1])
        valid = validate()
        if valid.tensors is tensors:
            # They are in the model's order.
            if len(self._known) >= _MOST_FORMS:
                self._known.clear()
            self._known[key] = valid.items, valid.shape_key
        return valid


def validate(
    request: InferRequest,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch_size: int,
    limits: Limits,
) -> ValidatedInputs:
    """Check a request against a model's spec. `max_batch_size` 0: the model has no batch dimension.

    Raises InvalidRequest with a sentence that says what was expected and what came.
    """
    tensors = _in_spec_order(request.inputs, inputs)
    if request.outputs:
        check_requested(request.outputs, [spec.name for spec in outputs])
    batched = max_batch_size > 0
    items = _items(tensors, inputs, min(max_batch_size, limits.max_batch_items)) if batched else 1
    symbols: _Symbols = {}
    home = ""
    key: list[tuple[int, ...]] = []
    for tensor, spec in zip(tensors, inputs, strict=True):
        item_shape = tensor.shape[1:] if batched else tensor.shape
        if tensor.datatype != spec.datatype:
            _refuse(tensor, spec, batched)
        # A variable dimension equals nothing that may come, but -1 itself must not pass for it.
        if item_shape != spec.dims or VARIABLE in item_shape:
            _check_dims(tensor, item_shape, spec, batched, symbols)
        if isinstance(tensor, Held):
            home = tensor.home
            item_shape = (*item_shape, _HELD)
        else:
            _check_data(tensor, spec, limits)
        key.append(item_shape)
    return ValidatedInputs(items, tensors, tuple(key), home)


def _in_spec_order(tensors: Sequence[Tensor], specs: tuple[TensorSpec, ...]) -> Sequence[Tensor]:
    if len(tensors) == len(specs) and all(
        tensor.name == spec.name for tensor, spec in zip(tensors, specs, strict=True)
    ):
        return tensors
    by_name = {tensor.name: tensor for tensor in tensors}
    known = {spec.name for spec in specs}
    for name in by_name:
        if name not in known:
            raise InvalidRequest(f"the model has no input {quoted(name)}{did_you_mean(name, known)}")
    _check_unique("input", [tensor.name for tensor in tensors])
    missing = [spec for spec in specs if spec.name not in by_name]
    if missing:
        wanted = ", ".join(f"{quoted(spec.name)} ({spec.datatype})" for spec in missing)
        raise InvalidRequest(f"missing input {wanted}: the model takes {len(specs)}, the request has {len(tensors)}")
    return [by_name[spec.name] for spec in specs]


def check_requested(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises InvalidRequest for a wanted output that does not exist, or is wanted twice."""
    for name in names:
        if name not in known:
            raise InvalidRequest(f"the model has no output {quoted(name)}{did_you_mean(name, known)}")
    _check_unique("output", names)


def _check_unique(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        name, count = Counter(names).most_common(1)[0]
        raise InvalidRequest(f"{kind} {quoted(name)} is given {count} times, expected once")


def _items(tensors: Sequence[Tensor], specs: tuple[TensorSpec, ...], max_batch_size: int) -> int:
    """The batch size that all inputs agree on."""
    if not tensors:
        return 1
    first = tensors[0]
    for tensor, spec in zip(tensors, specs, strict=True):
        if not tensor.shape:
            _refuse(tensor, spec, batched=True)
        if tensor.shape[0] != first.shape[0]:
            raise InvalidRequest(
                f"input {quoted(tensor.name)} has batch size {tensor.shape[0]}, "
                f"input {quoted(first.name)} has {first.shape[0]}; expected the same"
            )
    items = first.shape[0]
    if not 0 < items <= max_batch_size:
        raise InvalidRequest(
            f"input {quoted(first.name)}: expected a batch size from 1 to {max_batch_size}, got {items}"
        )
    return items


def _check_dims(
    tensor: Tensor, item_shape: tuple[int, ...], spec: TensorSpec, batched: bool, symbols: _Symbols
) -> None:
    if len(item_shape) != len(spec.dims):
        _refuse(tensor, spec, batched)
    for axis, (size, expected) in enumerate(zip(item_shape, spec.dims, strict=True)):
        if expected == VARIABLE:
            _check_variable(tensor, size, spec, axis, symbols, batched)
        elif size != expected:
            _refuse(tensor, spec, batched)


def _check_variable(tensor: Tensor, size: int, spec: TensorSpec, axis: int, symbols: _Symbols, batched: bool) -> None:
    bounds = spec.ranges[axis] if axis < len(spec.ranges) else None
    # No elements is nothing that a model would expect unless it says so.
    low, high = bounds or (1, None)
    shown_axis = axis + batched
    if size < low or (high is not None and size > high):
        span = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise InvalidRequest(f"input {quoted(tensor.name)}: expected dimension {shown_axis} {span}, got {size}")
    symbol = spec.symbols[axis] if axis < len(spec.symbols) else None
    if symbol is None:
        return
    known, where = symbols.setdefault(symbol, (size, f"input {quoted(tensor.name)}"))
    if known != size:
        raise InvalidRequest(
            f"input {quoted(tensor.name)}: dimension {shown_axis} is {size}, "
            f"but it is {symbol}, which is {known} in {where}; expected the same"
        )


def _check_data(tensor: Tensor, spec: TensorSpec, limits: Limits) -> None:
    length = _length(tensor.data)
    if length > limits.max_tensor_bytes:
        raise InvalidRequest(
            f"input {quoted(tensor.name)} has {length} bytes, this server takes at most {limits.max_tensor_bytes}"
        )
    item_size = ITEM_SIZES.get(tensor.datatype)
    if item_size is None:
        _check_bytes_elements(tensor, length)
        if spec.utf8:
            _check_utf8(tensor)
    elif length != item_size * math.prod(tensor.shape):
        expected = item_size * math.prod(tensor.shape)
        shown = _shown(tensor.datatype, tensor.shape)
        raise InvalidRequest(f"input {quoted(tensor.name)}: {shown} takes {expected} bytes, got {length}")
    elif tensor.datatype == "BOOL":
        _check_bool(tensor)


def _length(data: Buffer) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)


def _check_bytes_elements(tensor: Tensor, length: int) -> None:
    count = math.prod(tensor.shape)
    # Refused before they are walked: a shape may claim more elements than there are bytes.
    if count * _BYTES_PREFIX > length:
        _refuse_elements(tensor, f"which take at least {count * _BYTES_PREFIX} bytes, got {length}")
    try:
        end = skip_bytes(tensor.data, 0, count)
    except ValueError as error:
        _refuse_elements(tensor, f"and {error}")
    if end != length:
        _refuse_elements(tensor, f"which end after {end} bytes, got {length}")


def _check_utf8(tensor: Tensor) -> None:
    """Here and not in the worker, where it would be the failure of a whole batch."""
    for index, element in enumerate(decode_bytes(tensor.data)):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"input {quoted(tensor.name)}: the strings of this model are UTF-8, "
                f"element {index} is not from its byte {error.start} on"
            ) from None


def _refuse_elements(tensor: Tensor, reason: str) -> NoReturn:
    shown = _shown(tensor.datatype, tensor.shape)
    raise InvalidRequest(f"input {quoted(tensor.name)}: {shown} has {math.prod(tensor.shape)} elements, {reason}")


def _check_bool(tensor: Tensor) -> None:
    values = np.frombuffer(tensor.data, dtype=np.uint8)
    # Anything else is undefined behaviour in the libraries that compute with it.
    if values.size and values.max() > 1:
        position = int(np.argmax(values > 1))
        raise InvalidRequest(
            f"input {quoted(tensor.name)}: a BOOL element is a byte 0 or 1, got {values[position]} at {position}"
        )


def _refuse(tensor: Tensor, spec: TensorSpec, batched: bool) -> NoReturn:
    dims = (VARIABLE, *spec.dims) if batched else spec.dims
    raise InvalidRequest(
        f"input {quoted(tensor.name)}: expected {_shown(spec.datatype, dims)}, "
        f"got {_shown(tensor.datatype, tensor.shape)}"
    )


def _shown(datatype: str, shape: Sequence[int]) -> str:
    # Of a datatype that came from outside as much as of our own.
    name = datatype if datatype.isalnum() and len(datatype) <= 16 else quoted(datatype[:16])
    return f"{name}[{','.join(map(str, shape))}]"
