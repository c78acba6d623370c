"""What `classify` sends, how it reads answers, and what it says of models that cannot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offramp_client import Classification, ClassifyOptions, ClassScore, InvalidArgument, errors
from offramp_client._plans import Done, Outcome, Pause, Planner, Send, proceed
from offramp_client.classification import read_items
from offramp_client.metadata import ModelConfig
from offramp_client.pictures import encoded
from offramp_client.retry import RetryPolicy
from open_inference import grpc_predict_v2_pb2 as pb
from open_inference.tensor import BYTES, decode_bytes, encode_bytes
from pictures import encoded as png
from pictures import gradient
from PIL import Image

TEXT, FP32 = 13, 11


def config(**changes: Any) -> pb.ModelConfigResponse:
    """A model that takes texts and labels its answers."""
    found = {
        "name": "m", "batch": 4, "inputs": [("text", TEXT, [1])], "outputs": ["logits"],
        "parameters": {"preprocess": "text", "labels.logits": '["bad", "good"]'}, **changes,
    }  # fmt: skip
    response = pb.ModelConfigResponse()
    response.config.name, response.config.max_batch_size = found["name"], found["batch"]
    for name, data_type, dims in found["inputs"]:
        response.config.input.add(name=name, data_type=data_type, dims=dims)
    for name in found["outputs"]:
        response.config.output.add(name=name, data_type=FP32, dims=[2])
    for key, value in found["parameters"].items():
        response.config.parameters[key].string_value = value
    return response


def answer(*rows: list[str], output: str = "logits", version: str = "3") -> pb.ModelInferResponse:
    elements = [element for row in rows for element in row]
    response = pb.ModelInferResponse(
        model_name="m", model_version=version, raw_output_contents=[encode_bytes(elements)]
    )
    response.outputs.add(name=output, datatype=BYTES, shape=[len(rows), len(rows[0])])
    response.parameters["offramp_route"].string_param = "single"
    return response


class Wire:
    """Answers with what it is told to, one after the other, and keeps what was sent."""

    def __init__(self, *script: pb.ModelConfigResponse | pb.ModelInferResponse | errors.OfframpError) -> None:
        self._script = list(script)
        self._planner = Planner(10.0, RetryPolicy(), lambda: 0.0, lambda: 0.0)
        self.configs = 0
        self.requests: list[Any] = []

    def classify(
        self, model: str = "m", text: Any = None, image: Any = None, **options: Any
    ) -> Classification | list[Classification]:
        items = read_items(text, image)
        plan = self._planner.classify(model, items, ClassifyOptions(**options))  # type: ignore[typeddict-item]
        step = proceed(plan, None)
        while not isinstance(step, Done):
            step = proceed(plan, self._send(step))
        return step.result[0] if items.single else step.result

    def _send(self, step: Send | Pause) -> Outcome:
        assert isinstance(step, Send)
        if step.method.path.endswith("/ModelConfig"):
            self.configs += 1
        else:
            self.requests.append(pb.ModelInferRequest.FromString(step.payload))
        told = self._script.pop(0)
        return told if isinstance(told, errors.OfframpError) else told.SerializeToString()

    def sent(self) -> list[bytes]:
        return [element for request in self.requests for element in decode_bytes(request.raw_input_contents[0])]


# What is answered


def test_one_text_gives_one_answer_with_its_best_classes() -> None:
    wire = Wire(config(), answer(["2.5:1:good", "-1.25:0:bad"]))
    found = wire.classify(text="a good film", top_k=2)
    assert isinstance(found, Classification)
    assert found.classes == (ClassScore("good", 2.5, 1), ClassScore("bad", -1.25, 0))
    assert (found.label, found.score, found.index) == ("good", 2.5, 1)
    assert [score.label for score in found] == ["good", "bad"]
    assert (found.model_name, found.model_version, found.output, found.path.route) == ("m", "3", "logits", "single")
    [request] = wire.requests
    assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [("text", "BYTES", [1, 1])]
    assert wire.sent() == [b"a good film"]
    [output] = request.outputs
    assert (output.name, output.parameters["classification"].int64_param) == ("logits", 2)


def test_a_list_of_texts_gives_a_list_of_answers() -> None:
    wire = Wire(config(), answer(["1:1:good"], ["2:0:bad"]))
    found = wire.classify(text=["ja", "nein"])
    assert isinstance(found, list)
    assert [item.label for item in found] == ["good", "bad"]
    assert len(Wire(config(), answer(["1:1:good"])).classify(text=("one",))) == 1  # type: ignore[arg-type]


def test_a_list_that_is_longer_than_a_batch_goes_in_several_requests() -> None:
    wire = Wire(config(batch=2), answer(["1:0:a"], ["2:0:b"]), answer(["3:0:c"], ["4:0:d"]), answer(["5:0:e"]))
    found = wire.classify(text=list("abcde"))
    assert isinstance(found, list)
    assert [item.label for item in found] == list("abcde")
    assert [list(request.inputs[0].shape) for request in wire.requests] == [[2, 1], [2, 1], [1, 1]]


def test_a_model_without_a_batch_dimension_gets_one_at_a_time() -> None:
    one = answer(["1:0:a"])
    one.outputs[0].ClearField("shape")
    one.outputs[0].shape.append(1)
    wire = Wire(config(batch=0), one, one)
    assert len(wire.classify(text=["a", "b"])) == 2  # type: ignore[arg-type]
    assert [list(request.inputs[0].shape) for request in wire.requests] == [[1], [1]]


def test_a_class_without_a_name_goes_by_its_number_and_a_name_may_have_colons() -> None:
    found = Wire(config(), answer(["1.5:7", "1.0:3:at 10:30"])).classify(text="x")
    assert [(score.label, score.index) for score in found] == [("7", 7), ("at 10:30", 3)]


def test_the_server_is_asked_once_how_a_model_takes_items() -> None:
    wire = Wire(config(), answer(["1:0:a"]), answer(["1:0:a"]))
    wire.classify(text="a")
    wire.classify(text="b")
    assert wire.configs == 1


def test_it_is_asked_again_after_a_request_that_did_not_fit() -> None:
    wire = Wire(config(), InvalidArgument("too many"), config(), answer(["1:0:a"]))
    with pytest.raises(InvalidArgument, match=r"^too many$"):
        wire.classify(text="a")
    wire.classify(text="a")
    assert wire.configs == 2


def test_an_item_of_a_further_request_can_be_found() -> None:
    wire = Wire(config(batch=2), answer(["1:0:a"], ["2:0:b"]), InvalidArgument("item 1: expected UTF-8"))
    with pytest.raises(InvalidArgument, match="items from number 2 on, which is item 0 here: item 1: expected UTF-8"):
        wire.classify(text=["a", "b", "c", "d"])


def test_arguments_travel_as_with_infer() -> None:
    wire = Wire(
        config(parameters={"preprocess": "text", "zero_shot": "[]", "labels.logits": '["a"]'}), answer(["1:0:ä"])
    )
    wire.classify(text="x", labels=["ä", "b"], version="7", priority=3, request_id="r", unit="u", route="model:x")
    [request] = wire.requests
    parameters = request.parameters
    assert json.loads(parameters["offramp_labels"].string_param) == ["ä", "b"]
    assert (request.model_version, request.id, parameters["priority"].uint64_param) == ("7", "r", 3)
    assert (parameters["offramp_unit"].string_param, parameters["offramp_route"].string_param) == ("u", "model:x")


# Which output


@pytest.mark.parametrize(
    ("outputs", "labelled", "chosen"),
    [
        (["logits"], [], "logits"),
        (["embedding", "logits"], ["logits"], "logits"),
        (["logits", "probabilities"], ["logits", "probabilities"], "probabilities"),
        (["logits", "probabilities"], [], "probabilities"),
    ],
)
def test_scores_come_from_the_output_that_is_meant(outputs: list[str], labelled: list[str], chosen: str) -> None:
    parameters = {"preprocess": "text", **{f"labels.{name}": '["a", "b"]' for name in labelled}}
    wire = Wire(config(outputs=outputs, parameters=parameters), answer(["1:0:a"], output=chosen))
    found = wire.classify(text="x")
    assert isinstance(found, Classification)
    assert found.output == chosen


def test_an_output_may_be_chosen() -> None:
    wire = Wire(config(outputs=["a", "b"]), answer(["1:0:x"], output="b"))
    wire.classify(text="x", output="b")
    with pytest.raises(InvalidArgument, match='model "m" has no output "c", only a, b'):
        Wire(config(outputs=["a", "b"])).classify(text="x", output="c")


def test_outputs_that_nothing_is_known_of_are_not_guessed_at() -> None:
    wire = Wire(config(outputs=["a", "b"], parameters={"preprocess": "text"}))
    with pytest.raises(
        InvalidArgument, match='has several outputs; say which holds the classes: output="a" or output="b"'
    ):
        wire.classify(text="x")


# Models that cannot


def test_a_model_that_takes_tensors_says_what_it_lacks() -> None:
    wire = Wire(config(inputs=[("image", FP32, [1, 28, 28])], parameters={}))
    with pytest.raises(InvalidArgument) as caught:
        wire.classify(image=b"png")
    assert str(caught.value) == (
        'model "m" takes image: FP32[1,28,28], not pictures: its model.toml needs a [preprocess] table for image; '
        "or send tensors with infer()"
    )


def test_text_is_not_sent_to_a_model_that_takes_pictures() -> None:
    wire = Wire(config(parameters={"preprocess": "image"}))
    with pytest.raises(InvalidArgument, match=r'^model "m" takes pictures, not text$'):
        wire.classify(text="x")


def test_a_model_of_another_server_that_takes_bytes_is_tried() -> None:
    wire = Wire(config(parameters={}, inputs=[("INPUT", TEXT, [-1])]), answer(["1:0:a"]))
    wire.classify(text="x")
    assert list(wire.requests[0].inputs[0].shape) == [1, 1]


def test_labels_are_not_sent_to_a_model_that_has_its_own() -> None:
    with pytest.raises(
        InvalidArgument, match=r'model "m" has labels of its own; labels= is for models with a \[zero_shot\]'
    ):
        Wire(config()).classify(text="x", labels=["a", "b"])


@pytest.mark.parametrize("element", ["", "x:0:a", "1", "1:b"])
def test_an_answer_in_another_form_is_the_server_s_fault(element: str) -> None:
    with pytest.raises(errors.ProtocolError, match='a class is "score:index:label"'):
        Wire(config(), answer([element])).classify(text="x")


def test_an_answer_of_plain_scores_is_the_server_s_fault() -> None:
    plain = pb.ModelInferResponse(raw_output_contents=[np.zeros(2, np.float32).tobytes()])
    plain.outputs.add(name="logits", datatype="FP32", shape=[1, 2])
    with pytest.raises(errors.ProtocolError, match="the server lacks the classification extension"):
        Wire(config(), plain).classify(text="x")


# What can be sent


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({}, ValueError, "give either text= or image="),
        ({"text": "a", "image": b"b"}, ValueError, "give either text= or image="),
        ({"text": []}, ValueError, "nothing to classify, the list is empty"),
        ({"text": b"bytes"}, TypeError, "text= takes str, or a list of them; got bytes"),
        ({"text": ["a", 3]}, TypeError, "got int"),
        ({"text": "a", "top_k": 0}, ValueError, "top_k is 1 or more, got 0"),
        ({"image": 3}, TypeError, "got int"),
        ({"image": "/nowhere/at/all.png"}, OSError, "No such file"),
        ({"image": np.zeros((2, 2), np.float32)}, ValueError, "an array of pixels is uint8 .* got float32"),
        ({"image": np.zeros((2, 2, 2, 3), np.uint8)}, ValueError, "several pictures go into a list"),
        ({"image": np.zeros((2, 2, 2), np.uint8)}, ValueError, "pixels have 1, 3 or 4 channels, got 2"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    arguments: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    wire = Wire()
    with pytest.raises(kind, match=sentence):
        wire.classify(**arguments)


def test_a_single_string_is_no_list_of_labels() -> None:
    zero_shot = config(parameters={"preprocess": "text", "zero_shot": "[]", "labels.logits": '["a"]'})
    with pytest.raises(TypeError, match="labels= takes a list of labels, got a single str"):
        Wire(zero_shot).classify(text="x", labels="ab")


def test_pictures_may_be_files_or_pixels_or_pillow_s(tmp_path: Path) -> None:
    file = png(gradient(3, 4))
    (tmp_path / "picture.png").write_bytes(file)
    assert encoded(file) == encoded(bytearray(file)) == encoded(memoryview(file)) == file
    assert encoded(tmp_path / "picture.png") == encoded(str(tmp_path / "picture.png")) == file
    picture = Image.open(io.BytesIO(encoded(Image.fromarray(gradient(3, 4)))))
    np.testing.assert_array_equal(np.asarray(picture), gradient(3, 4))


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_pixels_travel_without_loss(channels: int | None) -> None:
    pixels = gradient(5, 7, channels)
    picture = Image.open(io.BytesIO(encoded(pixels)))
    picture.load()
    assert picture.mode == {None: "L", 1: "L", 3: "RGB", 4: "RGBA"}[channels]
    np.testing.assert_array_equal(np.asarray(picture).reshape(pixels.shape), pixels)
    # Not laid out one after the other in memory.
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(encoded(pixels[:, ::-1])))).reshape(pixels.shape), pixels[:, ::-1]
    )


# What a server tells of a model


def test_labels_and_provenance_can_be_read_off_a_model_s_configuration() -> None:
    parameters = {"labels.logits": '["bad", "good"]', "provenance.seed": "7", "provenance.metrics.accuracy": "0.91"}
    found = ModelConfig.from_message(config(parameters=parameters))
    assert found.labels == {"logits": ("bad", "good")}
    assert found.provenance == {"seed": "7", "metrics.accuracy": "0.91"}
    assert found.parameters == parameters
