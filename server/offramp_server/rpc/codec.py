"""ModelInferRequest to InferRequest and InferResponse to ModelInferResponse. Knows messages and bytes, no models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offramp_common.text import quoted
from open_inference import raw_contents
from open_inference.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse
from open_inference.tensor import Buffer, Tensor

from offramp_server.endpoints import EndpointInfo
from offramp_server.errors import InvalidRequest
from offramp_server.inference import InferRequest, InferResponse, ParameterValue
from offramp_server.rpc import classification, contents
from offramp_server.rpc.parameters import count, flag, read_parameter, write_parameters
from offramp_server.rpc.shared_memory import Region, SharedMemory
from offramp_server.rpc.wire import LARGE_MESSAGE, ReceivedRequest
from offramp_server.transport.interface import Parts
from offramp_server.validation import Limits

FINAL_RESPONSE_REQUESTED = "triton_enable_empty_final_response"
_RAW_FIELD = ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_REGION = "shared_memory_region"
_OFFSET = "shared_memory_offset"
_BYTE_SIZE = "shared_memory_byte_size"
_CLASSIFICATION = "classification"
_MAX_ELEMENTS = 2**63 - 1
# Parameters of Triton's that are understood and change nothing here.
_FLAGS = frozenset({"sequence_start", "sequence_end", FINAL_RESPONSE_REQUESTED})
_IGNORED_PREFIX = "binary_data"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where in shared memory an output goes."""

    region: Region
    offset: int
    byte_size: int


@dataclass(slots=True)
class ReplyPlan:
    """What of the request the encoder has to know."""

    # Typed contents came, and go back.
    typed: bool = False
    placements: dict[str, Placement] = field(default_factory=dict)
    # How many classes are wanted instead of all scores, by output.
    classes: dict[str, int] = field(default_factory=dict)


def decode(
    received: ReceivedRequest,
    *,
    deadline: float | None,
    now: float,
    shared_memory: SharedMemory,
    limits: Limits,
) -> tuple[InferRequest, ReplyPlan]:
    """Read a request.

    `deadline` is that of the call and `now` the time, both on the event loop's clock. Raises InvalidRequest, and what
    SharedMemory raises.
    """
    message = received.message
    _check_limits(message, limits)
    plan = ReplyPlan()
    request = InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=received.id,
        inputs=_read_inputs(received, plan, shared_memory, limits),
        deadline=deadline,
    )
    if message.outputs:
        request.outputs = tuple(_read_output(output, plan, shared_memory, limits) for output in message.outputs)
    if message.parameters:
        request.parameters = _read_parameters(message.parameters, request, now, limits)
    return request, plan


def _check_limits(message: ModelInferRequest, limits: Limits) -> None:
    _check_length("model name", message.model_name, limits)
    _check_length("model version", message.model_version, limits)
    _check_length("request id", message.id, limits)
    _check_count("inputs", len(message.inputs), limits)
    _check_count("outputs", len(message.outputs), limits)
    _check_count("parameters", len(message.parameters), limits)


def _check_length(kind: str, name: str, limits: Limits) -> None:
    if len(name) > limits.max_name_length:
        raise InvalidRequest(f"a {kind} has at most {limits.max_name_length} characters, got {len(name)}")


def _check_count(kind: str, count: int, limits: Limits) -> None:
    if count > limits.max_entries:
        raise InvalidRequest(f"a request has at most {limits.max_entries} {kind}, got {count}")


def _read_inputs(
    received: ReceivedRequest, plan: ReplyPlan, shared_memory: SharedMemory, limits: Limits
) -> list[Tensor]:
    raw = received.raw
    unread = iter(raw)
    tensors: list[Tensor] = []
    for tensor in received.message.inputs:
        name = tensor.name
        _check_length("tensor name", name, limits)
        data: Buffer | None
        if tensor.HasField("contents"):
            data = _read_typed(tensor, bool(raw))
            plan.typed = True
        elif _REGION in tensor.parameters:
            data = _read_shared(name, tensor.parameters, shared_memory, limits)
        else:
            # Without raw contents at all this is a typed tensor of no elements.
            data = next(unread, None) if raw else b""
        if data is None:
            raise _wrong_raw_count(received)
        tensors.append(Tensor(name, tensor.datatype, _read_shape(name, tensor.shape, limits), data))
    if next(unread, None) is not None:
        raise _wrong_raw_count(received)
    return tensors


