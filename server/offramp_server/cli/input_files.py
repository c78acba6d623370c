"""The inputs of `offramp infer`: JSON, .npy, pictures and text, read as tensors of the declared datatypes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from offramp_client import TensorInfo
from open_inference.tensor import BYTES, Array, Tensor

from offramp_server.cli.declared import Declared
from offramp_server.cli.failures import UsageError, usage_errors
from offramp_server.cli.images import SUFFIXES, read_image


@dataclass(frozen=True, slots=True)
class NamedFile:
    """`--input NAME=FILE`, or FILE alone with an empty name."""

    name: str
    path: Path


@dataclass(slots=True)
class Request:
    """What is to be sent, and remarks on what was done to the files for that."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    # Empty: all.
    outputs: list[str] = field(default_factory=list)
    id: str | None = None
    remarks: list[str] = field(default_factory=list)


def read_request(files: Sequence[NamedFile], model: Declared) -> Request:
    """Raises UsageError for a file that cannot be read as the input that it is for."""
    request = Request()
    with usage_errors():
        for file in files:
            _add_file(request, file, model)
    missing = [name for name in model.inputs if name not in request.inputs]
    if missing:
        raise UsageError(f"no file for input {', '.join(missing)}; the model takes {_signature(model)}")
    return request


def _add_file(request: Request, file: NamedFile, model: Declared) -> None:
    _require_file(file.path, model)
    suffix = file.path.suffix.lower()
    document = _parse_json(file.path) if suffix == ".json" else None
    if not file.name and isinstance(document, dict) and "inputs" in document:
        _add_document(request, document, file.path, model)
        return
    info = _input(file.name, model, file.path)
    if suffix == ".json":
        _add_array(request, info, _array(info.name, document), model)
    elif suffix == ".npy":
        _add_array(request, info, np.load(file.path, allow_pickle=False), model)
    elif info.datatype == BYTES:
        _add_bytes(request, info, file.path, model)
    elif suffix in SUFFIXES:
        pixels, remark = read_image(file.path, info.datatype, model.item_dims(info))
        request.remarks.append(f"{info.name}: {file.path.name}, {remark}")
        _add_array(request, info, pixels, model)
    else:
        raise UsageError(
            f"{file.path}: expected .json, .npy or a picture for input {info}; other files are text, for BYTES inputs"
            f"{_of_tokens(model)}"
        )


def _require_file(path: Path, model: Declared) -> None:
    if path.exists():
        return
    hint = ""
    if model.preprocess == "text":
        hint = f"; model {model.name} takes text from a file: echo 'some text' | offramp infer {model.name} /dev/stdin"
    raise UsageError(f"{path}: there is no such file{hint}")


def _of_tokens(model: Declared) -> str:
    """How a model of tokens becomes one of texts."""
    if any(info.datatype != "INT64" for info in model.inputs.values()):
        return ""
    return (
        "; a model of tokens takes text once its model.toml has [preprocess], as offramp export --tokenizer writes it"
    )


def _add_document(request: Request, document: Mapping[str, Any], path: Path, model: Declared) -> None:
    """`{"inputs": {NAME: VALUES}}`, or a request of the Open Inference Protocol's JSON form."""
    inputs = document["inputs"]
    if isinstance(inputs, dict):
        for name, values in inputs.items():
            _add_array(request, _input(name, model, path), _array(name, values), model)
    elif isinstance(inputs, list):
        for entry in inputs:
            _add_entry(request, entry, path, model)
    else:
        raise UsageError(f'{path}: "inputs": expected an object or a list')
    request.id = document.get("id")
    request.parameters.update(document.get("parameters", {}))
    request.outputs.extend(_output_names(document, path))


def _output_names(document: Mapping[str, Any], path: Path) -> list[str]:
    try:
        return [output["name"] for output in document.get("outputs", [])]
    except (KeyError, TypeError):
        raise UsageError(f'{path}: "outputs": expected entries with "name"') from None


def _add_entry(request: Request, entry: Any, path: Path, model: Declared) -> None:
    if not isinstance(entry, dict) or not {"name", "data"} <= entry.keys():
        raise UsageError(f'{path}: "inputs": expected entries with "name", "shape", "datatype" and "data"')
    info = _input(entry["name"], model, path)
    array = _array(info.name, entry["data"])
    if "shape" in entry:
        array = array.reshape(entry["shape"])
    _put(request, Tensor.from_numpy(info.name, array, entry.get("datatype", info.datatype)))


def _add_array(request: Request, info: TensorInfo, array: Array, model: Declared) -> None:
    if model.batched and array.ndim == len(info.shape) - 1:
        request.remarks.append(f"{info.name}: {list(array.shape)} is sent as a batch of one")
        array = array[None]
    _put(request, Tensor.from_numpy(info.name, array, info.datatype))


def _add_bytes(request: Request, info: TensorInfo, path: Path, model: Declared) -> None:
    """A whole file is one element."""
    content = path.read_bytes()
    if path.suffix.lower() not in SUFFIXES:
        content = content.removesuffix(b"\n")
    dims = [1 if length < 0 else length for length in model.item_dims(info)]
    element = np.empty(1, dtype=object)
    element[0] = content
    _add_array(request, info, element.reshape(dims), model)


def _put(request: Request, tensor: Tensor) -> None:
    if tensor.name in request.inputs:
        raise UsageError(f'input "{tensor.name}" is given twice')
    request.inputs[tensor.name] = tensor


def _input(name: str, model: Declared, path: Path) -> TensorInfo:
    if not name and len(model.inputs) == 1:
        return next(iter(model.inputs.values()))
    if not name:
        raise UsageError(
            f"{path}: which input is it for? Use --input NAME=FILE; the model takes {_signature(model)}"
            f"{_of_tokens(model)}"
        )
    if name not in model.inputs:
        raise UsageError(f'{path}: the model has no input "{name}"; it takes {_signature(model)}')
    return model.inputs[name]


def _signature(model: Declared) -> str:
    return ", ".join(map(str, model.inputs.values()))


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from None


def _array(name: str, values: Any) -> Array:
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(f'input "{name}": its lists have different lengths; expected all of one length') from None
    if array.dtype == object:
        raise UsageError(f'input "{name}": expected nested lists of numbers, true and false, or strings')
    return array
