"""`[preprocess]` of model.toml is matched with the model, and refused in one sentence where it does not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from model_files import write_add_sub_onnx, write_identity_onnx
from offramp_server.errors import ConfigurationError
from offramp_server.model_spec import ModelSpec
from offramp_server.preprocess.settings import ImagePreprocess, TextPreprocess, TokenTensor
from offramp_server.repository.check import check
from offramp_server.repository.reader import read_model
from text_models import SENTIMENT, write_bag, write_tokenizer


def write_text(repository: Path, table: str, length: int | str = "length", toml: str = "") -> None:
    write_bag(repository / "m" / "1" / "model.onnx", SENTIMENT, length=length)
    write_tokenizer(repository / "m")
    (repository / "m" / "model.toml").write_text(f"{toml}\n[preprocess]\n{table}\n")


def write_picture(
    repository: Path, table: str, dims: tuple[object, ...] = ("batch", 1, 28, 28), datatype: str = "FP32"
) -> None:
    write_identity_onnx(repository / "m" / "1" / "model.onnx", datatype, dims)  # type: ignore[arg-type]
    (repository / "m" / "model.toml").write_text(f'[preprocess]\nkind = "image"\n{table}\n')


def read(repository: Path) -> ModelSpec:
    (spec,) = read_model(repository, "m")
    return spec


def text_of(repository: Path) -> TextPreprocess:
    found = read(repository).preprocess
    assert isinstance(found, TextPreprocess)
    return found


def image_of(repository: Path) -> ImagePreprocess:
    found = read(repository).preprocess
    assert isinstance(found, ImagePreprocess)
    return found


# Text


def test_a_tokenizer_is_enough_for_a_model_whose_inputs_have_the_usual_names(tmp_path: Path) -> None:
    write_text(tmp_path, 'tokenizer = "tokenizer.json"')
    found = text_of(tmp_path)
    assert found.tensors == (
        TokenTensor("input_ids", "INT64", "ids"),
        TokenTensor("attention_mask", "INT64", "attention_mask"),
    )
    assert (found.input, found.max_length, found.min_length, found.pad_to_multiple_of) == ("text", 512, 1, 16)
    assert found.truncation


def test_clients_are_told_of_one_bytes_input(tmp_path: Path) -> None:
    write_text(tmp_path, 'tokenizer = "tokenizer.json"\ninput = "review"')
    assert [str(tensor) for tensor in read(tmp_path).public_inputs] == ["review BYTES[1]"]


def test_rows_of_a_fixed_length_are_padded_to_it(tmp_path: Path) -> None:
    write_text(tmp_path, 'tokenizer = "tokenizer.json"', length=24)
    found = text_of(tmp_path)
    assert (found.min_length, found.max_length) == (24, 24)


def test_inputs_of_other_names_are_told_what_they_take(tmp_path: Path) -> None:
    renamed = "\n".join(
        f'[[inputs]]\nname = "{name}"\nsource = "{source}"'
        for name, source in (("tokens", "input_ids"), ("mask", "attention_mask"))
    )
    write_text(
        tmp_path, 'tokenizer = "tokenizer.json"\ninputs = {tokens = "ids", mask = "attention_mask"}', toml=renamed
    )
    assert [(tensor.name, tensor.source) for tensor in text_of(tmp_path).tensors] == [
        ("tokens", "ids"),
        ("mask", "attention_mask"),
    ]


def test_a_version_may_have_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    write_text(tmp_path, 'tokenizer = "tokenizer.json"')
    assert text_of(tmp_path).tokenizer == tmp_path / "m" / "tokenizer.json"
    own = write_tokenizer(tmp_path / "m" / "1")
    assert text_of(tmp_path).tokenizer == own
    assert text_of(tmp_path).sha256 == hashlib.sha256(own.read_bytes()).hexdigest()


def test_another_tokenizer_is_another_model(tmp_path: Path) -> None:
    write_text(tmp_path, 'tokenizer = "tokenizer.json"')
    before = read(tmp_path).fingerprint()
    assert read(tmp_path).fingerprint() == before
    write_tokenizer(tmp_path / "m", special=False)
    assert read(tmp_path).fingerprint() != before


def test_the_manifest_covers_the_tokenizer(tmp_path: Path) -> None:
    write_text(tmp_path, 'tokenizer = "tokenizer.json"')
    files = ("1/model.onnx", "model.toml", "tokenizer.json")
    lines = [f"{hashlib.sha256((tmp_path / 'm' / file).read_bytes()).hexdigest()}  {file}\n" for file in files]
    (tmp_path / "m" / "manifest.sha256").write_text("".join(lines))
    assert read(tmp_path).preprocess is not None
    write_tokenizer(tmp_path / "m", special=False)
    report = check(tmp_path)
    assert "tokenizer.json: sha256" in report.problems[0]


TOKENIZER = 'tokenizer = "tokenizer.json"\n'


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", 'preprocess.kind: expected "text" or "image", got nothing'),
        ('kind = "video"', 'preprocess.kind: expected "text" or "image", got "video"'),
        ('kind = "text"', '"preprocess.tokenizer" is missing; expected a string'),
        (TOKENIZER + "max_lenght = 3", 'unknown key "preprocess.max_lenght"; did you mean "preprocess.max_length"?'),
        (TOKENIZER + "max_length = 0", "preprocess.max_length: expected a number from 1 to 1000000, got 0"),
        (TOKENIZER + "pad_to_multiple_of = 0", "preprocess.pad_to_multiple_of: expected a number from 1 to 65536"),
        (TOKENIZER + 'input = "a b"', "preprocess.input: expected a name of at most 256 characters without spaces"),
        (TOKENIZER + 'input = "input_ids"', 'the model has an input "input_ids" of its own; choose another name'),
        (TOKENIZER + 'inputs = {input_idz = "ids"}', 'the model has no input "input_idz"; did you mean "input_ids"?'),
        (TOKENIZER + 'inputs = {input_ids = "words"}', "inputs.input_ids: expected one of ids, attention_mask"),
        (TOKENIZER + 'inputs = {input_ids = "type_ids"}', 'no input of the model takes "ids"'),
        ('tokenizer = "vocab.json"', 'there is no file "vocab.json" in'),
        ('tokenizer = "../../tokenizer.json"', '"../../tokenizer.json" is outside the model\'s folder'),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_for_text_is_one_clear_sentence(table: str, sentence: str, tmp_path: Path) -> None:
    write_text(tmp_path, table)
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "m" / "model.toml"))


def test_max_length_has_to_fit_the_model(tmp_path: Path) -> None:
    write_text(tmp_path, TOKENIZER + "max_length = 32", length=24)
    with pytest.raises(ConfigurationError, match="max_length = 32, but the model takes rows from 24 to 24"):
        read(tmp_path)


def test_an_input_that_nothing_is_known_of_has_to_be_explained(tmp_path: Path) -> None:
    write_add_sub_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_tokenizer(tmp_path / "m")
    (tmp_path / "m" / "model.toml").write_text(f"[preprocess]\n{TOKENIZER}")
    with pytest.raises(
        ConfigurationError, match=r'nothing says what .* "INPUT0" takes; add inputs = { INPUT0 = "ids" }'
    ):
        read(tmp_path)


def test_tokens_do_not_go_into_an_input_that_is_no_row_of_numbers(tmp_path: Path) -> None:
    write_picture(tmp_path, "")
    write_tokenizer(tmp_path / "m")
    (tmp_path / "m" / "model.toml").write_text(f'[preprocess]\n{TOKENIZER}inputs = {{x = "ids"}}')
    with pytest.raises(ConfigurationError, match=r'input "x" is FP32\[1,28,28\]; tokens go into a row of numbers'):
        read(tmp_path)


# Images


def test_everything_about_pictures_may_be_left_to_the_model_s_dimensions(tmp_path: Path) -> None:
    write_picture(tmp_path, "")
    found = image_of(tmp_path)
    assert (found.input, found.tensor, found.mode, found.layout) == ("image_bytes", "x", "L", "CHW")
    assert (found.resize, found.crop, found.height, found.width) == ((28, 28), None, 28, 28)
    assert (found.scale, found.mean, found.std) == (True, (), ())


@pytest.mark.parametrize(
    ("dims", "layout", "mode"),
    [
        (("batch", 3, 8, 9), "CHW", "RGB"),
        (("batch", 8, 9, 3), "HWC", "RGB"),
        (("batch", 8, 9, 1), "HWC", "L"),
        (("batch", 8, 9), "HW", "L"),
    ],
)
def test_layout_and_mode_follow_from_the_dimensions(
    dims: tuple[object, ...], layout: str, mode: str, tmp_path: Path
) -> None:
    write_picture(tmp_path, "", dims)
    found = image_of(tmp_path)
    assert (found.layout, found.mode, found.height, found.width) == (layout, mode, 8, 9)


def test_imagenet_s_usual_way_can_be_written_down(tmp_path: Path) -> None:
    table = 'resize = "shorter"\nsize = 256\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]'
    write_picture(tmp_path, table, ("batch", 3, 224, 224))
    found = image_of(tmp_path)
    assert (found.resize, found.crop) == (256, (224, 224))
    assert found.mean == (0.485, 0.456, 0.406)


def test_a_model_that_takes_any_size_gets_pictures_as_they_come(tmp_path: Path) -> None:
    write_picture(tmp_path, "", ("batch", 3, "height", "width"))
    found = image_of(tmp_path)
    assert (found.resize, found.height, found.width) == (None, -1, -1)


def test_a_model_that_takes_bytes_gets_them_unscaled(tmp_path: Path) -> None:
    write_picture(tmp_path, "", datatype="UINT8")
    assert not image_of(tmp_path).scale


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('mode = "RGB"', 'mode = "RGB", but the model takes "L" (CHW of FP32[1,28,28])'),
        ('mode = "HSV"', 'preprocess.mode: expected "L" or "RGB", got "HSV"'),
        ('layout = "HW"', 'the model\'s input "x" is FP32[1,28,28]; expected HW'),
        ('layout = "HWC"', "the model takes 28 channels (HWC of FP32[1,28,28]); expected 1 or 3"),
        ("size = 32", "pictures become [32, 32], and the model takes [28, 28]"),
        ("size = [28, 14]", "pictures become [28, 14], and the model takes [28, 28]"),
        ("size = [28]", "preprocess.size: expected [height, width] in pixels"),
        ('resize = "shorter"', 'resize = "shorter" needs the length of the shorter side: size = 256, say'),
        ('resize = "shorter"\nsize = 20', "crop = [28, 28] is larger than what size = 20 leaves"),
        ('resize = "none"\nsize = 28', 'size is given with resize = "none"; leave one of them out'),
        ("crop = [14, 14]", "pictures become [14, 14], and the model takes [28, 28]"),
        ('interpolation = "cubic"', 'preprocess.interpolation: expected "nearest", "bilinear"'),
        ("mean = [0.5, 0.5]", "preprocess.mean: expected a number for each of the 1 or 3 channels"),
        ("mean = [0.5, 0.5, 0.5]", 'mean: 3 values for 1 channel of mode "L"'),
        ("std = [0.0]", "preprocess.std: expected a list, each element more than 0"),
        ("max_pixels = 999999999", "preprocess.max_pixels: expected a number from 1 to 178956970"),
        ('tokenizer = "tokenizer.json"', 'unknown key "preprocess.tokenizer"'),
        ('input = "x"', 'the model has an input "x" of its own; choose another name'),
    ],
)
def test_a_mistake_in_the_table_for_images_is_one_clear_sentence(table: str, sentence: str, tmp_path: Path) -> None:
    write_picture(tmp_path, table)
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path)
    assert sentence in str(caught.value)


def test_bytes_are_not_scaled_or_normalised(tmp_path: Path) -> None:
    write_picture(tmp_path, "scale = true", datatype="UINT8")
    with pytest.raises(ConfigurationError, match="the model takes UINT8, values from 0 to 255 as they are"):
        read(tmp_path)
    write_picture(tmp_path, "", datatype="INT32")
    with pytest.raises(ConfigurationError, match='input "x" is INT32; pixels are floating-point or UINT8'):
        read(tmp_path)


def test_a_picture_becomes_one_tensor(tmp_path: Path) -> None:
    write_add_sub_onnx(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "model.toml").write_text('[preprocess]\nkind = "image"')
    with pytest.raises(ConfigurationError, match=r'and the model has 2 inputs \("INPUT0", "INPUT1"\)'):
        read(tmp_path)


# offramp check


def test_check_shows_what_clients_send_and_what_becomes_of_it(tmp_path: Path) -> None:
    write_text(tmp_path, TOKENIZER)
    report = check(tmp_path)
    assert report.problems == ()
    assert "    in:  text BYTES[1]" in report.lines
    assert "         text, made into input_ids INT64[-1], attention_mask INT64[-1]" in report.lines


def test_check_opens_the_tokenizer(tmp_path: Path) -> None:
    write_text(tmp_path, TOKENIZER)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    [problem] = check(tmp_path).problems
    assert "tokenizer.json: not a tokenizer file" in problem
