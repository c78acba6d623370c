"""What `offramp infer` makes of files, and how it shows answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from offramp_client import InferResult, ModelConfig, ModelMetadata, TensorInfo
from offramp_client.inference import ParameterValue
from offramp_common.extras import MissingExtra
from offramp_server.cli import answers
from offramp_server.cli.declared import Declared, combine
from offramp_server.cli.failures import UsageError
from offramp_server.cli.images import Layout, layout_of, read_image
from offramp_server.cli.input_files import NamedFile, Request, read_request
from PIL import Image

LABELS = {"logits": ("shirt", "coat", "bag")}


def model(*inputs: str, batched: bool = True) -> Declared:
    """Inputs as "name FP32[-1,4]"."""
    infos = {}
    for text in inputs:
        name, _, rest = text.partition(" ")
        datatype, _, dims = rest.rstrip("]").partition("[")
        infos[name] = TensorInfo(name, datatype, tuple(int(d) for d in dims.split(",") if d))
    return Declared("m", infos, batched, {})


def read(declared: Declared, *files: Path | tuple[str, Path]) -> Request:
    return read_request([NamedFile(*f) if isinstance(f, tuple) else NamedFile("", f) for f in files], declared)


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def saved(path: Path, array: NDArray[Any]) -> Path:
    np.save(path, array)
    return path


class TestJson:
    def test_values_take_the_datatype_that_is_declared(self, tmp_path: Path) -> None:
        request = read(model("x FP16[-1,2]"), write(tmp_path / "x.json", {"inputs": {"x": [[1, 2.5]]}}))
        assert request.inputs["x"].datatype == "FP16"
        np.testing.assert_array_equal(request.inputs["x"].numpy(), np.array([[1, 2.5]], np.float16))

    def test_lists_alone_are_the_only_input(self, tmp_path: Path) -> None:
        request = read(model("x INT64[-1,2]"), write(tmp_path / "x.json", [[1, 2], [3, 4]]))
        assert request.inputs["x"].numpy().tolist() == [[1, 2], [3, 4]]

    def test_several_inputs_come_from_one_document_or_from_a_file_each(self, tmp_path: Path) -> None:
        declared = model("a INT32[-1,1]", "b BOOL[-1,1]")
        one = read(declared, write(tmp_path / "both.json", {"inputs": {"a": [[1]], "b": [[True]]}}))
        a, b = write(tmp_path / "a.json", [[1]]), write(tmp_path / "b.json", [[True]])
        each = read(declared, ("a", a), ("b", b))
        assert one.inputs == each.inputs

    def test_texts_become_bytes(self, tmp_path: Path) -> None:
        request = read(model("text BYTES[-1,1]"), write(tmp_path / "x.json", {"inputs": {"text": [["naïve"], ["b"]]}}))
        assert request.inputs["text"].numpy().tolist() == [["naïve".encode()], [b"b"]]

    def test_a_request_in_the_protocols_own_form_is_sent_as_it_stands(self, tmp_path: Path) -> None:
        document = {
            "id": "42",
            "parameters": {"offramp_unit": "u"},
            "inputs": [{"name": "x", "shape": [2, 2], "datatype": "INT32", "data": [1, 2, 3, 4]}],
            "outputs": [{"name": "y"}],
        }
        request = read(model("x INT64[-1,2]"), write(tmp_path / "x.json", document))
        assert (request.id, request.parameters, request.outputs) == ("42", {"offramp_unit": "u"}, ["y"])
        assert request.inputs["x"].datatype == "INT32"
        assert request.inputs["x"].numpy().tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize(
        ("document", "sentence"),
        [
            ("{", "x.json: not JSON: Expecting property name"),
            ({"inputs": {"y": [[1, 2]]}}, r'the model has no input "y"; it takes x: FP32\[-1,2\]'),
            ({"inputs": {}}, r"no file for input x; the model takes x: FP32\[-1,2\]"),
            ({"inputs": "x"}, '"inputs": expected an object or a list'),
            ({"inputs": [{"name": "x"}]}, '"inputs": expected entries with "name", "shape", "datatype" and "data"'),
            ({"inputs": {"x": [[1, 2]]}, "outputs": ["y"]}, '"outputs": expected entries with "name"'),
            ({"inputs": [{"name": "x", "shape": [2, 2], "data": [1]}]}, "cannot reshape array of size 1"),
            ([[1], [1, 2]], 'input "x": its lists have different lengths'),
            ([[1, None]], 'input "x": expected nested lists of numbers, true and false, or strings'),
            ([["a", "b"]], '"x": expected FP32, got an array of <U1'),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, document: Any, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            read(model("x FP32[-1,2]"), write(tmp_path / "x.json", document))


class TestArrays:
    def test_floating_point_is_rounded_to_the_declared_datatype(self, tmp_path: Path) -> None:
        request = read(model("x FP32[-1,2]"), saved(tmp_path / "x.npy", np.array([[0.1, 0.2]])))
        assert request.inputs["x"].numpy().tolist() == np.array([[0.1, 0.2]], np.float32).tolist()

    def test_one_item_becomes_a_batch_of_one_and_that_is_said(self, tmp_path: Path) -> None:
        request = read(model("x FP32[-1,2]"), saved(tmp_path / "x.npy", np.zeros(2, np.float32)))
        assert request.inputs["x"].shape == (1, 2)
        assert request.remarks == ["x: [2] is sent as a batch of one"]

    def test_a_model_without_a_batch_dimension_gets_none(self, tmp_path: Path) -> None:
        request = read(model("x FP32[2,2]", batched=False), saved(tmp_path / "x.npy", np.zeros(2, np.float32)))
        assert request.inputs["x"].shape == (2,)

    def test_pickled_objects_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="allow_pickle=False"):
            read(model("x FP32[-1,2]"), saved(tmp_path / "x.npy", np.array([{}], dtype=object)))

    def test_fractions_for_an_integer_input_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match='"x": expected INT64, an array of float64 would lose its fractions'):
            read(model("x INT64[-1,2]"), saved(tmp_path / "x.npy", np.array([[0.5, 1]])))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"none\.npy: there is no such file"):
            read(model("x FP32[-1,2]"), tmp_path / "none.npy")


class TestTextAndBytes:
    def test_a_text_file_is_one_element_without_its_last_line_break(self, tmp_path: Path) -> None:
        request = read(model("text BYTES[-1,1]"), write(tmp_path / "review.txt", "good\nbad\n"))
        assert request.inputs["text"].numpy().tolist() == [[b"good\nbad"]]

    def test_a_text_that_is_typed_in_place_of_a_file_brings_the_way_to_send_it(self) -> None:
        declared = replace(model("text BYTES[-1,1]"), preprocess="text")
        with pytest.raises(UsageError, match=r"great film: .*echo 'some text' \| offramp infer m /dev/stdin"):
            read(declared, Path("great film"))

    def test_a_text_for_a_model_of_tokens_brings_what_the_model_lacks(self, tmp_path: Path) -> None:
        both = model("input_ids INT64[-1,-1]", "attention_mask INT64[-1,-1]")
        for declared in (both, model("input_ids INT64[-1,-1]")):
            with pytest.raises(UsageError, match=r"as offramp export --tokenizer writes it"):
                read(declared, write(tmp_path / "review.txt", "great film"))
        with pytest.raises(UsageError) as caught:
            read(model("x FP32[-1,2]"), tmp_path / "review.txt")
        assert "tokenizer" not in str(caught.value)

    def test_the_model_may_have_scalars_for_items(self, tmp_path: Path) -> None:
        request = read(model("text BYTES[-1]"), write(tmp_path / "review", "good"))
        assert request.inputs["text"].numpy().tolist() == [b"good"]

    def test_a_picture_for_a_bytes_input_goes_as_the_file_it_is(self, tmp_path: Path) -> None:
        path = picture(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
        request = read(model("jpeg BYTES[-1,1]"), path)
        assert request.inputs["jpeg"].numpy().tolist() == [[path.read_bytes()]]

    def test_text_for_a_numeric_input_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"expected \.json, \.npy or a picture for input x: FP32\[-1,2\]"):
            read(model("x FP32[-1,2]"), write(tmp_path / "x.txt", "1 2"))


class TestWhichInput:
    def test_a_file_without_a_name_does_not_say_which_of_two(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"which input is it for\? Use --input NAME=FILE; the model takes a: .*, b: "
        ):
            read(model("a INT32[-1,1]", "b INT32[-1,1]"), saved(tmp_path / "x.npy", np.zeros((1, 1), np.int32)))

    def test_an_input_cannot_be_given_twice(self, tmp_path: Path) -> None:
        file = saved(tmp_path / "x.npy", np.zeros((1, 1), np.int32))
        with pytest.raises(UsageError, match='input "x" is given twice'):
            read(model("x INT32[-1,1]"), file, ("x", file))


def picture(path: Path, pixels: NDArray[np.uint8]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


class TestPictures:
    @pytest.mark.parametrize(
        ("dims", "layout"),
        [
            ((28, 20), Layout(None, 28, 20)),
            ((1, 28, 20), Layout(1, 28, 20)),
            ((3, 224, 224), Layout(3, 224, 224)),
            ((224, 200, 3), Layout(3, 224, 200, channels_first=False)),
            ((3, -1, -1), Layout(3, -1, -1)),
            ((3, 224, 3), Layout(3, 224, 3)),
            ((2, 8, 8), None),
            ((784,), None),
        ],
    )
    def test_the_dimensions_tell_what_is_what(self, dims: tuple[int, ...], layout: Layout | None) -> None:
        assert layout_of(dims) == layout

    def test_greyscale_floats_lie_between_0_and_1(self, tmp_path: Path) -> None:
        pixels = np.array([[0, 51], [102, 255]], np.uint8)
        values, remark = read_image(picture(tmp_path / "a.png", pixels), "FP32", (1, 2, 2))
        np.testing.assert_allclose(values, [[[0, 0.2], [0.4, 1]]], atol=1e-6)
        assert remark == "L 2x2 -> greyscale 2x2, values 0 to 1, channels first"

    @pytest.mark.parametrize("channels_first", [True, False])
    def test_colours_go_where_the_model_has_them(self, tmp_path: Path, channels_first: bool) -> None:
        pixels = np.zeros((2, 4, 3), np.uint8)
        pixels[:, :, 0], pixels[0, :, 2] = 200, 100
        dims = (3, 2, 4) if channels_first else (2, 4, 3)
        values, remark = read_image(picture(tmp_path / "a.png", pixels), "UINT8", dims)
        np.testing.assert_array_equal(values, pixels.transpose(2, 0, 1) if channels_first else pixels)
        assert remark.endswith(f"values 0 to 255, channels {'first' if channels_first else 'last'}")

    def test_it_is_resized_and_made_grey_as_the_model_wants(self, tmp_path: Path) -> None:
        pixels = np.full((100, 60, 3), 128, np.uint8)
        values, remark = read_image(picture(tmp_path / "a.png", pixels), "FP32", (28, 28))
        assert values.shape == (28, 28)
        np.testing.assert_allclose(values, 128 / 255, atol=0.01)
        assert remark == "RGB 60x100 -> greyscale 28x28, values 0 to 1"

    def test_free_dimensions_keep_its_size(self, tmp_path: Path) -> None:
        values, _ = read_image(picture(tmp_path / "a.png", np.zeros((10, 20, 3), np.uint8)), "FP32", (3, -1, -1))
        assert values.shape == (3, 10, 20)

    def test_a_photo_is_turned_as_its_camera_says(self, tmp_path: Path) -> None:
        photo = Image.fromarray(np.zeros((10, 20), np.uint8))
        exif = photo.getexif()
        exif[0x0112] = 6  # the orientation: turn by a quarter
        photo.save(tmp_path / "a.jpg", exif=exif)
        values, _ = read_image(tmp_path / "a.jpg", "UINT8", (-1, -1))
        assert values.shape == (20, 10)

    def test_it_becomes_a_batch_of_one_and_what_was_done_is_said(self, tmp_path: Path) -> None:
        request = read(model("image FP16[-1,1,4,4]"), picture(tmp_path / "a.png", np.zeros((4, 4), np.uint8)))
        assert (request.inputs["image"].datatype, request.inputs["image"].shape) == ("FP16", (1, 1, 4, 4))
        assert request.remarks[0] == "image: a.png, L 4x4 -> greyscale 4x4, values 0 to 1, channels first"

    def test_a_file_that_is_no_picture_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not a picture in any format that Pillow reads"):
            read_image(write(tmp_path / "a.png", "hello"), "FP32", (28, 28))

    @pytest.mark.parametrize(("datatype", "dims"), [("FP32", (784,)), ("INT64", (1, 28, 28))])
    def test_an_input_that_is_not_for_pictures_is_refused(
        self, tmp_path: Path, datatype: str, dims: tuple[int, ...]
    ) -> None:
        with pytest.raises(UsageError, match="a picture does not fit an input of"):
            read_image(picture(tmp_path / "a.png", np.zeros((28, 28), np.uint8)), datatype, dims)

    def test_without_pillow_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = picture(tmp_path / "a.png", np.zeros((28, 28), np.uint8))
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        with pytest.raises(MissingExtra, match=r"pip install 'offramp\[image\]'"):
            read_image(path, "FP32", (28, 28))


class TestWhatTheServerDeclares:
    METADATA = ModelMetadata("m", ("1",), "p", (TensorInfo("x", "FP32", (-1, 4)),), ())

    def config(self, max_batch_size: int, parameters: Mapping[str, str]) -> ModelConfig:
        return ModelConfig("m", "p", "b", max_batch_size, (), (), 1, dict(parameters))

    def test_labels_come_from_the_configuration(self) -> None:
        declared = combine(self.METADATA, self.config(4, {"labels.y": '["a", "b"]', "engine": "onnxruntime"}))
        assert declared.labels == {"y": ("a", "b")}
        assert declared.item_dims(declared.inputs["x"]) == (4,)

    def test_a_first_dimension_that_varies_is_not_always_the_batch(self) -> None:
        declared = combine(self.METADATA, self.config(0, {}))
        assert declared.item_dims(declared.inputs["x"]) == (-1, 4)

    def test_a_server_without_configurations_is_taken_to_batch_where_it_can(self) -> None:
        assert combine(self.METADATA, None).batched


class TestAnswers:
    RESULT = InferResult(
        "m", "1", "7", {"offramp_route": "single"}, None,
        {"logits": np.array([[0.5, 2.0, -1.0], [3.0, 0.0, 1.0]], np.float32),
         "text": np.array([b"good", b"\xff"], dtype=object)},
    )  # fmt: skip

    def test_text_has_every_output_and_the_best_classes_of_every_item(self) -> None:
        lines = answers.as_text(self.RESULT, 0.0123, LABELS, 2).splitlines()
        assert lines[0] == "m version 1 answered in 12.3 ms, seen from here"
        assert "logits: FP32[2, 3]" in lines
        assert "text: BYTES[2]" in lines
        first, second = lines.index("item 0  label   score"), lines.index("item 1  label   score")
        assert [line.split() for line in lines[first + 1 : first + 3]] == [
            ["1", "coat", "2.0000"],
            ["0", "shirt", "0.5000"],
        ]
        assert lines[second + 1].split() == ["0", "shirt", "3.0000"]

    def test_the_path_is_one_line_and_a_table_where_items_went_different_ways(self) -> None:
        parameters: dict[str, ParameterValue] = {
            "offramp_route": "early_exit",
            "offramp_models": "student:1,teacher:2",
            "offramp_exit": "student,teacher",
            "offramp_confidence": "0.95,0.5",
            "sequence": 3,
            "offramp_new": "?",
        }
        lines = answers.as_text(replace(self.RESULT, parameters=parameters), 0.0, LABELS, 1).splitlines()
        assert lines[1:4] == [
            "sequence = 3", "offramp_new = ?", "path: route early_exit; models student:1, teacher:2",
        ]  # fmt: skip
        assert [line.split() for line in lines[5:8]] == [
            ["item", "exit", "confidence"], ["0", "student", "0.95"], ["1", "teacher", "0.5"],
        ]  # fmt: skip

        alike = {**parameters, "offramp_exit": "student,student", "offramp_confidence": "0.5,0.5"}
        lines = answers.as_text(replace(self.RESULT, parameters=alike), 0.0, LABELS, 1).splitlines()
        assert lines[3] == "path: route early_exit; exit student; confidence 0.5; models student:1, teacher:2"

    def test_large_outputs_are_cut_short_for_people_only(self) -> None:
        result = InferResult("m", "", "", {}, None, {"y": np.zeros((1, 1000), np.float32)})
        assert len(answers.as_text(result, 0.0, {}, 5)) < 300
        assert len(json.loads(answers.as_json(result, 0.0, {}, 5))["outputs"][0]["data"]) == 1000

    def test_json_is_the_protocols_form(self) -> None:
        document = json.loads(answers.as_json(self.RESULT, 0.0123, LABELS, 1))
        assert document["outputs"][0] == {
            "name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [0.5, 2.0, -1.0, 3.0, 0.0, 1.0],
        }  # fmt: skip
        assert document["outputs"][1]["data"] == ["good", "\\xff"]
        assert document["parameters"] == {"offramp_route": "single"}
        assert document["top"] == {
            "logits": [[{"index": 1, "label": "coat", "score": 2.0}], [{"index": 0, "label": "shirt", "score": 3.0}]]
        }
        assert document["milliseconds"] == 12.3
