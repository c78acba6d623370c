"""GRPCInferenceService: the calls of the system shared memory extension."""

from __future__ import annotations

from open_inference import grpc_predict_v2_pb2 as pb

from offramp_server.rpc.shared_memory import SharedMemory
from offramp_server.transport.interface import CallContext


class SharedMemoryCalls:
    """Registering regions and asking for them."""

    def __init__(self, shared_memory: SharedMemory) -> None:
        self._shared_memory = shared_memory

    async def system_shared_memory_status(
        self, request: pb.SystemSharedMemoryStatusRequest, context: CallContext
    ) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._shared_memory.status(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    async def system_shared_memory_register(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: CallContext
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._shared_memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_shared_memory_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: CallContext
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._shared_memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()
