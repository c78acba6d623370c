"""Pictures in folders that are called like their classes: [PART/]CLASS/*.png or *.jpg."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset
from offramp_compression.data.parts import missing_part, named_classes
from offramp_compression.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F")


def holds(path: Path) -> bool:
    return path.is_dir() and (_has_classes(path) or any(_has_classes(folder) for folder in _folders(path)))


def read(path: Path, part: str, image_size: int | None) -> Dataset:
    """Pixels uint8 [N, C, H, W]; C is 1 if all pictures are grey, else 3. A folder without parts is taken whole.

    With `image_size`, pictures are scaled so that their shorter side has that many pixels, and their middle is cut out.
    Raises DataError if there is no such part, no picture, one that cannot be read, or pictures of different sizes.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"pictures cannot be scaled to {image_size} pixels; expected at least 1")
    names = named_classes(path) or _class_names(path)
    files = list(_labelled(_part(path, part), names))
    if not files:
        raise DataError(f"{path}: the folders of {part} hold no .png or .jpg")
    pictures = _decoded([file for file, _ in files], image_size)
    _require_one_size(pictures, [file for file, _ in files])
    return Dataset((_stacked(pictures),), np.array([label for _, label in files], dtype=np.int64), names)


def _part(path: Path, part: str) -> Path:
    if _has_classes(path):
        return path
    parts = [folder.name for folder in _folders(path) if _has_classes(folder)]
    if part not in parts:
        raise missing_part(path, part, parts)
    return path / part


def _class_names(path: Path) -> tuple[str, ...]:
    # Over all parts, so that a class has the same number in each of them.
    roots = [path] if _has_classes(path) else [folder for folder in _folders(path) if _has_classes(folder)]
    return tuple(sorted({folder.name for root in roots for folder in _folders(root)}))


def _labelled(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    for class_folder in _folders(folder):
        if class_folder.name not in names:
            raise DataError(f"{class_folder}: labels.txt does not name this class; add it, or take the folder away")
        yield from ((file, names.index(class_folder.name)) for file in _pictures(class_folder))


def _has_classes(folder: Path) -> bool:
    return any(_pictures(class_folder) for class_folder in _folders(folder))


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())


def _decoded(files: list[Path], image_size: int | None) -> list[NDArray[np.uint8]]:
    from PIL.Image import DecompressionBombWarning

    # Pillow warns of a decompression bomb from half of the size on at which it refuses. The filters belong to the whole
    # process, so that they are changed once and not in every thread.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", DecompressionBombWarning)
        return list(pool.map(partial(_decode, image_size=image_size), files))


def _decode(file: Path, image_size: int | None) -> NDArray[np.uint8]:
    """uint8 [C, H, W]. Turned upright where a camera noted that it was held sideways."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = _in_known_mode(ImageOps.exif_transpose(opened), file)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as a picture: {error}") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _in_known_mode(image: Image, file: Path) -> Image:
    if image.mode.startswith(_DEEP_MODES):
        raise DataError(f"{file}: has more than 8 bits a channel ({image.mode}); expected 8, so convert it first")
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _require_one_size(pictures: list[NDArray[np.uint8]], files: list[Path]) -> None:
    first = pictures[0].shape[1:]
    for picture, file in zip(pictures, files, strict=True):
        if picture.shape[1:] != first:
            raise DataError(
                f"{file} is {_size(picture.shape[1:])} pixels and {files[0]} is {_size(first)}; expected all of one "
                f"size, or an image size to scale them to"
            )


def _size(shape: tuple[int, ...]) -> str:
    height, width = shape
    return f"{width}x{height}"


def _stacked(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    channels = max(len(picture) for picture in pictures)
    return np.stack([np.broadcast_to(picture, (channels, *picture.shape[1:])) for picture in pictures])
