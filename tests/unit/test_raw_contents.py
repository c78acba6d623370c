"""Joining tensors onto a message gives what protobuf itself would read and write."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_inference import raw_contents
from open_inference.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

REQUEST_FIELD = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
RESPONSE_FIELD = ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER


@given(st.lists(st.binary(max_size=300)))
def test_protobuf_reads_what_was_joined(contents: list[bytes]) -> None:
    message = ModelInferRequest(model_name="m", id="1")

    joined = ModelInferRequest.FromString(raw_contents.serialize(message.SerializeToString(), REQUEST_FIELD, contents))

    assert joined == ModelInferRequest(model_name="m", id="1", raw_input_contents=contents)


@given(st.lists(st.binary(max_size=300)))
def test_the_parts_of_a_message_are_what_it_is_joined_of(contents: list[bytes]) -> None:
    message = ModelInferResponse(model_name="m", id="1")

    parts = raw_contents.serialize_in_parts(message.SerializeToString(), RESPONSE_FIELD, contents)
    nested = raw_contents.nest_in_parts(ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER, parts)

    assert b"".join(parts) == raw_contents.serialize(message.SerializeToString(), RESPONSE_FIELD, contents)
    message.raw_output_contents.extend(contents)
    assert ModelStreamInferResponse.FromString(b"".join(nested)) == ModelStreamInferResponse(infer_response=message)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2_100_000])
def test_every_width_of_a_length_prefix_is_right(size: int) -> None:
    joined = raw_contents.serialize(b"", RESPONSE_FIELD, [bytes(size), b"end"])

    assert joined == ModelInferResponse(raw_output_contents=[bytes(size), b"end"]).SerializeToString()


def test_any_buffer_will_do_and_is_counted_in_bytes() -> None:
    array = np.arange(3, dtype=np.float64)

    joined = raw_contents.serialize(b"", REQUEST_FIELD, [array.data, bytearray(b"ab")])

    assert ModelInferRequest.FromString(joined).raw_input_contents == [array.tobytes(), b"ab"]
