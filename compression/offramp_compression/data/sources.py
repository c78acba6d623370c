"""Data sets as they lie on disk: which format it is, and who reads it.

A folder has parts, "train" and "test"; a single file is taken whole, whatever the part. Where the format itself names
no classes, or to give them an order, a file `labels.txt` beside the data names one class a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from offramp_common.text import did_you_mean, quoted

from offramp_compression.data import arrays, cifar10, idx, image_folder, text_files
from offramp_compression.data.dataset import Dataset, check
from offramp_compression.data.text import TextData, encode
from offramp_compression.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRAIN = "train"


@dataclass(frozen=True, slots=True)
class _Format:
    """`holds` says whether a path looks like it."""

    words: str
    holds: Callable[[Path], bool]


FORMATS: Mapping[str, _Format] = MappingProxyType(
    {
        "idx": _Format("train-images-idx3-ubyte[.gz] and its partners (the MNIST family)", idx.holds),
        "cifar10": _Format("data_batch_1[.bin] and its partners (CIFAR-10)", cifar10.holds),
        "npz": _Format("a file .npz, or train.npz and test.npz", arrays.holds),
        "csv": _Format("a file .csv, or train.csv and test.csv", text_files.holds_csv),
        "tsv": _Format("a file .tsv, or train.tsv and test.tsv", text_files.holds_tsv),
        "image-folder": _Format("[PART/]CLASS/*.png or *.jpg", image_folder.holds),
    }
)
_TEXT = ("csv", "tsv")


def open_dataset(path: Path, part: str = TRAIN, format: str | None = None, *, image_size: int | None = None) -> Dataset:
    """The checked examples of one `part` of the data at `path`, in a `format` of FORMATS or the one that it looks like.

    `image_size` scales and crops the pictures of an image folder to that many pixels a side.
    Raises DataError if there is no such data, if it is damaged, if `check` complains of it (in parts other than "train"
    a class may be without examples), or for text, which `open_texts` reads.
    """
    chosen = _format(path, format)
    if chosen in _TEXT:
        raise DataError(
            f"{path}: holds text, which needs a tokenizer to become a model's input; give its tokenizer.json"
        )
    if image_size is not None and chosen != "image-folder":
        raise DataError(f"{path}: only the pictures of an image folder can be scaled; leave the image size out")
    data = _read(chosen, path, part, image_size)
    check(data, f"{path} ({part})", every_class=part == TRAIN)
    return data


def open_texts(path: Path, part: str = TRAIN, format: str | None = None) -> TextData:
    """The labelled texts of one `part` of the .csv or .tsv at `path`; "text" and "label" are its columns.

    Raises DataError as `open_dataset` does.
    """
    chosen = _format(path, format)
    if chosen not in _TEXT:
        raise DataError(f"{path}: holds no text but {chosen}; expected {FORMATS['csv'].words}, with text and label")
    texts = text_files.read(path, part, chosen)
    empty = Dataset((), texts.labels, texts.class_names)
    check(empty, f"{path} ({part})", every_class=part == TRAIN)
    return texts


def open_encoded(
    path: Path, part: str = TRAIN, format: str | None = None, *, tokenizer: Path | None = None, max_length: int = 128,
    image_size: int | None = None,
) -> Dataset:  # fmt: skip
    """`open_dataset`, or for text the tokens that the Hugging Face `tokenizer` file makes of `open_texts`.

    Raises DataError as they do, and for text without a tokenizer or a tokenizer without text.
    """
    if _format(path, format) not in _TEXT:
        if tokenizer is not None:
            raise DataError(f"{path}: holds no text; leave the tokenizer out")
        return open_dataset(path, part, format, image_size=image_size)
    if tokenizer is None:
        raise DataError(
            f"{path}: holds text, which needs a tokenizer to become a model's input; give its tokenizer.json"
        )
    return encode(open_texts(path, part, format), open_tokenizer(tokenizer), max_length)


def open_tokenizer(path: Path) -> Tokenizer:
    """Raises DataError if the file is not there or is no tokenizer."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise DataError(f"{path}: there is no such file; expected a Hugging Face tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: not a Hugging Face tokenizer.json ({error})") from error


def _read(format: str, path: Path, part: str, image_size: int | None) -> Dataset:
    if format == "image-folder":
        return image_folder.read(path, part, image_size)
    return {"idx": idx.read, "cifar10": cifar10.read, "npz": arrays.read}[format](path, part)


def _format(path: Path, given: str | None) -> str:
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if given is not None:
        if given not in FORMATS:
            raise DataError(f"there is no data format {quoted(given)}{did_you_mean(given, FORMATS)}")
        return given
    for name, format in FORMATS.items():
        if format.holds(path):
            return name
    known = "; ".join(f"{name}: {format.words}" for name, format in FORMATS.items())
    raise DataError(f"{path}: holds no data in a format that is read here, which are: {known}")
