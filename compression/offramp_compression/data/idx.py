"""The files of the MNIST family: two IDX files a part, images and labels, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset
from offramp_compression.data.parts import missing_part, named_classes
from offramp_compression.errors import DataError

# MNIST calls its test part after its ten thousand examples.
_PARTS = {"train": "train", "test": "t10k", "t10k": "t10k"}
_KINDS = {"images": "idx3", "labels": "idx1"}


def holds(path: Path) -> bool:
    return path.is_dir() and any(_find(path, part, "images") for part in _PARTS.values())


def read(path: Path, part: str) -> Dataset:
    """Pixels uint8 [N, 1, H, W]; classes are called by `labels.txt` or by their numbers.

    Raises DataError if a file is missing or damaged, or if there is not one label for every image.
    """
    if part not in _PARTS:
        raise missing_part(path, part, ["train", "test"])
    images = read_idx(_require(path, _PARTS[part], "images"))
    labels = read_idx(_require(path, _PARTS[part], "labels"))
    if images.ndim != 3 or labels.shape != (len(images),):
        raise DataError(
            f"{path} holds {part} images of shape {list(images.shape)} and labels of shape {list(labels.shape)}; "
            f"expected [N, height, width] and [N]"
        )
    return Dataset((images[:, None],), labels.astype(np.int64), named_classes(path) or _numbered(path, labels))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends with .gz (LeCun's MNIST format: two zero bytes, the
    type 0x08, the number of dimensions, each dimension as a big-endian 32-bit integer, then the values).

    Raises DataError if the file is missing, is not gzip or not IDX, or is shorter or longer than its header says.
    """
    content = _content(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it does not begin with 00 00 08.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is damaged: its header ends early.")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    # As Python's integers: a forged header can hold a product that wraps around in 64 bits.
    if len(content) - start != int(np.prod(np.array(shape, dtype=object))):
        raise DataError(f"{path} says it holds {shape} bytes but holds {len(content) - start}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected an IDX file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); it should be a gzipped IDX file.") from error


def _numbered(path: Path, labels: NDArray[np.uint8]) -> tuple[str, ...]:
    # A small test part may lack the last class, so that the labels for training have a say too.
    training = _find(path, _PARTS["train"], "labels")
    every = (labels, read_idx(training)) if training else (labels,)
    return tuple(str(number) for number in range(1 + max(int(some.max(initial=0)) for some in every)))


def _require(path: Path, part: str, kind: str) -> Path:
    found = _find(path, part, kind)
    if found is None:
        raise DataError(f"{path}: {part}-{kind}-{_KINDS[kind]}-ubyte[.gz] is missing")
    return found


def _find(path: Path, part: str, kind: str) -> Path | None:
    # With a dot is how some unpackers of MNIST's own files write the names.
    stems = (f"{part}-{kind}-{_KINDS[kind]}-ubyte", f"{part}-{kind}.{_KINDS[kind]}-ubyte")
    candidates = (path / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
