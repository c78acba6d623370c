"""CIFAR-10's files as they are published: rows of bytes, and pickles that Python 2 wrote."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def batch(count: int, seed: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels uint8 [count, 3072] and labels that go round the ten classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, [number % 10 for number in range(count)]


def write_binary(folder: Path, batches: dict[str, tuple[NDArray[np.uint8], list[int]]]) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def write_python(folder: Path, batches: dict[str, tuple[NDArray[np.uint8], list[int]]]) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        (folder / name).write_bytes(pickled({"data": pixels, "labels": labels, "batch_label": name}))


def pickled(value: Any) -> bytes:
    """`value` in protocol 2 as Python 2's cPickle wrote it: text as byte strings, arrays under numpy.core."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(element) for key, element in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, np.ndarray):
        return _array(value)
    content = value if isinstance(value, bytes) else value.encode()
    return b"T" + struct.pack("<i", len(content)) + content


def _array(array: NDArray[Any]) -> bytes:
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n(K\0t" + b"U\x01b" + b"\x87R"
    kind = array.dtype.str[1:].encode()
    data_type = b"cnumpy\ndtype\n" + b"U" + bytes([len(kind)]) + kind + b"K\0K\x01\x87R"
    data_type += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"(" + b"".join(map(_opcodes, array.shape)) + b"t"
    return reconstruct + b"(K\x01" + shape + data_type + b"\x89" + _opcodes(array.tobytes()) + b"tb"
