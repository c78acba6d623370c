"""The rpcs of a service as its descriptor has them, in place of generated stubs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from offramp_client.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc: where requests go, and what comes back."""

    #: /package.Service/Method
    path: str
    response_class: type[Message]
    client_streaming: bool = False
    server_streaming: bool = False

    def parse(self, payload: bytes | None) -> Message:
        """Raises ProtocolError for bytes that are no such message. None is what grpcio makes of a status of OK without
        one."""
        if payload is None:
            raise ProtocolError(f"{self.path}: the answer's status is OK, and it has no message")
        try:
            return self.response_class.FromString(payload)
        except DecodeError as error:
            raise ProtocolError(f"{self.path}: the answer is no {self.response_class.DESCRIPTOR.full_name}") from error


def methods_of(file: FileDescriptor, service: str) -> Mapping[str, Method]:
    """By their names."""
    descriptor = file.services_by_name[service]
    return {
        method.name: Method(
            f"/{descriptor.full_name}/{method.name}",
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in descriptor.methods
    }
