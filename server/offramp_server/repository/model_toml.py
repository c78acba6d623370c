"""`model.toml`: what a model file does not say about itself. Every key may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from offramp_common.engine_names import ALL_ENGINES, AUTO
from offramp_common.toml_schema import Rule, between, bind, every, matches, one_of, read_toml
from open_inference.tensor import DATATYPES

from offramp_server.errors import ConfigurationError
from offramp_server.model_spec import BatchingSettings, EngineSettings, WarmupSettings
from offramp_server.repository.preprocess_toml import PreprocessToml, bind_preprocess
from offramp_server.repository.zero_shot import ZeroShotToml

_TensorName = Annotated[str, matches(r"[^\s\x00-\x1f\x7f]{1,256}", "a name of at most 256 characters without spaces")]
_Dims = Annotated[tuple[int, ...], every(Rule("at least 1, or -1 where it varies", lambda dim: dim == -1 or dim >= 1))]


@dataclass(frozen=True, slots=True)
class TensorToml:
    """`[[inputs]]` or `[[outputs]]`.

    In a `.pt2` the first one is forward's first argument or result, and so on. In an `.onnx` they are matched by name.
    """

    # What clients call it.
    name: _TensorName
    # Has to be what the file has; left out: taken from the file.
    datatype: Annotated[str, one_of(*DATATYPES)] | None = None
    # Without the batch dimension; -1 varies. May narrow what the file leaves open.
    dims: _Dims | None = None
    # The name inside an .onnx file, if it is another one.
    source: str = ""
    # What the positions along the last dimension of an output mean, for Triton's classification extension.
    labels: tuple[str, ...] = ()
    # The same, one a line, in a file of the model's folder.
    labels_file: str = ""


# Conditions on the settings that are shared with the rest of the server.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "engine.backend": one_of(AUTO, *ALL_ENGINES),
        "engine.device": matches(r"auto|cpu|cuda(:\d+)?", '"auto", "cpu", "cuda" or "cuda:N"'),
        "engine.precision": one_of("fp32", "fp16", "bf16"),
        "engine.instances": between(0, 256),
        "engine.threads": between(0, 1024),
        "batching.max_queue_items": between(1),
        "batching.default_timeout": between(0),
        "warmup.batch_sizes": every(between(1)),
        "warmup.variable_dim": between(1),
        "warmup.iterations": between(0, 1000),
    }
)


@dataclass(frozen=True, slots=True)
class ModelToml:
    """The file as written."""

    # Items in one batch; 0: the model has no batch dimension. Left out: read from the file.
    max_batch_size: Annotated[int, between(0, 65536)] | None = None
    # Which versions are served: the highest, every one, or a list.
    versions: Literal["latest", "all"] | Annotated[tuple[int, ...], every(between(1))] = "latest"
    inputs: tuple[TensorToml, ...] = ()
    outputs: tuple[TensorToml, ...] = ()
    engine: EngineSettings = field(default_factory=EngineSettings)
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    # Free text pairs, shown to clients in ModelConfig.
    metadata: Mapping[str, str] = field(default_factory=dict)
    preprocess: PreprocessToml | None = None
    zero_shot: ZeroShotToml | None = None


def read_model_toml(path: Path) -> ModelToml:
    """Read the file, or take the defaults where there is none. Raises ConfigurationError."""
    if not path.is_file():
        return ModelToml()
    table = read_toml(path)
    # Apart, for which keys it has depends on what it is for.
    preprocess = table.pop("preprocess", None)
    model = bind(ModelToml, table, path, RULES)
    if preprocess is not None:
        model = replace(model, preprocess=bind_preprocess(preprocess, path))
    _check_names(path, "inputs", model.inputs)
    _check_names(path, "outputs", model.outputs)
    if not model.versions:
        raise ConfigurationError(
            f'{path}: versions: expected "latest", "all" or at least one version, got an empty list'
        )
    return model


def _check_names(path: Path, key: str, tensors: tuple[TensorToml, ...]) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise ConfigurationError(f'{path}: {key}: two are named "{tensor.name}"; give each its own name')
        names.add(tensor.name)
        if tensor.labels and tensor.labels_file:
            raise ConfigurationError(f'{path}: {key}: "{tensor.name}" has both labels and labels_file; keep one')
        if key == "inputs" and (tensor.labels or tensor.labels_file):
            raise ConfigurationError(f'{path}: inputs: "{tensor.name}" has labels; only outputs can have them')


def read_labels(model_folder: Path, tensor: TensorToml) -> tuple[str, ...]:
    """An output's labels, from the table or from the file that it names. Raises ConfigurationError."""
    if not tensor.labels_file:
        return tensor.labels
    path = model_folder / tensor.labels_file
    where = f"{model_folder / 'model.toml'}: labels_file"
    if not path.resolve().is_relative_to(model_folder.resolve()):
        raise ConfigurationError(f'{where}: "{tensor.labels_file}" is outside the model\'s folder')
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where}: {path} cannot be read as text: {error}") from None
