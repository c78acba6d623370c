"""Requests of which all but their ids and the elements of their tensors is the same, as it is of most of one client's.

Reading a small request and checking it costs more than all that HTTP/2 does for it. So what comes with it besides is
read once. The next one is compared with that, byte for byte, and only its id and its elements are taken out; what was
found right of the first holds for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from offramp_common.grpc_framing.messages import MessageBytes
from open_inference.grpc_predict_v2_pb2 import ModelInferRequest
from open_inference.tensor import BYTES, ITEM_SIZES, Buffer, Tensor

from offramp_server.inference import FormedInputs, InferRequest
from offramp_server.rpc import wire
from offramp_server.rpc.codec import ReplyPlan, decode
from offramp_server.rpc.shared_memory import SharedMemory
from offramp_server.rpc.wire import LARGE_MESSAGE, OddMessage, ReceivedRequest
from offramp_server.validation import Limits

# For messages of how many sizes there are forms, for one size, and how many bytes one may keep.
_MOST_SIZES, _MOST_OF_ONE_SIZE, _MOST_BYTES = 256, 4, 4096
# Where so many in a row were kept in vain, only one request of so many is looked at for another one.
_VAIN, _ONE_OF = 16, 64
_ID_FIELD = ModelInferRequest.ID_FIELD_NUMBER
# Any bytes are elements of these.
_ANY_BYTES = frozenset(ITEM_SIZES) - {BYTES, "BOOL"}
# Start and end.
_Span: TypeAlias = tuple[int, int]


class _Layout(NamedTuple):
    """Where in a message is what."""

    # Pieces that do not differ, each with where it starts.
    fixed: tuple[tuple[int, bytes], ...]
    # Of (0, 0): there is none.
    id: _Span
    contents: tuple[_Span, ...]


class Form:
    """What requests have in common. Forms are compared by identity."""

    __slots__ = ("_inputs", "_layout", "found", "model", "outputs", "plan", "version")

    def __init__(self, layout: _Layout, request: InferRequest, plan: ReplyPlan) -> None:
        """`request` and `plan` are what became of the first of them."""
        self.model = request.model
        self.version = request.version
        self.outputs = tuple(request.outputs)
        self.plan = plan
        # A second one has come.
        self.found = False
        self._layout = layout
        self._inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]

    def read(self, data: MessageBytes) -> FormedRequest | None:
        """`data` is as long as that of the first. None: it is not of this form."""
        fixed, (start, end), contents = self._layout
        for position, piece in fixed:
            if not data.startswith(piece, position):
                return None
        try:
            id = str(data[start:end], "utf-8") if end else ""
        except UnicodeDecodeError:
            return None
        whole = memoryview(data) if len(data) >= LARGE_MESSAGE else bytes(data)
        return FormedRequest(self, id, [whole[start:end] for start, end in contents])

    def inputs(self, raw: Sequence[Buffer]) -> FormedInputs:
        return FormedInputs([Tensor(*known, data) for known, data in zip(self._inputs, raw, strict=True)], self)


class FormedRequest:
    """One that was not parsed."""

    __slots__ = ("form", "id", "raw")

    def __init__(self, form: Form, id: str, raw: Sequence[Buffer]) -> None:
        self.form = form
        # Its own, or the one that it is given.
        self.id = id
        self.raw = raw

    @property
    def model_name(self) -> str:
        return self.form.model

    @property
    def model_version(self) -> str:
        return self.form.version


Received: TypeAlias = ReceivedRequest | FormedRequest


class RequestReader:
    """Bytes to requests, for all clients. Used on one thread."""

    def __init__(self, shared_memory: SharedMemory, limits: Limits) -> None:
        self._shared_memory = shared_memory
        self._limits = limits
        # By size of the message, the newest first.
        self._forms: dict[int, tuple[Form, ...]] = {}
        # How many were kept since one was found.
        self._vain = 0
        self._misses = 0

    def parse(self, data: MessageBytes) -> Received:
        """Raises protobuf's DecodeError."""
        for form in self._forms.get(len(data), ()):
            request = form.read(data)
            if request is not None:
                if not form.found:
                    form.found, self._vain = True, 0
                return request
        return wire.parse(data)

    def decode(self, received: Received, deadline: float | None, now: float) -> tuple[InferRequest, ReplyPlan]:
        """As `codec.decode` does."""
        if isinstance(received, FormedRequest):
            form = received.form
            inputs = form.inputs(received.raw)
            request = InferRequest(form.model, inputs, form.version, received.id, form.outputs, deadline=deadline)
            return request, form.plan
        request, plan = decode(
            received, deadline=deadline, now=now, shared_memory=self._shared_memory, limits=self._limits
        )
        self._misses += 1
        if self._vain < _VAIN or not self._misses % _ONE_OF:
            self._keep(received, request, plan)
        # Whoever waits for the answer would hold on to it.
        received.data = b""
        return request, plan

    def _keep(self, received: ReceivedRequest, request: InferRequest, plan: ReplyPlan) -> None:
        if not _depends_on_bytes_alone(received):
            return
        layout = _layout(received, self._limits.max_name_length)
        if layout is None:
            return
        self._vain += 1
        size = len(received.data)
        before = self._forms.pop(size, ())
        if len(self._forms) >= _MOST_SIZES:
            del self._forms[next(iter(self._forms))]
        self._forms[size] = (Form(layout, request, plan), *before[: _MOST_OF_ONE_SIZE - 1])


def _depends_on_bytes_alone(received: ReceivedRequest) -> bool:
    """Whether one that differs in its id and elements alone would be read, and found right, as this one was."""
    message = received.message
    if message.parameters or any(output.parameters for output in message.outputs):
        return False
    # An input without elements may come without contents, and is read as one of typed contents.
    return len(received.raw) == len(message.inputs) and all(
        tensor.datatype in _ANY_BYTES and not tensor.parameters and not tensor.HasField("contents")
        for tensor in message.inputs
    )


def _layout(received: ReceivedRequest, most_of_id: int) -> _Layout | None:
    """None: it has none that is worth keeping. `most_of_id`: characters, which are never more than their bytes."""
    data, position = received.data, 0
    fixed: list[tuple[int, bytes]] = []
    ids: list[_Span] = []
    contents: list[_Span] = []
    try:
        for field, _, start, end in wire.fields(data):
            if field in (_ID_FIELD, wire.RAW_FIELD):
                (ids if field == _ID_FIELD else contents).append((start, end))
                fixed.append((position, bytes(data[position:start])))
                position = end
    except OddMessage:
        return None
    if position < len(data):
        fixed.append((position, bytes(data[position:])))
    [start, end], *more = ids or [(0, 0)]
    # What is no string has no number of its own, and would be taken for the id.
    if more or data[start:end] != received.message.id.encode() or end - start > most_of_id:
        return None
    return _Layout(tuple(fixed), (start, end), tuple(contents)) if _size(fixed) <= _MOST_BYTES else None


def _size(pieces: list[tuple[int, bytes]]) -> int:
    return sum(len(piece) for _, piece in pieces)
