"""Reflection: a client without .proto files finds its way."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from rpc_fakes import running

VERSIONS = ("v1", "v1alpha")


async def ask(address: str, version: str, *requests: reflection_pb2.ServerReflectionRequest) -> list[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        # The messages of both versions are the same on the wire.
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        return [response async for response in call(iter(requests))]


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_service_is_listed_and_its_messages_can_be_built(version: str) -> None:
    request = reflection_pb2.ServerReflectionRequest
    async with running() as server:
        [listed] = await ask(server.address, version, request(list_services=""))
        names = [service.name for service in listed.list_services_response.service]
        answers = await ask(server.address, version, *(request(file_containing_symbol=name) for name in names))

    assert names == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "offramp.v1.RouteService",
    ]
    for name, answer in zip(names, answers, strict=True):
        service = pool_of(answer).FindServiceByName(name)
        for method in service.methods:
            assert GetMessageClass(method.input_type)().ByteSize() == 0


def pool_of(answer: Any) -> DescriptorPool:
    """The files of an answer, put together as a client would: those first that need no other."""
    files = [FileDescriptorProto.FromString(data) for data in answer.file_descriptor_response.file_descriptor_proto]
    pool, added = DescriptorPool(), set[str]()
    while len(added) < len(files):
        for file in files:
            if file.name not in added and added.issuperset(file.dependency):
                pool.Add(file)
                added.add(file.name)
    return pool


async def test_files_are_found_by_name_and_what_is_not_there_is_an_answer() -> None:
    request = reflection_pb2.ServerReflectionRequest
    async with running() as server:
        file, missing_file, missing_symbol, nothing, numbers, extension = await ask(
            server.address,
            "v1",
            request(host="h", file_by_filename="open_inference/grpc_predict_v2.proto"),
            request(file_by_filename="missing.proto"),
            request(file_containing_symbol="missing.Symbol"),
            request(),
            request(all_extension_numbers_of_type="inference.ModelInferRequest"),
            request(
                file_containing_extension=reflection_pb2.ExtensionRequest(
                    containing_type="inference.ModelInferRequest", extension_number=7
                )
            ),
        )

    assert file.valid_host == "h"
    assert pool_of(file).FindMessageTypeByName("inference.ModelConfig")
    assert missing_file.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert missing_file.error_response.error_message == 'no "missing.proto" in the schema of this server'
    assert missing_symbol.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert nothing.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert numbers.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert extension.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