def _read_typed(tensor: Any, raw_sent: bool) -> bytes:
    if raw_sent:
        raise InvalidRequest(
            f"input {quoted(tensor.name)} has typed contents, and the request raw_input_contents as well; "
            "expected the one or the other"
        )
    if _REGION in tensor.parameters:
        raise InvalidRequest(
            f"input {quoted(tensor.name)} has typed contents and shared memory; expected the one or the other"
        )
    return contents.read(tensor.name, tensor.datatype, tensor.contents)


def _wrong_raw_count(received: ReceivedRequest) -> InvalidRequest:
    expected = sum(_REGION not in tensor.parameters for tensor in received.message.inputs)
    return InvalidRequest(
        f"expected an entry of raw_input_contents for each input that is not in shared memory ({expected}), "
        f"got {len(received.raw)}"
    )


def _read_shape(name: str, dims: Sequence[int], limits: Limits) -> tuple[int, ...]:
    if len(dims) > limits.max_rank:
        raise InvalidRequest(f"input {quoted(name)}: expected at most {limits.max_rank} dimensions, got {len(dims)}")
    shape = tuple(dims)
    if shape and min(shape) < 0:
        raise InvalidRequest(f"input {quoted(name)}: expected dimensions from 0, got {min(shape)}")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise InvalidRequest(f"input {quoted(name)}: expected at most 2^63 - 1 elements, the shape says more")
    return shape


def _read_shared(name: str, values: Any, shared_memory: SharedMemory, limits: Limits) -> bytes:
    placement = _read_placement(values, shared_memory)
    # Before it is read: a region may be larger than this process should ever hold.
    if placement.byte_size > limits.max_tensor_bytes:
        raise InvalidRequest(
            f"input {quoted(name)} has {placement.byte_size} bytes, this server takes at most {limits.max_tensor_bytes}"
        )
    return placement.region.read(placement.offset, placement.byte_size)


def _read_placement(values: Any, shared_memory: SharedMemory) -> Placement:
    region = shared_memory.region(str(read_parameter(_REGION, values[_REGION])))
    if _BYTE_SIZE not in values:
        raise InvalidRequest(f"a tensor in shared memory needs the parameter {_BYTE_SIZE}")
    byte_size = count(_BYTE_SIZE, read_parameter(_BYTE_SIZE, values[_BYTE_SIZE]))
    offset = count(_OFFSET, read_parameter(_OFFSET, values[_OFFSET])) if _OFFSET in values else 0
    return Placement(region, offset, byte_size)


def _read_output(output: Any, plan: ReplyPlan, shared_memory: SharedMemory, limits: Limits) -> str:
    name = str(output.name)
    _check_length("tensor name", name, limits)
    values = output.parameters
    if _CLASSIFICATION in values:
        classes = count(_CLASSIFICATION, read_parameter(_CLASSIFICATION, values[_CLASSIFICATION]))
        if classes > 0:
            plan.classes[name] = classes
    if _REGION in values:
        if name in plan.classes:
            raise InvalidRequest(f"output {quoted(name)}: expected shared memory or classification, got both")
        plan.placements[name] = _read_placement(values, shared_memory)
    return name


def _read_parameters(
    values: Mapping[str, Any], request: InferRequest, now: float, limits: Limits
) -> dict[str, ParameterValue]:
    """Take out what concerns every model; the rest is for routes."""
    rest: dict[str, ParameterValue] = {}
    for key, parameter in values.items():
        _check_length("parameter key", key, limits)
        value = read_parameter(key, parameter)
        if key == "priority":
            request.priority = count(key, value)
        elif key == "timeout":
            request.deadline = _earlier(request.deadline, now, count(key, value))
        elif key == "sequence_id":
            _refuse_sequence(value)
        elif key in _FLAGS:
            flag(key, value)
        elif not key.startswith(_IGNORED_PREFIX):
            rest[key] = value
    return rest


