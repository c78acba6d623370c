"""A model file and its `model.toml` together: the `ModelSpec` that is served, or what does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp_common.formats.source_model import Dimension, SourceModel, SourceTensor
from open_inference.tensor import BYTES

from offramp_server.errors import ConfigurationError
from offramp_server.model_spec import VARIABLE, ModelSpec, TensorSpec
from offramp_server.preprocess.settings import Preprocess
from offramp_server.repository.image_preprocess import match_image
from offramp_server.repository.layout import MODEL_TOML
from offramp_server.repository.manifest import FileHashes
from offramp_server.repository.model_toml import ModelToml, TensorToml, read_labels
from offramp_server.repository.preprocess_toml import TextToml
from offramp_server.repository.text_preprocess import match_text
from offramp_server.repository.zero_shot import match_zero_shot

# What one batch holds at most where nothing is said.
DEFAULT_MAX_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """One version of a model, read and verified, but not yet matched with its settings."""

    name: str
    version: int
    # The model's folder.
    folder: Path
    source: SourceModel
    settings: ModelToml
    digest: str
    size_bytes: int
    hashes: FileHashes


def assemble(candidate: Candidate) -> ModelSpec:
    """Raises ConfigurationError where `model.toml` and the file disagree, showing both."""
    source, settings = candidate.source, candidate.settings
    toml = candidate.folder / MODEL_TOML
    max_batch_size = _max_batch_size(source, settings, toml)
    _check_warmup(settings, max_batch_size, toml)
    inputs = _Matcher(candidate, toml, "inputs", max_batch_size > 0).match(source.inputs, settings.inputs)
    outputs = _Matcher(candidate, toml, "outputs", max_batch_size > 0).match(source.outputs, settings.outputs)
    spec = ModelSpec(
        name=candidate.name,
        version=candidate.version,
        path=source.path,
        format=source.format,
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=outputs,
        engine=settings.engine,
        batching=settings.batching,
        warmup=settings.warmup,
        digest=candidate.digest,
        size_bytes=candidate.size_bytes,
        quantized=source.quantized,
        metadata={**source.provenance, **settings.metadata},
        preprocess=_preprocess(candidate, inputs, toml),
    )
    return spec if settings.zero_shot is None else match_zero_shot(settings.zero_shot, spec, toml)


def _preprocess(candidate: Candidate, inputs: Sequence[TensorSpec], toml: Path) -> Preprocess | None:
    settings = candidate.settings.preprocess
    if settings is None:
        return None
    for tensor in inputs:
        if tensor.name == settings.input:
            raise ConfigurationError(
                f'{toml}: preprocess.input: the model has an input "{tensor.name}" of its own; choose another name'
            )
    if isinstance(settings, TextToml):
        folders = (candidate.source.path.parent, candidate.folder)
        return match_text(settings, inputs, folders, candidate.hashes, toml)
    return match_image(settings, inputs, toml)


# Batching


def _max_batch_size(source: SourceModel, settings: ModelToml, toml: Path) -> int:
    obstacle, limit = _batch_limit(source)
    wanted = settings.max_batch_size
    if wanted is None:
        return 0 if obstacle else min(limit, DEFAULT_MAX_BATCH_SIZE)
    if wanted and obstacle:
        reason = f"{source.path} cannot be batched: {obstacle}. {_remedy(source, wanted)}"
        raise ConfigurationError(f"{toml}: max_batch_size = {wanted}, but {reason}")
    if wanted > limit:
        raise ConfigurationError(
            f"{toml}: max_batch_size = {wanted}, but {source.path} takes batches of at most {limit}"
        )
    return wanted


def _batch_limit(source: SourceModel) -> tuple[str, int]:
    """Why the first dimension is not one of independent items ("": it is), and how many it may hold."""
    symbol: str | None = None
    limit = 2**31 - 1
    for kind, tensor in _tensors(source):
        if tensor.dimensions is None:
            return f'the shape of {kind} "{tensor.name}" is not known', 0
        if not tensor.dimensions or tensor.dimensions[0].size is not None:
            return f'the first dimension of {kind} "{tensor.name}" {_text(tensor)} does not vary', 0
        first = tensor.dimensions[0]
        if source.format == "pt2" or kind == "input":
            symbol = symbol or first.symbol
            if first.symbol != symbol:
                return f'the first dimensions vary independently ({symbol}, and {first} of {kind} "{tensor.name}")', 0
        low, high = first.bounds or (0, limit)
        if low > 1:
            return f"it takes {low} items or more, and a batch of one must be possible", 0
        limit = min(limit, high)
    elsewhere = _used_elsewhere(source, symbol)
    if elsewhere:
        return f"the first dimension also decides another one of {elsewhere}", 0
    return ("", limit) if source.inputs else ("it has no inputs", 0)


def _used_elsewhere(source: SourceModel, symbol: str | None) -> str:
    """Rows are independent only if their number decides nothing but the number of rows."""
    if symbol is None:
        return ""
    mention = re.compile(rf"(?<!\w){re.escape(symbol)}(?!\w)")
    for kind, tensor in _tensors(source):
        if any(mention.search(dimension.symbol or "") for dimension in (tensor.dimensions or ())[1:]):
            return f'{kind} "{tensor.name}" {_text(tensor)}'
    return ""


def _tensors(source: SourceModel) -> Iterator[tuple[str, SourceTensor]]:
    yield from (("input", tensor) for tensor in source.inputs)
    yield from (("output", tensor) for tensor in source.outputs)


def _remedy(source: SourceModel, wanted: int) -> str:
    if source.format == "onnx":
        return "Export it again with a first dimension that varies, or leave max_batch_size out"
    shapes = ", ".join(f'"{tensor.name}": {{0: batch}}' for tensor in source.inputs)
    return (
        f'Export it again with batch = torch.export.Dim("batch", min=1, max={wanted}) and dynamic_shapes={{{shapes}}}, '
        f"or leave max_batch_size out"
    )


def _check_warmup(settings: ModelToml, max_batch_size: int, toml: Path) -> None:
    for size in settings.warmup.batch_sizes:
        if size > max(max_batch_size, 1):
            raise ConfigurationError(
                f"{toml}: warmup.batch_sizes: {size} is more than max_batch_size = {max_batch_size}"
            )


# Tensors


class _Matcher:
    """Matches the tensors of a file with the tables of `model.toml` that name them."""

    def __init__(self, candidate: Candidate, toml: Path, key: str, batches: bool) -> None:
        self._folder = candidate.folder
        self._source = candidate.source
        self._toml = toml
        self._key = key
        self._skipped = 1 if batches else 0

    def match(self, found: Sequence[SourceTensor], declared: Sequence[TensorToml]) -> tuple[TensorSpec, ...]:
        if not declared:
            return tuple(
                self._spec(tensor, TensorToml(self._default_name(i, tensor))) for i, tensor in enumerate(found)
            )
        if self._source.named:
            return tuple(self._spec(tensor, entry) for tensor, entry in self._by_name(found, declared))
        if len(declared) != len(found):
            raise self._wrong(f"{len(declared)} are declared, but the file has {len(found)} ({_names(found)})")
        return tuple(self._spec(tensor, entry) for tensor, entry in zip(found, declared, strict=True))

    def _default_name(self, position: int, tensor: SourceTensor) -> str:
        # torch.export names results after their last operation, which no client should see.
        return tensor.name if self._source.named or self._key == "inputs" else f"output{position}"

    def _by_name(
        self, found: Sequence[SourceTensor], declared: Sequence[TensorToml]
    ) -> Iterator[tuple[SourceTensor, TensorToml]]:
        """Every input is needed; outputs that are not declared are not served."""
        known = {tensor.name: tensor for tensor in found}
        for entry in declared:
            wanted = entry.source or entry.name
            if wanted not in known:
                raise self._wrong(f'"{wanted}" is not in the file, which has {_names(found)}')
            yield known[wanted], entry
        missing = known.keys() - {entry.source or entry.name for entry in declared}
        if self._key == "inputs" and missing:
            raise self._wrong(f'"{min(missing)}" of the file is not declared; declare all of {_names(found)}')

    def _spec(self, tensor: SourceTensor, entry: TensorToml) -> TensorSpec:
        if entry.datatype not in (None, tensor.datatype):
            raise self._disagrees(tensor, entry)
        dimensions = self._dimensions(tensor, entry)
        dims = tuple(VARIABLE if dimension.size is None else dimension.size for dimension in dimensions)
        return TensorSpec(
            name=entry.name,
            datatype=tensor.datatype,
            dims=dims,
            symbols=tuple(dimension.symbol for dimension in dimensions),
            ranges=tuple(dimension.bounds for dimension in dimensions),
            labels=self._labels(entry, dims),
            source="" if tensor.name == entry.name else tensor.name,
            # ONNX has strings where the protocol has bytes.
            utf8=tensor.datatype == BYTES and self._source.format == "onnx",
        )

    def _dimensions(self, tensor: SourceTensor, entry: TensorToml) -> tuple[Dimension, ...]:
        if tensor.dimensions is None:
            if entry.dims is None:
                raise self._wrong(f'the file does not say the shape of "{tensor.name}"; declare its dims')
            return tuple(Dimension(None if dim == VARIABLE else dim) for dim in entry.dims)
        own = tensor.dimensions[self._skipped :]
        if entry.dims is None:
            return own
        if len(entry.dims) != len(own) or not all(map(_fits, entry.dims, own)):
            raise self._disagrees(tensor, entry)
        pairs = zip(entry.dims, own, strict=True)
        return tuple(dimension if dim == VARIABLE else Dimension(dim) for dim, dimension in pairs)

    def _labels(self, entry: TensorToml, dims: tuple[int, ...]) -> tuple[str, ...]:
        labels = read_labels(self._folder, entry)
        classes = math.prod(dims)
        if labels and VARIABLE not in dims and len(labels) != classes:
            raise self._wrong(f'"{entry.name}" has {len(labels)} labels for {classes} values')
        return labels

    def _disagrees(self, tensor: SourceTensor, entry: TensorToml) -> ConfigurationError:
        own = (tensor.dimensions or ())[self._skipped :]
        shown = own if entry.dims is None else entry.dims
        batch = " (the batch dimension left out)" if self._skipped else ""
        return self._wrong(
            f'"{entry.name}": declared {_shape(entry.datatype or tensor.datatype, shown)}, '
            f"the file has {_shape(tensor.datatype, own)}{batch}"
        )

    def _wrong(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._toml}: {self._key}: {what}")


def _fits(declared: int, dimension: Dimension) -> bool:
    if dimension.size is not None:
        return declared == dimension.size
    low, high = dimension.bounds or (0, declared)
    return declared == VARIABLE or low <= declared <= high


def _names(tensors: Sequence[SourceTensor]) -> str:
    return ", ".join(f'"{tensor.name}"' for tensor in tensors)


def _text(tensor: SourceTensor) -> str:
    return _shape(tensor.datatype, tensor.dimensions or ())


def _shape(datatype: str, dims: Sequence[object]) -> str:
    return f"{datatype}[{','.join(map(str, dims))}]"
