"""Whatever was read before: a request is read, refused and checked as if it were the first one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from offramp_server.errors import InvalidRequest
from offramp_server.inference import FormedInputs, InferRequest
from offramp_server.model_spec import TensorSpec
from offramp_server.rpc import wire
from offramp_server.rpc.codec import ReplyPlan, decode
from offramp_server.rpc.forms import FormedRequest, RequestReader
from offramp_server.rpc.shared_memory import SharedMemory, SharedMemorySettings
from offramp_server.validation import FittingForms, Limits, ValidatedInputs, validate
from open_inference.grpc_predict_v2_pb2 import ModelInferRequest
from open_inference.tensor import Tensor

OFF = SharedMemory(SharedMemorySettings())
NOW = 1000.0
INPUTS = (TensorSpec("x", "FP32", (2,)),)
OUTPUTS = (TensorSpec("y", "FP32", (2,)), TensorSpec("z", "FP32", (2,)))


def reader(limits: Limits | None = None) -> RequestReader:
    return RequestReader(OFF, limits or Limits())


def request(data: bytes = b"12345678", id: str = "", model: str = "m", outputs: tuple[str, ...] = ()) -> bytes:
    message = ModelInferRequest(model_name=model, id=id)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    for name in outputs:
        message.outputs.add(name=name)
    message.raw_input_contents.append(data)
    return message.SerializeToString()


def by_itself(data: bytes, limits: Limits | None = None) -> tuple[InferRequest, ReplyPlan] | type[Exception]:
    """As the first one is read."""
    try:
        received = wire.parse(data)
        return decode(received, deadline=5.0, now=NOW, shared_memory=OFF, limits=limits or Limits())
    except (InvalidRequest, DecodeError) as error:
        return type(error)


def by(reader: RequestReader, data: bytes) -> tuple[InferRequest, ReplyPlan] | type[Exception]:
    try:
        return reader.decode(reader.parse(data), 5.0, NOW)
    except (InvalidRequest, DecodeError) as error:
        return type(error)


def is_known(reader: RequestReader, data: bytes) -> bool:
    return isinstance(reader.parse(data), FormedRequest)


def taught(*known: bytes, limits: Limits | None = None) -> RequestReader:
    made = reader(limits)
    for data in known:
        by(made, data)
    return made


@pytest.mark.parametrize("size", [8, 600_000], ids=["small", "large"])
def test_the_second_of_a_form_is_not_parsed_again(size: int) -> None:
    first, second = request(b"1" * size, id="one", outputs=("y",)), request(b"2" * size, id="two", outputs=("y",))
    made = taught(first)
    assert is_known(made, second)
    assert by(made, second) == by_itself(second)


def test_an_id_that_is_given_by_the_server_stays_with_its_request() -> None:
    made = taught(request(b"1" * 8))
    one, other = made.parse(request(b"2" * 8)), made.parse(request(b"3" * 8))
    one.id = "given"
    assert not other.id
    assert made.decode(one, None, NOW)[0].id == "given"
    assert (one.model_name, one.model_version) == ("m", "")


@pytest.mark.parametrize(
    "other",
    [
        request(model="n"),
        request(id="i"),
        request(b"123456789"),
        request(outputs=("y",)),
        request().replace(b"FP32", b"UINT"),
    ],
    ids=["model", "id", "more data", "outputs", "datatype"],
)
def test_whatever_differs_makes_another_form(other: bytes) -> None:
    made = taught(request())
    assert not is_known(made, other)
    assert by(made, other) == by_itself(other)


@pytest.mark.parametrize("again", [False, True], ids=["parsed", "formed"])
def test_a_request_that_waits_holds_its_tensors_and_nothing_more(again: bool) -> None:
    made = taught(*[request(bytes(10_000))] * again)
    received = made.parse(bytearray(request(bytes(10_000))))
    made.decode(received, None, NOW)
    held = [getattr(received, name, b"") for name in ("data", "raw")]
    assert len(held[0]) == 0
    assert sum(map(len, held[1])) == 10_000


def test_two_models_whose_requests_are_as_long_do_not_disturb_each_other() -> None:
    made = taught(request(model="m"), request(model="n"))
    assert is_known(made, request(b"abcdefgh", model="m"))
    assert is_known(made, request(b"abcdefgh", model="n"))


def _with_parameter() -> ModelInferRequest:
    message = ModelInferRequest.FromString(request())
    message.parameters["timeout"].int64_param = 5
    return message


def _typed() -> ModelInferRequest:
    message = ModelInferRequest.FromString(request())
    message.ClearField("raw_input_contents")
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    return message


def _of(datatype: str) -> ModelInferRequest:
    message = ModelInferRequest.FromString(request())
    message.inputs[0].datatype = datatype
    return message


def _without_elements() -> ModelInferRequest:
    message = ModelInferRequest.FromString(request())
    message.ClearField("raw_input_contents")
    return message


def _placed() -> ModelInferRequest:
    message = ModelInferRequest.FromString(request(outputs=("y",)))
    message.outputs[0].parameters["classification"].int64_param = 1
    return message


@pytest.mark.parametrize(
    "message",
    [_with_parameter(), _typed(), _without_elements(), _of("BYTES"), _of("BOOL"), _placed()],
    ids=["parameters", "typed", "no elements", "strings", "booleans", "output's parameters"],
)
def test_what_depends_on_more_than_its_form_is_always_read(message: ModelInferRequest) -> None:
    data = message.SerializeToString()
    assert not is_known(taught(data), data)


def test_what_was_refused_is_refused_again() -> None:
    limits = Limits(max_name_length=4)
    made = taught(request(id="12345"), limits=limits)
    assert by(made, request(id="54321")) is InvalidRequest


def test_an_id_may_not_become_longer_than_is_allowed() -> None:
    """Four characters that take twelve bytes, and then twelve that take as many."""
    limits = Limits(max_name_length=4)
    made = taught(request(id="\u20ac" * 4), limits=limits)
    assert by(made, request(id="123456789012")) is InvalidRequest


def test_an_id_that_is_no_text_does_not_parse() -> None:
    made = taught(request(id="abcd"))
    assert by(made, request(id="abcd").replace(b"abcd", b"ab\xff\xff")) is DecodeError


def test_no_number_is_taken_for_an_id() -> None:
    """Field 3 as a varint is a field that nobody knows."""
    data = request() + b"\x18\x05"
    made = taught(data)
    assert by(made, data) == by_itself(data)


def test_forms_that_nobody_uses_again_are_soon_not_kept_any_more() -> None:
    made = reader()
    sizes = range(4, 400, 4)
    for size in sizes:
        by(made, request(bytes(size)))
    kept = sum(is_known(made, request(bytes(size))) for size in sizes)
    assert 16 <= kept <= 20


def test_one_that_is_used_again_is_kept_even_so() -> None:
    made = taught(*(request(bytes(size)) for size in range(4, 400, 4)))
    often = request(b"12345678", id="often")
    for _ in range(64):
        by(made, often)
    assert is_known(made, often)


def test_no_more_than_so_many_are_kept() -> None:
    made = reader()
    for size in range(4, 4000, 4):
        for _ in range(2):
            by(made, request(bytes(size)))
    assert len(made._forms) <= 256
    assert is_known(made, request(bytes(3996)))


_IDS = st.sampled_from(["", "a", "b", "ab", "\u20ac", "abc"])
_NAMES = st.sampled_from(["x", "y", "yy", ""])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    message = ModelInferRequest(model_name=draw(_NAMES), model_version=draw(_IDS), id=draw(_IDS))
    for _ in range(draw(st.integers(0, 2))):
        datatype = draw(st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "what"]))
        message.inputs.add(name=draw(_NAMES), datatype=datatype, shape=draw(st.lists(st.integers(-1, 3), max_size=2)))
        if draw(st.booleans()):
            message.raw_input_contents.append(draw(st.binary(max_size=4)))
    for _ in range(draw(st.integers(0, 1))):
        message.outputs.add(name=draw(_NAMES))
    if draw(st.booleans()):
        message.raw_input_contents.append(draw(st.binary(max_size=2)))
    data = message.SerializeToString()
    for _ in range(draw(st.integers(0, 1))):
        # A byte that is another one, or one that is missing.
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data = data[:at] + draw(st.binary(max_size=1)) + data[at + 1 :]
    return data + draw(st.sampled_from([b"", b"", b"\x1a\x01q", b"\x18\x05", b"\x78\x01"]))


@given(st.lists(messages(), max_size=8))
def test_whatever_came_before_a_request_is_read_as_by_itself(requests: list[bytes]) -> None:
    made = reader()
    for data in (*requests, *requests):
        assert by(made, data) == by_itself(data)


@given(st.lists(st.sampled_from([b"", b"\x1a\x01a", b"\x1a\x01b", b"\x18\x05", b"\x18\x06", b"\x3a\x01q"]), max_size=4))
def test_odd_fields_behind_a_request_are_read_as_by_themselves(tails: list[bytes]) -> None:
    made = reader()
    for tail in (*tails, *tails):
        data = request() + tail
        assert by(made, data) == by_itself(data)


# What fits


def formed(form: object, *names: str, outputs: tuple[str, ...] = (), shape: tuple[int, ...] = (1, 2)) -> InferRequest:
    tensors = [Tensor(name, "FP32", shape, b"12345678") for name in names]
    return InferRequest("m", FormedInputs(tensors, form), outputs=outputs)


def fit(forms: FittingForms, request: InferRequest, inputs: tuple[TensorSpec, ...] = INPUTS) -> ValidatedInputs:
    return forms.validated(request, lambda: validate(request, inputs, OUTPUTS, 8, Limits()))


def test_a_form_that_fits_is_not_looked_at_again() -> None:
    forms, form = FittingForms(), object()
    first = fit(forms, formed(form, "x"))
    # No longer true, which nobody asks.
    assert fit(forms, formed(form, "wrong")) == replace(first, tensors=[Tensor("wrong", "FP32", (1, 2), b"12345678")])


def test_what_is_wanted_of_it_is_looked_at_each_time() -> None:
    forms, form = FittingForms(), object()
    fit(forms, formed(form, "x", outputs=("y",)))
    fit(forms, formed(form, "x", outputs=("z",)))
    with pytest.raises(InvalidRequest, match="no output"):
        fit(forms, formed(form, "x", outputs=("w",)))


def test_a_form_that_does_not_fit_is_refused_each_time() -> None:
    forms, form = FittingForms(), object()
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            fit(forms, formed(form, "x", shape=(1, 3)))


def test_inputs_in_another_order_come_in_the_models() -> None:
    two = (*INPUTS, TensorSpec("w", "FP32", (2,)))
    forms, form = FittingForms(), object()
    for _ in range(2):
        asked = formed(form, "w", "x")
        found = fit(forms, asked, two)
        assert found == validate(asked, two, OUTPUTS, 8, Limits())
        assert [tensor.name for tensor in found.tensors] == ["x", "w"]


def test_other_inputs_of_the_same_request_are_checked() -> None:
    """As a route that asks a model for something else makes them."""
    forms, form = FittingForms(), object()
    asked = formed(form, "x")
    fit(forms, asked)
    with pytest.raises(InvalidRequest):
        fit(forms, replace(asked, inputs=[Tensor("x", "FP32", (1, 3), b"12345678")]))
