"""Pictures in whatever form an app has them, as the bytes of a file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour types of the PNG specification (W3C, third edition, 2025, section 11.2.1), by channels.
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}


class SavesItself(Protocol):
    """A Pillow image."""

    def save(self, file: Any, /, format: str) -> None: ...


#: A JPEG or PNG file as its bytes or its path, pixels as an array of uint8 ([height, width], or with 1, 3 or 4
#: channels last), or a Pillow image. What is no file is sent as PNG, which loses nothing.
Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | npt.NDArray[np.uint8] | SavesItself


def encoded(image: Image) -> bytes:
    """Raises TypeError or ValueError for what is no picture, OSError for a file that cannot be read."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _png(image)
    if hasattr(image, "save"):
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()
    raise TypeError(
        f"image= takes the bytes or the path of a JPEG or PNG file, an array of pixels or a Pillow image, or a list of "
        f"them; got {type(image).__name__}"
    )


def _png(pixels: npt.NDArray[Any]) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(
            f"an array of pixels is uint8 in [height, width] or [height, width, channels], got {pixels.dtype} in "
            f"{list(pixels.shape)}; several pictures go into a list"
        )
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in _COLOUR_TYPES:
        raise ValueError(f"pixels have 1, 3 or 4 channels, got {channels} in {list(pixels.shape)}")
    # Each row begins with the number of its filter; 0 is none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    # Quickly rather than small.
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
