"""Server reflection, v1 and v1alpha, so that grpcurl and its like need no .proto files.

The two versions differ in nothing but the package (gRPC's `server-reflection.md`). Only the messages of v1alpha are
packaged for Python, so the file of v1 is made from that of v1alpha.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from offramp_common.text import quoted

from offramp_server.errors import InvalidRequest, NotFound
from offramp_server.rpc.status import failure_of
from offramp_server.transport.interface import CallContext, Service

_ALPHA = "grpc.reflection.v1alpha"
_STABLE = "grpc.reflection.v1"
_SERVICE = "ServerReflection"


def reflection_services(services: Sequence[Service]) -> tuple[Service, Service]:
    """Reflection over `services` and over itself, as v1 and as v1alpha."""
    alpha = reflection_pb2.DESCRIPTOR
    stable = _stable_file(alpha)
    names = [*(service.name for service in services), f"{_ALPHA}.{_SERVICE}", f"{_STABLE}.{_SERVICE}"]
    schema = _Schema([*(service.file for service in services), alpha, stable], names)
    return _service(stable, schema), _service(alpha, schema)


def _service(file: FileDescriptor, schema: _Schema) -> Service:
    response = GetMessageClass(file.message_types_by_name["ServerReflectionResponse"])
    return Service.of(file.services_by_name[_SERVICE], ReflectionCalls(schema, response))


def _stable_file(alpha: FileDescriptor) -> FileDescriptor:
    proto = FileDescriptorProto.FromString(alpha.serialized_pb)
    proto.name = proto.name.replace("v1alpha", "v1")
    proto.package = _STABLE
    for message in proto.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_STABLE}.")
    for method in proto.service[0].method:
        method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_STABLE}.")
        method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_STABLE}.")
    pool = DescriptorPool()
    pool.Add(proto)
    return pool.FindFileByName(proto.name)


class ReflectionCalls:
    """grpc.reflection.*.ServerReflection."""

    def __init__(self, schema: _Schema, response_class: type[Any]) -> None:
        self._schema = schema
        self._response_class = response_class

    async def server_reflection_info(self, requests: AsyncIterator[Any], context: CallContext) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._answer(request)

    def _answer(self, request: Any) -> Any:
        response = self._response_class(valid_host=request.host, original_request=request)
        question = request.WhichOneof("message_request")
        try:
            if question is None:
                raise InvalidRequest("the request asks nothing")
            _ANSWERS[question](self._schema, getattr(request, question), response)
        except (InvalidRequest, NotFound) as error:
            failure = failure_of(error)
            response.error_response.error_code = failure.code
            response.error_response.error_message = failure.message
        return response


class _Schema:
    """The files of the services with everything that they import, in a pool of their own.

    The services come from several pools, in one of which another library may have registered a package of the same
    name as ours.
    """

    def __init__(self, files: Sequence[FileDescriptor], service_names: Sequence[str]) -> None:
        self._service_names = sorted(service_names)
        self._pool = DescriptorPool()
        self._added: set[str] = set()
        for file in files:
            self._add(file)

    def _add(self, file: FileDescriptor) -> None:
        if file.name in self._added:
            return
        self._added.add(file.name)
        for dependency in file.dependencies:
            self._add(dependency)
        self._pool.AddSerializedFile(file.serialized_pb)

    def list_services(self, _: str, response: Any) -> None:
        for name in self._service_names:
            response.list_services_response.service.add(name=name)

    def file_by_filename(self, name: str, response: Any) -> None:
        self._write(self._find(self._pool.FindFileByName, name), response)

    def file_containing_symbol(self, symbol: str, response: Any) -> None:
        self._write(self._find(self._pool.FindFileContainingSymbol, symbol), response)

    def file_containing_extension(self, wanted: Any, response: Any) -> None:
        message = self._find(self._pool.FindMessageTypeByName, wanted.containing_type)
        number = wanted.extension_number
        extension = self._find(lambda _: self._pool.FindExtensionByNumber(message, number), str(number))
        self._write(extension.file, response)

    def all_extension_numbers_of_type(self, name: str, response: Any) -> None:
        message = self._find(self._pool.FindMessageTypeByName, name)
        answer = response.all_extension_numbers_response
        answer.base_type_name = message.full_name
        answer.extension_number.extend(sorted(extension.number for extension in self._pool.FindAllExtensions(message)))

    def _find(self, look_up: Callable[[str], Any], name: str) -> Any:
        try:
            return look_up(name)
        except KeyError:
            raise NotFound(f"no {quoted(name)} in the schema of this server") from None

    def _write(self, file: FileDescriptor, response: Any) -> None:
        """The file and all that it imports, each once."""
        seen: dict[str, bytes] = {}
        waiting = [file]
        while waiting:
            current = waiting.pop()
            if current.name not in seen:
                seen[current.name] = current.serialized_pb
                waiting.extend(current.dependencies)
        response.file_descriptor_response.file_descriptor_proto.extend(seen.values())


_ANSWERS = MappingProxyType(
    {
        "list_services": _Schema.list_services,
        "file_by_filename": _Schema.file_by_filename,
        "file_containing_symbol": _Schema.file_containing_symbol,
        "file_containing_extension": _Schema.file_containing_extension,
        "all_extension_numbers_of_type": _Schema.all_extension_numbers_of_type,
    }
)
