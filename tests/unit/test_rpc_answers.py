"""Whatever was answered before: an answer is the bytes of what it says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from offramp_server.inference import InferResponse
from offramp_server.rpc.answers import AnswerWriter
from offramp_server.rpc.codec import ReplyPlan, encode
from offramp_server.transport.handling import joined
from open_inference.grpc_predict_v2_pb2 import ModelInferResponse
from open_inference.tensor import Tensor

NAMES = st.sampled_from(["m", "n", "\u20ac", ""])
TENSORS = st.builds(
    Tensor,
    NAMES,
    st.sampled_from(["FP32", "BYTES", "FP16"]),
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.binary(max_size=5) | st.just(bytes(70_000)),
)
PARAMETERS = st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=3) | st.booleans() | st.integers(0, 9))
RESPONSES = st.builds(InferResponse, NAMES, NAMES, NAMES, st.lists(TENSORS, max_size=2), PARAMETERS)


@given(st.lists(st.tuples(RESPONSES, NAMES, PARAMETERS), max_size=6))
def test_whatever_came_before_an_answer_says_what_it_does_by_itself(
    answers: list[tuple[InferResponse, str, dict[str, str | bool | int]]],
) -> None:
    writer = AnswerWriter()
    for response, id, parameters in (*answers, *answers):
        written = writer.encode(response, ReplyPlan(), id=id, parameters=parameters, endpoint=None)
        expected = encode(response, ReplyPlan(), id=id, parameters=parameters, endpoint=None)
        assert type(written) is type(expected)
        assert read(written) == read(expected)


def read(written: object) -> ModelInferResponse:
    return ModelInferResponse.FromString(joined(written))  # type: ignore[arg-type]


def test_typed_contents_are_written_by_the_rules_for_them() -> None:
    response = InferResponse("m", "1", "", [Tensor("y", "FP32", (1,), bytes(4))])
    written = AnswerWriter().encode(response, ReplyPlan(typed=True), id="", parameters={}, endpoint=None)
    assert list(read(written).outputs[0].contents.fp32_contents) == [0.0]


def test_callers_who_ask_for_ever_new_shapes_fill_no_memory() -> None:
    writer = AnswerWriter()
    for size in range(2000):
        response = InferResponse("m", "1", "", [Tensor("y", "INT8", (size,), bytes(size))])
        writer.encode(response, ReplyPlan(), id="", parameters={}, endpoint=None)
    assert len(writer._known) <= 256