def _earlier(deadline: float | None, now: float, timeout_us: int) -> float | None:
    """0 means that the client sets no timeout of its own, as with Triton."""
    if timeout_us == 0:
        return deadline
    own = now + timeout_us / 1e6
    return own if deadline is None else min(own, deadline)


def _refuse_sequence(sequence_id: ParameterValue) -> None:
    if sequence_id not in (0, "", "0"):
        raise InvalidRequest(
            f"sequence_id {quoted(sequence_id)}: models here keep no state between requests; leave sequence_id out"
        )


def encode(
    response: InferResponse,
    plan: ReplyPlan,
    *,
    id: str,
    parameters: Mapping[str, ParameterValue],
    endpoint: EndpointInfo | None,
) -> bytes | Parts:
    """Write an answer: the bytes of a ModelInferResponse; in parts if it is large.

    `id` is the one that the client sent, possibly none; `parameters` are set beside those of the response. `endpoint`
    may be None unless the plan asks for classes. Raises InvalidRequest if an output does not fit its place in shared
    memory or cannot be classified.
    """
    message = ModelInferResponse(model_name=response.model, model_version=response.version, id=id)
    outputs = response.outputs
    if plan.classes and endpoint is not None:
        outputs = [_classified(tensor, plan, response, endpoint) for tensor in outputs]
    # The protocol allows raw contents for all outputs or for none, and FP16 and BF16 have no other form.
    typed = plan.typed and all(tensor.datatype in contents.FIELDS for tensor in outputs)
    raw = [_write_output(message, tensor, plan, typed) for tensor in outputs]
    write_parameters(message.parameters, parameters)
    if response.parameters:
        write_parameters(message.parameters, response.parameters)
    if typed:
        return message.SerializeToString()
    return with_raw(message.SerializeToString(), raw)


def with_raw(before: bytes, raw: Sequence[Buffer]) -> bytes | Parts:
    """`before`: the rest of a ModelInferResponse."""
    if sum(map(len, raw)) >= LARGE_MESSAGE:
        return Parts(raw_contents.serialize_in_parts(before, _RAW_FIELD, raw))
    return raw_contents.serialize(before, _RAW_FIELD, raw)


def _classified(tensor: Tensor, plan: ReplyPlan, response: InferResponse, endpoint: EndpointInfo) -> Tensor:
    count = plan.classes.get(tensor.name)
    if count is None:
        return tensor
    labels = response.labels.get(tensor.name)
    if labels is None:
        labels = next((spec.labels for spec in endpoint.outputs if spec.name == tensor.name), ())
    return classification.classify(tensor, count, labels, batched=endpoint.max_batch_size > 0)


def _write_output(message: Any, tensor: Tensor, plan: ReplyPlan, typed: bool) -> Buffer:
    """Describe an output. Returns its raw contents; empty in shared memory, for clients count entries by position."""
    output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    placement = plan.placements.get(tensor.name) if plan.placements else None
    if placement is not None:
        _write_shared(output, tensor, placement)
        return b""
    if typed:
        contents.write(tensor, output.contents)
    return tensor.data


def _write_shared(output: Any, tensor: Tensor, placement: Placement) -> None:
    size = memoryview(tensor.data).nbytes
    if size > placement.byte_size:
        raise InvalidRequest(
            f"output {quoted(tensor.name)} takes {size} bytes, the shared memory given for it has {placement.byte_size}"
        )
    placement.region.write(placement.offset, tensor.data)
    values: dict[str, ParameterValue] = {_REGION: placement.region.name, _BYTE_SIZE: size}
    if placement.offset:
        values[_OFFSET] = placement.offset
    write_parameters(output.parameters, values)
