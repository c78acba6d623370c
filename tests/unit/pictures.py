"""Generated pictures, as files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(pixels: Any, format: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """An array [H,W] or [H,W,3] of bytes, or a Pillow image, as a file."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    file = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(file, format, **options)
    return file.getvalue()


def gradient(height: int, width: int, channels: int | None = None) -> np.ndarray[Any, Any]:
    """Each pixel another value, as far as a byte allows."""
    shape = (height, width) if channels is None else (height, width, channels)
    return (np.arange(np.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


def claiming(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is that large: a decompression bomb, as far as its header goes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
