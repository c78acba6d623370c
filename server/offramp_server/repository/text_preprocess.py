"""Matches `[preprocess]` of text with the model whose tensors it is to make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from offramp_common.text import did_you_mean
from open_inference.tensor import BF16, BYTES

from offramp_server.errors import ConfigurationError
from offramp_server.model_spec import VARIABLE, TensorSpec
from offramp_server.preprocess.settings import TextPreprocess, TokenTensor
from offramp_server.repository.manifest import FileHashes
from offramp_server.repository.preprocess_toml import SOURCES, TextToml

# What an input of such a name takes, as Hugging Face's models and exporters call them.
_BY_NAME = MappingProxyType({"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"})
_DEFAULT_MAX_LENGTH = 512


def match_text(
    settings: TextToml, inputs: Sequence[TensorSpec], folders: Sequence[Path], hashes: FileHashes, toml: Path
) -> TextPreprocess:
    """`folders` are where the tokenizer may lie, in order. Raises ConfigurationError or OSError."""
    _check_mentioned(settings, inputs, toml)
    tensors = tuple(_token_tensor(settings, tensor, toml) for tensor in inputs)
    if all(tensor.source != "ids" for tensor in tensors):
        _refuse(toml, 'no input of the model takes "ids", the tokens themselves')
    shortest, longest = _bounds(inputs)
    max_length = settings.max_length or (longest if longest is not None else _DEFAULT_MAX_LENGTH)
    if not shortest <= max_length <= (max_length if longest is None else longest):
        _refuse(toml, f"max_length = {max_length}, but the model takes rows from {shortest} to {longest or 'any'}")
    path = _find(settings.tokenizer, folders, toml)
    return TextPreprocess(
        input=settings.input,
        tokenizer=path,
        sha256=hashes.sha256(path),
        tensors=tensors,
        max_length=max_length,
        min_length=shortest,
        truncation=settings.truncation,
        pad_to_multiple_of=settings.pad_to_multiple_of,
        max_bytes=settings.max_bytes,
    )


def _check_mentioned(settings: TextToml, inputs: Sequence[TensorSpec], toml: Path) -> None:
    known = [tensor.name for tensor in inputs]
    for name, source in settings.inputs.items():
        if name not in known:
            _refuse(toml, f'inputs: the model has no input "{name}"{did_you_mean(name, known)}')
        if source not in SOURCES:
            _refuse(toml, f'inputs.{name}: expected one of {", ".join(SOURCES)}, got "{source}"')


def _token_tensor(settings: TextToml, tensor: TensorSpec, toml: Path) -> TokenTensor:
    source = settings.inputs.get(tensor.name) or _BY_NAME.get(tensor.name)
    if source is None:
        _refuse(
            toml,
            f'inputs: nothing says what the model\'s input "{tensor.name}" takes; '
            f'add inputs = {{ {tensor.name} = "ids" }}, or one of {", ".join(SOURCES[1:])}',
        )
    if tensor.datatype in (BYTES, BF16, "BOOL") or len(tensor.dims) != 1:
        shown = f"{tensor.datatype}[{','.join(map(str, tensor.dims))}]"
        _refuse(toml, f'the model\'s input "{tensor.name}" is {shown}; tokens go into a row of numbers, INT64[-1] say')
    return TokenTensor(tensor.name, tensor.datatype, source)


def _bounds(inputs: Sequence[TensorSpec]) -> tuple[int, int | None]:
    """The shortest and the longest row that all inputs take; None: any."""
    lows, highs = zip(*map(_row_bounds, inputs), strict=True)
    return max(lows), min((high for high in highs if high is not None), default=None)


def _row_bounds(tensor: TensorSpec) -> tuple[int, int | None]:
    if tensor.dims[0] != VARIABLE:
        return tensor.dims[0], tensor.dims[0]
    bounds = tensor.ranges[0] if tensor.ranges else None
    return (1, None) if bounds is None else (max(1, bounds[0]), bounds[1])


def _find(file: str, folders: Sequence[Path], toml: Path) -> Path:
    for folder in folders:
        path = folder / file
        if not path.resolve().is_relative_to(toml.parent.resolve()):
            _refuse(toml, f'tokenizer: "{file}" is outside the model\'s folder')
        if path.is_file():
            return path
    return _refuse(toml, f'tokenizer: there is no file "{file}" in {" or ".join(map(str, folders))}')


def _refuse(toml: Path, what: str) -> NoReturn:
    raise ConfigurationError(f"{toml}: preprocess: {what}")
