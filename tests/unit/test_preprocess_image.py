"""JPEG and PNG files become the pixels that a model takes, or are refused by the number of the item."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from offramp_common.extras import MissingExtra
from offramp_server.errors import InvalidRequest
from offramp_server.preprocess.image import ImagePreprocessor
from offramp_server.preprocess.items import Stopped
from offramp_server.preprocess.settings import ImagePreprocess
from open_inference.tensor import BYTES, Tensor, encode_bytes
from pictures import claiming, encoded, gradient
from PIL import Image

PLAIN = ImagePreprocess(
    input="image_bytes", tensor="image", datatype="FP32", mode="RGB", layout="CHW", resize=None, crop=None,
    height=-1, width=-1, interpolation="bilinear", scale=True, mean=(), std=(), max_pixels=1_000_000, max_bytes=100_000,
)  # fmt: skip
GREY = replace(PLAIN, mode="L")
# Bytes of a tensor.
LARGEST = 64_000_000


def prepared(settings: ImagePreprocess, *files: bytes, largest: int = LARGEST) -> np.ndarray:
    items = Tensor("image_bytes", BYTES, (len(files), 1), encode_bytes(files))
    [tensor] = ImagePreprocessor(settings).prepare(items, lambda: False, largest)
    assert tensor.name == "image"
    return tensor.numpy()


def refusal(settings: ImagePreprocess, *files: bytes, largest: int = LARGEST) -> str:
    with pytest.raises(InvalidRequest) as caught:
        prepared(settings, *files, largest=largest)
    return str(caught.value)


def test_a_png_becomes_values_from_0_to_1_channels_first() -> None:
    pixels = gradient(5, 4, 3)
    values = prepared(PLAIN, encoded(pixels), encoded(255 - pixels))
    assert values.shape == (2, 3, 5, 4)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[0], (pixels.astype(np.float32) / 255).transpose(2, 0, 1))
    np.testing.assert_array_equal(values[1], ((255 - pixels).astype(np.float32) / 255).transpose(2, 0, 1))


def test_pictures_that_would_become_too_large_a_tensor_are_refused_at_the_first() -> None:
    file = encoded(np.zeros((100, 100), np.uint8))
    assert prepared(GREY, *[file] * 25, largest=1_000_000).nbytes == 1_000_000
    said = refusal(GREY, file, *[b"not even looked at"] * 25, largest=1_000_000)
    assert said.startswith('26 items become 1040000 bytes of input "image", this server takes at most 1000000')


def test_a_jpeg_is_what_pillow_decodes() -> None:
    file = encoded(gradient(16, 24, 3), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(file)), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(prepared(PLAIN, file)[0], expected)


@pytest.mark.parametrize(("layout", "shape"), [("CHW", (1, 1, 5, 4)), ("HWC", (1, 5, 4, 1)), ("HW", (1, 5, 4))])
def test_the_layout_is_the_model_s(layout: str, shape: tuple[int, ...]) -> None:
    pixels = gradient(5, 4)
    values = prepared(replace(GREY, layout=layout), encoded(pixels))
    assert values.shape == shape
    np.testing.assert_array_equal(values.reshape(5, 4), pixels.astype(np.float32) / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_colours_become_those_of_the_model(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    file = encoded(gradient(4, 4, 3), format, mode)
    assert prepared(PLAIN, file).shape == (1, 3, 4, 4)
    assert prepared(GREY, file).shape == (1, 1, 4, 4)


def test_pixels_stay_bytes_for_a_model_that_takes_bytes() -> None:
    pixels = gradient(3, 3)
    values = prepared(replace(GREY, datatype="UINT8", scale=False, layout="HW"), encoded(pixels))
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values[0], pixels)


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP64", np.float64), ("BF16", np.float32)])
def test_values_have_the_datatype_of_the_model(datatype: str, dtype: type) -> None:
    assert prepared(replace(GREY, datatype=datatype), encoded(gradient(2, 2))).dtype == dtype


def test_channels_are_normalised_after_scaling() -> None:
    pixels = gradient(2, 2, 3)
    values = prepared(replace(PLAIN, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.5)), encoded(pixels))
    expected = (pixels.astype(np.float32) / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.1, 0.2, 0.5])
    np.testing.assert_allclose(values[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_resizing_is_pillow_s_with_the_filter_asked_for() -> None:
    pixels = gradient(9, 6)
    for name in ("nearest", "bilinear", "bicubic"):
        values = prepared(replace(GREY, resize=(4, 8), interpolation=name, layout="HW"), encoded(pixels))
        expected = Image.fromarray(pixels).resize((8, 4), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(values[0], np.asarray(expected, np.float32) / 255)


def test_the_shorter_side_is_resized_and_the_centre_cropped() -> None:
    pixels = gradient(20, 40)
    values = prepared(replace(GREY, resize=10, crop=(6, 8), layout="HW"), encoded(pixels))
    resized = np.asarray(Image.fromarray(pixels).resize((20, 10), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_array_equal(values[0], resized[2:8, 6:14])
    upright = prepared(replace(GREY, resize=10, layout="HW"), encoded(gradient(40, 20)))
    assert upright.shape == (1, 20, 10)


def test_a_picture_that_the_camera_has_marked_as_turned_is_turned_back() -> None:
    pixels = gradient(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # The top is at the right.
    values = prepared(replace(GREY, layout="HW"), encoded(pixels, exif=exif.tobytes()))
    np.testing.assert_array_equal(values[0], np.rot90(pixels, -1).astype(np.float32) / 255)


def test_pictures_of_different_sizes_do_not_share_a_request() -> None:
    sentence = refusal(GREY, encoded(gradient(2, 3)), encoded(gradient(4, 3)))
    assert sentence == (
        'input "image_bytes", item 1: is 3x4 pixels, item 0 is 3x2 pixels; '
        "pictures of different sizes go into requests of their own"
    )


def test_a_picture_of_another_size_than_the_model_s_is_refused_if_it_is_not_to_be_resized() -> None:
    settings = replace(GREY, height=28, width=28)
    assert refusal(settings, encoded(gradient(28, 28)), encoded(gradient(28, 30))) == (
        'input "image_bytes", item 1: is 30x28 pixels, this model takes 28x28'
    )
    assert "too small for the crop to 28x28" in refusal(replace(GREY, crop=(28, 28)), encoded(gradient(20, 40)))


WHOLE_PNG, WHOLE_JPEG = encoded(gradient(64, 64, 3)), encoded(gradient(64, 64, 3), "JPEG")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "expected a JPEG or PNG file, got no bytes"),
        (b"hello", "expected a JPEG or PNG file, got 5 bytes that begin with 68 65 6c 6c"),
        (encoded(gradient(4, 4), "GIF"), "expected a JPEG or PNG file, got"),
        (encoded(gradient(4, 4), "TIFF"), "expected a JPEG or PNG file, got"),
        (WHOLE_PNG[:-40], "cannot be decoded; expected a whole JPEG or PNG file"),
        (WHOLE_JPEG[:-40], "cannot be decoded; expected a whole JPEG or PNG file"),
        (WHOLE_PNG[:30], "expected"),
        (WHOLE_JPEG[:12], "expected"),
        (WHOLE_PNG[:60] + b"\0\0\0\0" + WHOLE_PNG[64:], "cannot be decoded; expected a whole JPEG or PNG file"),
        (encoded(Image.new("I;16", (4, 4))), "has more than 8 bits for each value (mode I;16); expected 8"),
        (claiming(1001, 1000), "is 1001x1000 pixels, this model takes at most 1000000 in all"),
        (claiming(60_000, 60_000), ""),
        (b"x" * 100_001, "has 100001 bytes, this model takes at most 100000"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_its_number(file: bytes, words: str) -> None:
    sentence = refusal(PLAIN, encoded(gradient(64, 64, 3)), file)
    assert sentence.startswith('input "image_bytes", item 1: ')
    assert words in sentence


@pytest.mark.parametrize("whole", [WHOLE_PNG, WHOLE_JPEG], ids=["png", "jpeg"])
def test_whatever_bytes_of_a_file_are_damaged_it_is_decoded_or_refused(whole: bytes) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), 3):
            damaged[position] = random.integers(0, 256)
        # Anything else that is raised fails the test.
        with suppress(InvalidRequest):
            assert prepared(replace(PLAIN, resize=(8, 8)), bytes(damaged)).shape == (1, 3, 8, 8)


def test_a_thin_line_is_not_blown_up_by_resizing_its_shorter_side() -> None:
    line = encoded(np.zeros((1, 50_000), np.uint8))
    assert refusal(replace(GREY, resize=256), line) == (
        'input "image_bytes", item 0: is 12800000x256 pixels, this model takes at most 1000000 in all'
    )


def test_nothing_more_is_decoded_once_nobody_waits() -> None:
    asked = iter([False, True])
    items = Tensor("image_bytes", BYTES, (2, 1), encode_bytes([encoded(gradient(4, 4)), b"never looked at"]))
    with pytest.raises(Stopped):
        ImagePreprocessor(GREY).prepare(items, lambda: next(asked), LARGEST)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'offramp\[image\]'"):
        ImagePreprocessor(PLAIN)
