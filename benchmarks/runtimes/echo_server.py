"""A plain grpc.aio server that echoes one tensor: what grpcio and protobuf cost when nothing else is done.

`python -m benchmarks.runtimes.echo_server [CERTIFICATE KEY]` (PEM files; with them it speaks TLS) prints
`ready grpc=HOST:PORT`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from open_inference import grpc_predict_v2_pb2 as pb

SERVICE = "inference.GRPCInferenceService"


async def model_infer(request: pb.ModelInferRequest, context: object) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    tensor = request.inputs[0]
    response.outputs.add(name="output", datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.append(request.raw_input_contents[0])
    return response


async def model_ready(request: pb.ModelReadyRequest, context: object) -> pb.ModelReadyResponse:
    return pb.ModelReadyResponse(ready=True)


async def serve(pem: Sequence[bytes]) -> None:
    # Messages of any size, as far as gRPC can.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            model_infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
        ),
        "ModelReady": grpc.unary_unary_rpc_method_handler(
            model_ready, pb.ModelReadyRequest.FromString, pb.ModelReadyResponse.SerializeToString
        ),
    }
    server.add_registered_method_handlers(SERVICE, handlers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = listen(server, pem)
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    await stopped.wait()
    await server.stop(1)


def listen(server: grpc.aio.Server, pem: Sequence[bytes]) -> int:
    """`pem` is nothing, or a certificate and its key. Return the port."""
    if not pem:
        return int(server.add_insecure_port("127.0.0.1:0"))
    certificate, key = pem
    return int(server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)])))


if __name__ == "__main__":
    sys.exit(asyncio.run(serve([Path(file).read_bytes() for file in sys.argv[1:]])))
