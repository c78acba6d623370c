"""Labelled examples as the inputs of a model or route: the data sets that training reads, for a command that asks."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from offramp_adapters.routes.strategy import TensorFacts
from offramp_client.pictures import encoded
from offramp_common.extras import needs_extra
from offramp_compression.cli.limit import limited
from offramp_compression.cli.options import open_data
from open_inference.tensor import Array, encode_bytes

from offramp_server.cli.asking import Asked
from offramp_server.cli.failures import UsageError

if TYPE_CHECKING:
    from offramp_compression.data.dataset import Dataset


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """N examples: `inputs` by name, N first in each; `labels` int64 [N], in the order of the endpoint's classes."""

    inputs: Mapping[str, Array]
    labels: NDArray[np.int64]
    digest: str

    def __len__(self) -> int:
        return len(self.labels)


def open_labelled(options: argparse.Namespace, asked: Asked, classes: tuple[str, ...] | int) -> Labelled:
    """The examples of `add_data_options` for an endpoint with these classes, or so many whose names nobody says.

    Raises UsageError, or an OfframpError of the readers, if they do not fit.
    """
    names = classes if isinstance(classes, tuple) else None
    read = _texts if asked.preprocess == "text" else open_data
    data = read(options, classes=names)
    count = len(classes) if isinstance(classes, tuple) else classes
    if data.labels.max() >= count:
        raise UsageError(
            f'{options.data}: there is a label {data.labels.max()}, and "{asked.target}" has {count} classes: '
            f"expected labels from 0 to {count - 1}"
        )
    inputs = tuple(map(_pictures, data.inputs)) if asked.preprocess == "image" else data.inputs
    if len(inputs) != len(asked.endpoint.inputs):
        takes = ", ".join(map(str, asked.endpoint.inputs))
        raise UsageError(
            f'{options.data}: has {len(inputs)} arrays for each example, and "{asked.target}" takes {takes}'
        )
    named = {info.name: array for info, array in zip(asked.endpoint.inputs, inputs, strict=True)}
    return Labelled(named, data.labels, _digest(data))


def classes_of(deciding: Sequence[TensorFacts]) -> tuple[str, ...] | int:
    """What `open_labelled` takes, of outputs that have the same classes, some of them perhaps with names.

    Raises UsageError for those of which nobody says how many they have.
    """
    named = next((facts.labels for facts in deciding if facts.labels), None)
    count = deciding[0].dims[0]
    if named is None and count < 0:
        raise UsageError(f"output {deciding[0]} has no fixed number of classes, which labels could mean")
    return named or count


def _texts(options: argparse.Namespace, classes: tuple[str, ...] | None) -> Dataset:
    """BYTES [N, 1]."""
    with needs_extra("compression", "reading data"):
        from offramp_compression.data.dataset import Dataset, aligned
        from offramp_compression.data.sources import open_texts
    if options.tokenizer is not None:
        raise UsageError("the model takes texts, and has a tokenizer of its own; leave --tokenizer out")
    texts = open_texts(options.data, options.part, options.format)
    column = np.array([text.encode() for text in texts.texts], dtype=object)[:, None]
    data = Dataset((column,), texts.labels, texts.class_names)
    data = data.take(limited(data.labels, options.limit, options.seed))
    return data if classes is None else aligned(data, classes, str(options.data))


def _pictures(pixels: Array) -> Array:
    """PNG files, BYTES [N, 1], of uint8 [N, C, H, W]."""
    if pixels.dtype != np.uint8:
        raise UsageError(f"the model takes pictures; expected data of pixels (uint8), got {pixels.dtype}")
    files = [encoded(np.ascontiguousarray(each.transpose(1, 2, 0))) for each in pixels]
    column = np.empty((len(files), 1), dtype=object)
    column[:, 0] = files
    return column


def _digest(data: Dataset) -> str:
    """As the data set's own, which knows no texts."""
    if not any(array.dtype == object for array in data.inputs):
        return data.digest()
    state = hashlib.sha256(repr(data.class_names).encode() + data.labels.tobytes())
    for array in data.inputs:
        state.update(encode_bytes(array.ravel().tolist()))
    return state.hexdigest()
