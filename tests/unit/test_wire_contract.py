"""Our protocol is the one that tritonclient speaks, wherever ours says anything at all.

Both live in one process here: ours in its private descriptor pool, tritonclient's in protobuf's default one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto
from open_inference import grpc_predict_v2_pb2, model_config_pb2
from tritonclient.grpc import model_config_pb2 as triton_model_config_pb2
from tritonclient.grpc import service_pb2 as triton_service_pb2

SERVICE = "GRPCInferenceService"
FILES = (grpc_predict_v2_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
# The service file's proto package imports the other: its pool knows every message of both.
TRITON_POOL = triton_service_pb2.DESCRIPTOR.pool

# Number, type, label, the message or enum it holds, and the oneof it belongs to.
FieldFacts: TypeAlias = tuple[int, int, int, str, str]


def all_messages(file: FileDescriptor) -> Iterator[Descriptor]:
    pending = list(file.message_types_by_name.values())
    while pending:
        message = pending.pop()
        pending.extend(message.nested_types)
        yield message


def all_enums() -> Iterator[EnumDescriptor]:
    for file in FILES:
        yield from file.enum_types_by_name.values()
        for message in all_messages(file):
            yield from message.enum_types


def fields(message: Descriptor) -> dict[str, FieldFacts]:
    proto = DescriptorProto()
    message.CopyToProto(proto)
    oneofs = [oneof.name for oneof in proto.oneof_decl]
    return {
        field.name: (
            field.number,
            field.type,
            field.label,
            field.type_name,
            oneofs[field.oneof_index] if field.HasField("oneof_index") else "",
        )
        for field in proto.field
    }


MESSAGES = sorted((message for file in FILES for message in all_messages(file)), key=lambda message: message.full_name)


@pytest.mark.parametrize("ours", MESSAGES, ids=lambda message: message.full_name)
def test_every_field_has_the_number_type_and_label_that_tritonclient_expects(ours: Descriptor) -> None:
    theirs = fields(TRITON_POOL.FindMessageTypeByName(ours.full_name))

    expected = {name: theirs[name] for name in fields(ours) if name in theirs}

    assert fields(ours) == expected


@pytest.mark.parametrize("ours", list(all_enums()), ids=lambda enum: enum.full_name)
def test_every_enum_value_has_the_number_that_tritonclient_expects(ours: EnumDescriptor) -> None:
    theirs = TRITON_POOL.FindEnumTypeByName(ours.full_name)

    expected = {value.name: value.number for value in theirs.values if value.name in ours.values_by_name}

    assert {value.name: value.number for value in ours.values} == expected


def rpcs(file: Any) -> dict[str, tuple[str, str, bool, bool]]:
    return {
        method.name: (
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
        )
        for method in file.services_by_name[SERVICE].methods
    }


def test_every_rpc_takes_and_returns_what_tritonclient_expects() -> None:
    ours, theirs = rpcs(grpc_predict_v2_pb2.DESCRIPTOR), rpcs(triton_service_pb2.DESCRIPTOR)

    assert ours == {name: theirs[name] for name in ours if name in theirs}
    assert grpc_predict_v2_pb2.DESCRIPTOR.services_by_name[SERVICE].full_name == f"inference.{SERVICE}"


def test_only_cuda_shared_memory_is_missing_from_the_rpcs() -> None:
    missing = set(rpcs(triton_service_pb2.DESCRIPTOR)) - set(rpcs(grpc_predict_v2_pb2.DESCRIPTOR))

    assert missing == {f"CudaSharedMemory{verb}" for verb in ("Register", "Status", "Unregister")}


def test_a_message_of_ours_reads_the_same_in_tritonclient() -> None:
    ours = grpc_predict_v2_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"\x00\x01"])
    ours.parameters["timeout"].int64_param = 5
    ours.inputs.add(name="x", datatype="UINT8", shape=[2])

    theirs = triton_service_pb2.ModelInferRequest.FromString(ours.SerializeToString())

    assert str(theirs) == str(ours)
    assert theirs.raw_input_contents[0] == b"\x00\x01"


def test_the_model_configuration_reads_the_same_in_tritonclient() -> None:
    ours = model_config_pb2.ModelConfig(name="m", max_batch_size=8, backend="b")
    ours.input.add(name="x", data_type=model_config_pb2.TYPE_BF16, dims=[-1])
    ours.dynamic_batching.default_queue_policy.max_queue_size = 3

    theirs = triton_model_config_pb2.ModelConfig.FromString(ours.SerializeToString())

    assert str(theirs) == str(ours)
