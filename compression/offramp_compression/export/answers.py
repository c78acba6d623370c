"""Asking a module, or a model file by way of the library that serves it: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp_compression.errors import ExportError
from offramp_compression.programs import load_program

Arrays: TypeAlias = tuple[NDArray[Any], ...]
# Takes the inputs of one batch, and returns the outputs in order.
Answer: TypeAlias = Callable[[Sequence[Tensor]], Arrays]


def of_module(module: Callable[..., Any]) -> Answer:
    """A module as it is, without gradients. It has to be in evaluation mode."""

    def answer(inputs: Sequence[Tensor]) -> Arrays:
        with torch.inference_mode():
            results = module(*inputs)
        tensors = results if isinstance(results, tuple | list) else (results,)
        return tuple(tensor.numpy() for tensor in tensors)

    return answer


def of_file(path: Path) -> Answer:
    """A `.pt2` as the server reads it, an `.onnx` through ONNX Runtime with as many threads as torch has.

    Raises ExportError if that library cannot load it.
    """
    try:
        return onnx_answer(str(path)) if path.suffix == ".onnx" else of_module(load_program(path).module())
    except Exception as error:
        # Neither library has a type for it.
        raise ExportError(f"{path.name} was written and cannot be loaded: {error}") from error


def in_batches(answer: Answer, inputs: Sequence[Tensor], batch_size: int) -> Arrays:
    """All rows of `inputs`, the first one alone: a file that takes only some batch sizes must not go unnoticed."""
    answers = [answer(batch) for batch in _batches(inputs, batch_size)]
    return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))


def _batches(inputs: Sequence[Tensor], batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    yield tuple(tensor[:1] for tensor in inputs)
    for start in range(1, len(inputs[0]), batch_size):
        yield tuple(tensor[start : start + batch_size] for tensor in inputs)


def onnx_answer(model: str | bytes) -> Answer:
    """An ONNX model, by its path or as bytes, through ONNX Runtime with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def answer(inputs: Sequence[Tensor]) -> Arrays:
        return tuple(session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}))

    return answer
