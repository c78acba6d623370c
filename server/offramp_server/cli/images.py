"""Pictures as the input of a model that says no more about it than its dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offramp_common.extras import needs_extra
from open_inference.tensor import Array

from offramp_server.cli.failures import UsageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
FLOATING = frozenset({"FP16", "FP32", "FP64", "BF16"})
_MODES = {None: "L", 1: "L", 3: "RGB"}
_COLOURS = {"L": "greyscale", "RGB": "RGB"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of an item's dimensions is what. `channels` None: there is no such dimension. -1: any size."""

    channels: int | None
    height: int
    width: int
    channels_first: bool = True


def layout_of(dims: Sequence[int]) -> Layout | None:
    """A guess: [H,W], [1|3,H,W] or, where only that fits, [H,W,1|3]. None: no picture has such dimensions."""
    match tuple(dims):
        case (height, width):
            return Layout(None, height, width)
        case (1 | 3 as channels, height, width):
            return Layout(channels, height, width)
        case (height, width, 1 | 3 as channels):
            return Layout(channels, height, width, channels_first=False)
    return None


def read_image(path: Path, datatype: str, dims: Sequence[int]) -> tuple[Array, str]:
    """The picture as one item of `dims`, and a sentence that says what was done to it.

    Floating-point inputs get values from 0 to 1, UINT8 from 0 to 255. Raises UsageError for another datatype, for
    dimensions that are not those of a picture, and for a file that is none.
    """
    layout = layout_of(dims)
    shown = f"{datatype}[{','.join(map(str, dims))}]"
    if layout is None or not (datatype in FLOATING or datatype == "UINT8"):
        raise UsageError(f"{path}: a picture does not fit an input of {shown} without further knowledge; give an .npy")
    picture = _open(path)
    before = f"{picture.mode} {picture.width}x{picture.height}"
    picture = _fitted(picture, layout)
    pixels = _arranged(np.asarray(picture), layout)
    if datatype in FLOATING:
        pixels = pixels.astype(np.float32) / 255
    scale = "0 to 1" if datatype in FLOATING else "0 to 255"
    order = "" if layout.channels is None else ", channels first" if layout.channels_first else ", channels last"
    colours = _COLOURS[picture.mode]
    return pixels, f"{before} -> {colours} {picture.width}x{picture.height}, values {scale}{order}"


def _open(path: Path) -> Any:
    with needs_extra("image", "reading a picture"):
        from PIL import Image, ImageOps, UnidentifiedImageError
    try:
        # Cameras turn the picture by a remark in the file.
        return ImageOps.exif_transpose(Image.open(path))
    except UnidentifiedImageError:
        raise UsageError(f"{path}: not a picture in any format that Pillow reads") from None
    except (ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read as a picture: {error}") from error


def _fitted(picture: Any, layout: Layout) -> Any:
    width = picture.width if layout.width < 0 else layout.width
    height = picture.height if layout.height < 0 else layout.height
    converted = picture.convert(_MODES[layout.channels])
    return converted if converted.size == (width, height) else converted.resize((width, height))


def _arranged(pixels: Array, layout: Layout) -> Array:
    """From [H,W] or [H,W,3]."""
    if layout.channels is None:
        return pixels
    with_channels = pixels.reshape(*pixels.shape[:2], layout.channels)
    return with_channels.transpose(2, 0, 1) if layout.channels_first else with_channels
