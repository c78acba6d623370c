"""What can be evaluated: a model file of this package, a `.pt2`, an `.onnx`, or a folder of a model repository."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.evaluation import flops
from offramp_compression.model_file import load
from offramp_compression.modules import parameter_count
from offramp_compression.programs import load_program

Arrays: TypeAlias = tuple[NDArray[Any], ...]
BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that can be asked. ``answer`` takes one batch of model-ready arrays and returns logits, [N, classes]."""

    name: str
    # torch eager | onnxruntime
    engine: str
    answer: Callable[[Arrays], NDArray[np.floating]]
    # None where the file does not tell parameters from other constants.
    parameters: int | None
    size_bytes: int
    # Multiplications and additions, counted separately, for one item; given one item.
    flops: Callable[[Arrays], int | None]
    # None where the file does not name its classes.
    class_names: tuple[str, ...] | None = None

    def logits(self, data: Dataset) -> NDArray[np.floating]:
        starts = range(0, len(data), BATCH_SIZE)
        return np.concatenate([self.answer(batch(data, start, BATCH_SIZE)) for start in starts])


def batch(data: Dataset, start: int, size: int) -> Arrays:
    """``size`` examples from ``start`` on, or as many as there are, as a model takes them."""
    rows = np.arange(start, min(start + size, len(data)))
    return tuple(tensor.numpy() for tensor in tensors(data, rows))


def full_batch(data: Dataset, size: int) -> Arrays:
    """Exactly ``size`` examples, the data set from its beginning and again if it is shorter."""
    rows = np.fromiter(itertools.islice(itertools.cycle(range(len(data))), size), np.int64)
    return tuple(tensor.numpy() for tensor in tensors(data, rows))


def open_subject(path: Path, name: str = "", threads: int = 1, trusted: Collection[str] = ()) -> Subject:
    """Raises ModelError for a file that is none of the three formats, or is damaged.

    ``threads`` are ONNX Runtime's; torch's are the process's (`torch.set_num_threads`). ``trusted`` is as for
    `model_file.load`.
    """
    file = _newest_version(path) if path.is_dir() else path
    title = name or _title(path)
    if not file.is_file():
        raise ModelError(f"{path} does not exist; name a .safetensors, .pt2 or .onnx file, or a model's folder")
    match file.suffix:
        case ".safetensors":
            return _from_model_file(file, title, trusted)
        case ".pt2":
            return _from_program(file, title)
        case ".onnx":
            return _from_onnx(file, title, threads)
    raise ModelError(f"{path} is not a model: expected .safetensors (written by this library), .pt2 or .onnx")


def _title(path: Path) -> str:
    if not path.is_dir():
        return path.stem
    folder = path.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdecimal() else folder.name


def _newest_version(folder: Path) -> Path:
    versions = [child for child in folder.iterdir() if child.name.isdigit() and child.is_dir()]
    for version in (folder, *sorted(versions, key=lambda child: -int(child.name))):
        for file in ("model.onnx", "model.pt2"):
            if (version / file).is_file():
                return version / file
    raise ModelError(
        f"{folder} is not a model's folder, or a version's: it has no VERSION/model.pt2 or VERSION/model.onnx"
    )


def _from_model_file(path: Path, name: str, trusted: Collection[str]) -> Subject:
    network = load(path, trusted=trusted)
    subject = _torch_subject(name, network.module, parameter_count(network.module), path.stat().st_size)
    return replace(subject, class_names=network.class_names)


def _from_program(path: Path, name: str) -> Subject:
    program = load_program(path)
    # In a quantised program the weights are constants like any other.
    quantized = any(each.dtype == torch.int8 for each in (*program.buffers(), *program.constants.values())
                    if isinstance(each, torch.Tensor))  # fmt: skip
    parameters = None if quantized else sum(each.numel() for each in program.parameters())
    return _torch_subject(name, program.module(), parameters, path.stat().st_size)


def _torch_subject(name: str, module: torch.nn.Module, parameters: int | None, size: int) -> Subject:
    @torch.inference_mode()
    def answer(arrays: Arrays) -> NDArray[np.floating]:
        outputs = module(*map(torch.from_numpy, arrays))
        logits: torch.Tensor = outputs[-1] if isinstance(outputs, (tuple, list)) else outputs
        return logits.float().numpy()

    def count(arrays: Arrays) -> int:
        return flops.of_module(module, tuple(map(torch.from_numpy, arrays)))

    return Subject(name, "torch eager", answer, parameters, size, count)


def _from_onnx(path: Path, name: str, threads: int) -> Subject:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's own types derive from Exception alone.
        raise ModelError(f"{path} cannot be opened by ONNX Runtime: {error}") from error
    names = [each.name for each in session.get_inputs()]

    def answer(arrays: Arrays) -> NDArray[np.floating]:
        outputs: list[NDArray[np.floating]] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs[-1]

    size = path.stat().st_size
    external = path.with_name(path.name + ".data")
    if external.is_file():
        size += external.stat().st_size
    return Subject(name, "onnxruntime", answer, None, size, lambda arrays: flops.of_onnx(path, arrays))
