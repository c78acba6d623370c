"""What a server says about itself and its models: plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from open_inference import grpc_predict_v2_pb2 as pb
from open_inference import model_config_pb2 as config_pb

# Where an Offramp server's model configuration has the labels of an output, as a JSON list, and where models come from.
LABELS_PREFIX = "labels."
PROVENANCE_PREFIX = "provenance."


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The server's name and version, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: tuple[str, ...]

    @classmethod
    def from_message(cls, message: pb.ServerMetadataResponse) -> ServerMetadata:
        return cls(message.name, message.version, tuple(message.extensions))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output: its datatype by the protocol's name ("FP32", "BYTES") and its shape, -1 = any length.

    The shape begins with the batch dimension in ModelMetadata and leaves it out in ModelConfig.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.datatype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What has to be known to call a model or a route."""

    name: str
    #: The versions that can answer.
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @classmethod
    def from_message(cls, message: pb.ModelMetadataResponse) -> ModelMetadata:
        return cls(
            message.name,
            tuple(message.versions),
            message.platform,
            tuple(TensorInfo(item.name, item.datatype, tuple(item.shape)) for item in message.inputs),
            tuple(TensorInfo(item.name, item.datatype, tuple(item.shape)) for item in message.outputs),
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How a model is served."""

    name: str
    platform: str
    #: The engine that was really chosen.
    backend: str
    #: In items; 0: the model has no batch dimension.
    max_batch_size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    #: How many copies of the model run.
    instances: int
    #: What the server knows besides: the engine and why, the model file's sha256, the pairs of model.toml's [metadata].
    parameters: dict[str, str]

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """By output, what the positions along its last dimension mean, as far as the server says."""
        return {
            name.removeprefix(LABELS_PREFIX): tuple(json.loads(text))
            for name, text in self.parameters.items()
            if name.startswith(LABELS_PREFIX)
        }

    @property
    def provenance(self) -> dict[str, str]:
        """How the model was made, as far as whoever made it says: method, seed, data_digest, settings.*, metrics.*"""
        return {
            name.removeprefix(PROVENANCE_PREFIX): text
            for name, text in self.parameters.items()
            if name.startswith(PROVENANCE_PREFIX)
        }

    @classmethod
    def from_message(cls, message: pb.ModelConfigResponse) -> ModelConfig:
        config = message.config
        return cls(
            config.name,
            config.platform,
            config.backend,
            config.max_batch_size,
            tuple(TensorInfo(item.name, _datatype(item.data_type), tuple(item.dims)) for item in config.input),
            tuple(TensorInfo(item.name, _datatype(item.data_type), tuple(item.dims)) for item in config.output),
            sum(group.count for group in config.instance_group),
            {name: parameter.string_value for name, parameter in config.parameters.items()},
        )


def _datatype(data_type: int) -> str:
    name = enum_name(config_pb.DataType, data_type, "TYPE_")
    return "BYTES" if name == "STRING" else name


def enum_name(enum: Any, number: int, prefix: str) -> str:
    """A newer server may have values that this client does not know: they stay numbers."""
    return str(enum.Name(number)).removeprefix(prefix) if number in enum.values() else str(number)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model in the repository. `state` is READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    version: str
    state: str
    #: Why it is not ready.
    reason: str

    @property
    def ready(self) -> bool:
        return self.state == "READY"

    @classmethod
    def from_message(cls, message: pb.RepositoryIndexResponse.ModelIndex) -> IndexEntry:
        return cls(message.name, message.version, message.state, message.reason)
