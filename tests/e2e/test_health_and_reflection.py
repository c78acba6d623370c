"""What orchestrators, grpcurl and people with a browser ask a real server, with the stubs that others generated."""

from __future__ import annotations

import asyncio
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from eventually import PATIENCE, eventually
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from metrics_page import metric
from model_files import write_identity_onnx
from offramp_client import RetryPolicy, aio, errors
from server_process import ServerProcess, serving

HEALTH = health_pb2.HealthCheckResponse
SERVICES = ["inference.GRPCInferenceService", "offramp.v1.RouteService", "grpc.health.v1.Health"]


def asked(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def status(stub: Any, service: str = "") -> str:
    return str(HEALTH.ServingStatus.Name((await stub.Check(asked(service), timeout=PATIENCE)).status))


class Watch:
    """The answers of Health.Watch, one by one."""

    def __init__(self, stub: Any, service: str = "") -> None:
        self._call = stub.Watch(asked(service), timeout=PATIENCE)

    async def next(self) -> str:
        return str(HEALTH.ServingStatus.Name((await self._call.read()).status))

    def end(self) -> None:
        self._call.cancel()


@pytest.fixture
async def stub(server: ServerProcess) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        yield health_pb2_grpc.HealthStub(channel)


# Health


@pytest.mark.parametrize("service", ["", *SERVICES, "add_sub_pt2", "add_sub_onnx"])
async def test_the_server_its_services_and_its_models_are_serving(stub: Any, service: str) -> None:
    assert await status(stub, service) == "SERVING"


async def test_a_name_that_nobody_knows_is_not_found(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await status(stub, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_sees_a_model_go_and_come(server: ServerProcess, stub: Any) -> None:
    watch = Watch(stub, "comes_and_goes")
    assert await watch.next() == "SERVING"
    async with aio.Client(server.grpc, timeout=PATIENCE) as client:
        await client.unload_model("comes_and_goes")
        assert await watch.next() == "NOT_SERVING"
        assert await status(stub, "comes_and_goes") == "NOT_SERVING"
        await client.load_model("comes_and_goes")
    assert await watch.next() == "SERVING"
    watch.end()
    # The others have not noticed.
    assert await status(stub) == "SERVING"


async def test_a_watch_of_an_unknown_name_says_so_and_stays(stub: Any) -> None:
    watch = Watch(stub, "nobody")
    assert await watch.next() == "SERVICE_UNKNOWN"
    watch.end()


async def test_sigterm_turns_health_first_and_closes_the_port_last(tmp_path: Path) -> None:
    write_identity_onnx(tmp_path / "held" / "1" / "model.onnx")
    row = {"x": np.ones((1, 4), np.float32)}
    with serving(tmp_path, environment={"OFFRAMP_SERVER__DRAIN_TIMEOUT": str(PATIENCE)}) as server:
        async with (
            grpc.aio.insecure_channel(server.grpc) as channel,
            aio.Client(server.grpc, timeout=PATIENCE, retries=RetryPolicy(max_attempts=1)) as client,
        ):
            watches = [Watch(health_pb2_grpc.HealthStub(channel), name) for name in ("", "held", SERVICES[0])]
            assert [await watch.next() for watch in watches] == ["SERVING"] * 3
            # The drain has to wait for a request, which has to wait for us.
            with server.computing_nothing():
                request = asyncio.create_task(client.infer("held", row))
                await eventually(lambda: metric(server, "offramp_requests_in_flight") == 1)

                server.process.send_signal(signal.SIGTERM)
                assert [await watch.next() for watch in watches] == ["NOT_SERVING"] * 3
                # The port is open still: a new connection is answered, and told the same.
                async with grpc.aio.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as fresh:
                    assert await status(health_pb2_grpc.HealthStub(fresh)) == "NOT_SERVING"
                assert (await asyncio.to_thread(get, server, "/readyz"))[:2] == (503, "draining\n")
                assert (await asyncio.to_thread(get, server, "/livez"))[0] == 200
                with pytest.raises(errors.Unavailable, match="draining"):
                    await client.infer("held", row)

            assert (await request)["y"].tolist() == [[1.0] * 4]
            assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0


# Reflection


@pytest.fixture(scope="module")
def pool(server: ServerProcess) -> Iterator[DescriptorPool]:
    """What the server says of itself, fetched as it is asked for."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def test_every_service_is_listed(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {*SERVICES, "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"} == listed


@pytest.mark.parametrize("service", SERVICES)
def test_every_message_of_a_service_can_be_built(pool: DescriptorPool, service: str) -> None:
    for method in pool.FindServiceByName(service).methods:
        for message in (method.input_type, method.output_type):
            assert GetMessageClass(message)().ByteSize() == 0


def test_a_client_without_proto_files_infers(server: ServerProcess, pool: DescriptorPool) -> None:
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
    request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    assert request_class.DESCRIPTOR.full_name == "inference.ModelInferRequest"
    request: Any = request_class(model_name="add_sub_onnx")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16]).contents.int_contents.extend(range(16))

    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        response: Any = call(request, timeout=PATIENCE)

    assert list(response.outputs[0].contents.int_contents) == [2 * value for value in range(16)]


# HTTP


def get(server: ServerProcess, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, text and content type."""
    request = urllib.request.Request(f"http://{server.http}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_are_answered(server: ServerProcess, path: str) -> None:
    assert get(server, path)[:2] == (200, "ok\n")
    assert get(server, path, "HEAD")[0] == 200


def test_metrics_name_every_model(server: ServerProcess) -> None:
    code, text, kind = get(server, "/metrics")
    assert (code, kind.split(";")[0]) == (200, "text/plain")
    for model in ("add_sub_pt2", "add_sub_onnx", "identity_bytes"):
        assert f'offramp_model_ready{{model="{model}",version="1"}} 1.0' in text


def test_other_paths_and_methods_are_told_what_there_is(server: ServerProcess) -> None:
    code, text, _ = get(server, "/v2/health/ready")
    assert code == 404
    assert "/readyz" in text
    assert get(server, "/metrics", "POST")[0] == 405
