"""A network that has learnt nothing yet, made to fit its data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp_compression.architectures import ARCHITECTURES
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.inputs import try_out
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance

# Pixels of so many pictures say enough of their mean and spread.
_SAMPLED = 10_000
# So many are looked at in double precision at a time, as all of them would take more memory than the data.
_CHUNK = 256

_LEAVE_OUT = "leave out the arguments that the data decide, such as num_classes, in_channels and image_size"


def new_network(
    architecture: str, arguments: Mapping[str, Any], data: Dataset, seed: int = 0, *, vocabulary: int | None = None
) -> Network:
    """`architecture` with fresh weights, drawn by `seed`; torch's global random state is left as it was.

    Of the arguments that are not given, those that the data decide are filled in: the number of classes, the channels
    and the side of pictures, the mean and spread of their pixels, and `vocabulary`, the number of tokens. Raises
    ModelError for an architecture that does not exist or does not take the arguments, and for arguments with which it
    does not take the data or does not tell their classes apart.
    """
    blueprint = Blueprint(architecture, {**_fitting(architecture, data, vocabulary), **arguments})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = blueprint.build()
    _require_fit(module.eval(), data)
    return Network(module, blueprint, data.class_names, input_names(data), ("logits",), Provenance("new"))


def _require_fit(module: nn.Module, data: Dataset) -> None:
    try:
        answer = try_out(module, data)
    except ModelError as error:
        raise ModelError(f"{error}; {_LEAVE_OUT}") from error
    logits = answer[-1] if isinstance(answer, tuple) else answer
    shape = list(logits.shape) if isinstance(logits, Tensor) else [type(logits).__name__]
    if shape[1:] != [len(data.class_names)]:
        raise ModelError(
            f"the network answers with shape {shape}, and data of {len(data.class_names)} classes need "
            f"[examples, {len(data.class_names)}]; {_LEAVE_OUT}"
        )


def input_names(data: Dataset) -> tuple[str, ...]:
    """What a network calls the inputs that it learns from."""
    if len(data.inputs) == 1 and data.inputs[0].ndim == 4:
        return ("image",)
    if len(data.inputs) == 2 and all(np.issubdtype(array.dtype, np.integer) for array in data.inputs):
        return ("input_ids", "attention_mask")
    return tuple(f"input{position}" for position in range(len(data.inputs)))


def _fitting(architecture: str, data: Dataset, vocabulary: int | None) -> dict[str, Any]:
    known: dict[str, Any] = {"num_classes": len(data.class_names)}
    if vocabulary is not None:
        known |= {"vocabulary_size": vocabulary, "vocabulary": vocabulary}
    if data.inputs[0].ndim == 4:
        known |= _of_pictures(data)
    # An architecture of somebody else's is told of the classes, and takes what else it needs from its arguments.
    taken = (
        inspect.signature(ARCHITECTURES[architecture]).parameters if architecture in ARCHITECTURES else ("num_classes",)
    )
    return {name: value for name, value in known.items() if name in taken}


def _of_pictures(data: Dataset) -> dict[str, Any]:
    pictures = data.inputs[0][:: max(1, len(data) // _SAMPLED)]
    scale = 255.0 if pictures.dtype == np.uint8 else 1.0
    mean, spread = mean_and_spread(pictures)
    # Four digits, as they go into a model file's header for people to read.
    return {
        "in_channels": pictures.shape[1], "image_size": pictures.shape[2],
        "mean": [round(float(value), 4) for value in mean / scale],
        "std": [round(float(value), 4) or 1.0 for value in spread / scale],
    }  # fmt: skip


def mean_and_spread(pictures: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the standard deviation of each channel, [C] each, of pictures [N, C, H, W] of any datatype."""
    mean = _mean(pictures, lambda values: values)
    variance = _mean(pictures, lambda values: (values - mean[:, None, None]) ** 2)
    return mean, np.sqrt(variance)


def _mean(pictures: NDArray[Any], of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    chunks = (pictures[start : start + _CHUNK].astype(np.float64) for start in range(0, len(pictures), _CHUNK))
    total = np.zeros(pictures.shape[1])
    for chunk in chunks:
        total += of(chunk).sum((0, 2, 3))
    total /= pictures.size / pictures.shape[1]
    return total
