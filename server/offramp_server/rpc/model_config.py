"""How an endpoint is described on the wire: ModelMetadata and ModelConfig."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from types import MappingProxyType

from open_inference import grpc_predict_v2_pb2 as pb
from open_inference import model_config_pb2 as config_pb
from open_inference.tensor import BYTES, DATATYPES

from offramp_server.endpoints import EndpointInfo
from offramp_server.model_spec import VARIABLE, TensorSpec

# Where `labels` of an output are written down.
LABEL_FILE = "model.toml"
_DATA_TYPES = MappingProxyType({**{name: f"TYPE_{name}" for name in DATATYPES}, BYTES: "TYPE_STRING"})


def metadata_message(endpoint: EndpointInfo) -> pb.ModelMetadataResponse:
    batched = endpoint.max_batch_size > 0
    return pb.ModelMetadataResponse(
        name=endpoint.name,
        versions=endpoint.versions,
        platform=endpoint.platform,
        inputs=_tensors(endpoint.inputs, batched),
        outputs=_tensors(endpoint.outputs, batched),
    )


def _tensors(specs: Iterable[TensorSpec], batched: bool) -> Iterator[pb.ModelMetadataResponse.TensorMetadata]:
    for spec in specs:
        shape = (VARIABLE, *spec.dims) if batched else spec.dims
        yield pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=shape)


def config_message(endpoint: EndpointInfo) -> config_pb.ModelConfig:
    config = config_pb.ModelConfig(
        name=endpoint.name,
        platform=endpoint.platform,
        backend=endpoint.backend,
        max_batch_size=endpoint.max_batch_size,
        default_model_filename=endpoint.model_filename,
        input=[
            config_pb.ModelInput(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=spec.dims)
            for spec in endpoint.inputs
        ],
        output=[_output(spec) for spec in endpoint.outputs],
        instance_group=[_instances(endpoint)],
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )
    config.version_policy.specific.versions.extend(int(version) for version in endpoint.versions if version.isdecimal())
    _write_scheduling(config, endpoint)
    for key, value in {**endpoint.parameters, **_labels(endpoint)}.items():
        config.parameters[key].string_value = value
    return config


def _output(spec: TensorSpec) -> config_pb.ModelOutput:
    label_file = LABEL_FILE if spec.labels else ""
    return config_pb.ModelOutput(
        name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=spec.dims, label_filename=label_file
    )


def _instances(endpoint: EndpointInfo) -> config_pb.ModelInstanceGroup:
    device, _, number = endpoint.device.partition(":")
    group = config_pb.ModelInstanceGroup
    return group(
        name=f"{endpoint.name}_0",
        count=endpoint.instances,
        kind=group.KIND_GPU if device == "cuda" else group.KIND_CPU,
        gpus=[int(number or 0)] if device == "cuda" else [],
    )


def _write_scheduling(config: config_pb.ModelConfig, endpoint: EndpointInfo) -> None:
    """Clients that measure (perf_analyzer) look here for what else runs, and for what may wait."""
    if endpoint.composing:
        for model in endpoint.composing:
            step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
            step.input_map.update({spec.name: spec.name for spec in endpoint.inputs})
            step.output_map.update({spec.name: spec.name for spec in endpoint.outputs})
    elif endpoint.max_batch_size > 0:
        # A batch leaves as soon as a worker is free.
        config.dynamic_batching.max_queue_delay_microseconds = 0
        policy = config.dynamic_batching.default_queue_policy
        policy.timeout_action = config_pb.ModelQueuePolicy.REJECT
        policy.allow_timeout_override = True
        policy.default_timeout_microseconds = round(endpoint.default_timeout * 1e6)
        policy.max_queue_size = endpoint.max_queue_items


def _labels(endpoint: EndpointInfo) -> dict[str, str]:
    """Triton serves no labels, only the name of their file; here a client can have them as JSON arrays."""
    return {
        f"labels.{spec.name}": json.dumps(spec.labels, ensure_ascii=False) for spec in endpoint.outputs if spec.labels
    }
