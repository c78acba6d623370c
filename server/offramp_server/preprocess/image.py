"""JPEG and PNG files to pixels, by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from offramp_common.extras import needs_extra
from open_inference.tensor import ITEM_SIZES, Array, Tensor

from offramp_server.preprocess.items import Stop, check_size, elements, wrong
from offramp_server.preprocess.settings import ImagePreprocess

# Nothing else is decoded: every further decoder is one that a stranger's bytes reach.
FORMATS = ("JPEG", "PNG")
# More bits for each value than 8, which converting to L or RGB would cut and not scale.
_DEEP_MODES = ("I", "F")


class ImagePreprocessor:
    """Decodes, turns as the camera says, converts, resizes, crops, scales and normalises.

    Resizing and cropping give what torchvision's Resize and CenterCrop give on a Pillow image.
    """

    def __init__(self, settings: ImagePreprocess) -> None:
        """Raises MissingExtra."""
        with needs_extra("image", "[preprocess] of images"):
            from PIL import Image
        self._settings = settings
        self._filter = Image.Resampling[settings.interpolation.upper()]
        self._mean = np.array(settings.mean, dtype=np.float32)
        self._std = np.array(settings.std, dtype=np.float32)

    def prepare(self, items: Tensor, stop: Stop, max_tensor_bytes: int) -> list[Tensor]:
        settings = self._settings
        pictures: list[Array] = []
        for index, element in elements(items, settings.max_bytes, stop):
            try:
                pictures.append(self._pixels(element))
            except _WrongPicture as error:
                raise wrong(items, index, str(error)) from error
            if index == 0:
                # All others have to be of this size. A file of a few bytes can be a large picture.
                item_bytes = pictures[0].size * ITEM_SIZES[settings.datatype]
                check_size(settings.tensor, items.shape[0], item_bytes, max_tensor_bytes)
            if pictures[index].shape != pictures[0].shape:
                raise wrong(items, index, f"is {_size(pictures[index])}, item 0 is {_size(pictures[0])}; "
                            "pictures of different sizes go into requests of their own")  # fmt: skip
        return [Tensor.from_numpy(settings.tensor, self._values(np.stack(pictures)), settings.datatype, copy=False)]

    def _pixels(self, content: bytes) -> Array:
        """UINT8 [height, width, channels]."""
        picture = self._cropped(self._resized(self._decoded(content)))
        expected = (self._settings.height, self._settings.width)
        if any(size not in (-1, own) for size, own in zip(expected, (picture.height, picture.width), strict=True)):
            raise _WrongPicture(
                f"is {picture.width}x{picture.height} pixels, this model takes {expected[1]}x{expected[0]}"
            )
        return np.asarray(picture).reshape(picture.height, picture.width, self._settings.channels)

    def _decoded(self, content: bytes) -> Any:
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            # Only the header has been read so far.
            self._check_pixels(picture.width, picture.height)
            self._check_depth(picture)
            # Cameras turn the picture by a remark in the file.
            ImageOps.exif_transpose(picture, in_place=True)
            picture.load()
            # Converting to the same would copy it.
            return picture if picture.mode == self._settings.mode else picture.convert(self._settings.mode)
        except (_WrongPicture, MemoryError):
            raise
        except UnidentifiedImageError:
            raise _WrongPicture(f"expected a JPEG or PNG file, got {_beginning(content)}") from None
        except Exception as error:
            # Decoders raise whatever comes to them: OSError, SyntaxError, struct.error, zlib.error. It is the file's
            # fault, for what is done to it does not depend on the server's state.
            raise _WrongPicture(f"cannot be decoded; expected a whole JPEG or PNG file: {error}") from error

    def _check_pixels(self, width: int, height: int) -> None:
        limit = self._settings.max_pixels
        if width * height > limit:
            raise _WrongPicture(f"is {width}x{height} pixels, this model takes at most {limit} in all")

    def _check_depth(self, picture: Any) -> None:
        if picture.mode.split(";")[0] in _DEEP_MODES:
            raise _WrongPicture(f"has more than 8 bits for each value (mode {picture.mode}); expected 8")

    def _resized(self, picture: Any) -> Any:
        resize = self._settings.resize
        if resize is None:
            return picture
        height, width = _shorter_side(picture, resize) if isinstance(resize, int) else resize
        # A line of pixels would become as long as it is thin.
        self._check_pixels(width, height)
        return picture if picture.size == (width, height) else picture.resize((width, height), self._filter)

    def _cropped(self, picture: Any) -> Any:
        crop = self._settings.crop
        if crop is None:
            return picture
        height, width = crop
        if picture.width < width or picture.height < height:
            raise _WrongPicture(
                f"is {picture.width}x{picture.height} pixels, too small for the crop to {width}x{height}"
            )
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))

    def _values(self, pixels: Array) -> Array:
        """From [items, height, width, channels]."""
        settings = self._settings
        if settings.scale:
            pixels = pixels.astype(np.float32) / 255
        if settings.mean:
            pixels = (pixels - self._mean) / self._std
        if settings.layout == "CHW":
            return pixels.transpose(0, 3, 1, 2)
        return pixels[..., 0] if settings.layout == "HW" else pixels


class _WrongPicture(ValueError):
    """What is wrong with one item; the sentence goes on after its name."""


def _shorter_side(picture: Any, size: int) -> tuple[int, int]:
    short, long = sorted(picture.size)
    other = int(size * long / short)
    return (size, other) if picture.height <= picture.width else (other, size)


def _size(pixels: Array) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]} pixels"


def _beginning(content: bytes) -> str:
    return f"{len(content)} bytes that begin with {content[:4].hex(' ')}" if content else "no bytes"
