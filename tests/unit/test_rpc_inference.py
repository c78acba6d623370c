"""The inference service as Triton's own clients see it."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import ANY

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from eventually import PATIENCE
from offramp_server.errors import InvalidRequest, ModelFailed, Overloaded, Unavailable
from offramp_server.rpc.services import RpcSettings
from open_inference import grpc_predict_v2_pb2 as pb
from rpc_fakes import FakeServing, Running, running
from tritonclient.utils import InferenceServerException

Ints = npt.NDArray[np.int32]


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as server:
        yield server


@pytest.fixture
async def client(server: Running) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.address) as client:
        yield client


def add_sub_inputs(rows: int = 1) -> tuple[list[triton.InferInput], Ints, Ints]:
    left = np.arange(rows * 16, dtype=np.int32).reshape(rows, 16)
    right = np.ones_like(left)
    inputs = [triton.InferInput(name, list(left.shape), "INT32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_data_from_numpy(left)
    inputs[1].set_data_from_numpy(right)
    return inputs, left, right


def floats(*values: float) -> triton.InferInput:
    tensor = triton.InferInput("x", [1, len(values)], "FP32")
    tensor.set_data_from_numpy(np.array([values], dtype=np.float32))
    return tensor


async def infer_error(client: Any, *arguments: Any, **options: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        await client.infer(*arguments, **options)
    return caught.value


async def test_tritonclient_infers(client: triton_aio.InferenceServerClient) -> None:
    inputs, left, right = add_sub_inputs(rows=3)

    result = await client.infer("simple", inputs, request_id="abc")

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), left + right)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), left - right)
    assert result.get_response().id == "abc"
    assert result.get_response().parameters["offramp_request_id"].string_param == "abc"


async def test_the_blocking_tritonclient_infers(server: Running) -> None:
    def blocking() -> tuple[Any, Ints]:
        with triton.InferenceServerClient(server.address) as client:
            inputs, left, _ = add_sub_inputs()
            return client.infer("simple", inputs).as_numpy("OUTPUT0"), left + 1

    got, expected = await asyncio.to_thread(blocking)

    np.testing.assert_array_equal(got, expected)


async def test_the_outputs_that_were_asked_for_come_in_that_order(client: triton_aio.InferenceServerClient) -> None:
    inputs, left, right = add_sub_inputs()
    outputs = [triton.InferRequestedOutput(name) for name in ("OUTPUT1", "OUTPUT0")]

    result = await client.infer("simple", inputs, outputs=outputs)

    assert [output.name for output in result.get_response().outputs] == ["OUTPUT1", "OUTPUT0"]
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), left + right)


async def test_strings_travel(client: triton_aio.InferenceServerClient) -> None:
    tensor = triton.InferInput("x", [1, 2], "BYTES")
    tensor.set_data_from_numpy(np.array([["grüße", ""]], dtype=object))

    result = await client.infer("text", [tensor])

    assert result.as_numpy("y").tolist() == [["grüße".encode(), b""]]


async def test_a_request_without_an_id_gets_one_for_the_log_only(
    server: Running, client: triton_aio.InferenceServerClient
) -> None:
    responses = [(await client.infer("echo", [floats(1)])).get_response() for _ in range(2)]

    ids = [response.parameters["offramp_request_id"].string_param for response in responses]
    assert [request.id for request in server.serving.seen] == ids
    assert ids[0] != ids[1]
    assert [response.id for response in responses] == ["", ""]


async def test_parameters_reach_the_server_behind(server: Running, client: triton_aio.InferenceServerClient) -> None:
    before = asyncio.get_running_loop().time()

    await client.infer("echo", [floats(1)], priority=2, timeout=60_000_000, parameters={"offramp_unit": "u", "n": 4})

    [request] = server.serving.seen
    assert request.priority == 2
    assert request.deadline is not None
    assert before + 50 < request.deadline < before + 70
    assert request.parameters == {"offramp_unit": "u", "n": 4}


async def test_the_deadline_of_the_call_reaches_the_server_behind(
    server: Running, client: triton_aio.InferenceServerClient
) -> None:
    before = asyncio.get_running_loop().time()

    await client.infer("echo", [floats(1)], client_timeout=60)

    deadline = server.serving.seen[0].deadline
    assert deadline is not None
    assert before + 50 < deadline < before + 70


async def test_nan_and_infinities_come_back(client: triton_aio.InferenceServerClient) -> None:
    result = await client.infer("echo", [floats(np.nan, np.inf, -np.inf)])

    np.testing.assert_array_equal(result.as_numpy("y"), np.array([[np.nan, np.inf, -np.inf]], dtype=np.float32))


async def test_classes_come_instead_of_scores(client: triton_aio.InferenceServerClient) -> None:
    output = triton.InferRequestedOutput("y", class_count=2)

    result = await client.infer("echo", [floats(0.25, 0.5, 0.125)], outputs=[output])

    assert result.as_numpy("y").tolist() == [[b"0.500000:1:dog", b"0.250000:0:cat"]]


async def test_typed_contents_come_back_typed(server: Running) -> None:
    request = pb.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.5, 2.5])
    async with grpc.aio.insecure_channel(server.address) as channel:
        response = await raw_infer(channel)(request)

    assert list(response.outputs[0].contents.fp32_contents) == [1.5, 2.5]
    assert not response.raw_output_contents


def raw_infer(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no"), "INVALID_ARGUMENT"),
        (Unavailable("no"), "UNAVAILABLE"),
        (ModelFailed("no"), "UNKNOWN"),
        (Overloaded("no", 0.25), "RESOURCE_EXHAUSTED"),
    ],
)
async def test_errors_arrive_with_their_status(
    server: Running, client: triton_aio.InferenceServerClient, error: Exception, code: str
) -> None:
    server.serving.failure = error

    caught = await infer_error(client, "echo", [floats(1)])

    assert caught.status() == f"StatusCode.{code}"
    assert caught.message() == "no"


async def test_overload_hints_when_to_come_back(server: Running) -> None:
    server.serving.failure = Overloaded("full", 0.25)
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw_infer(channel)(pb.ModelInferRequest(model_name="echo"))

    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


async def test_an_error_names_the_request_by_the_clients_id_or_by_that_in_the_log(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "offramp")
    server.serving.failure = InvalidRequest("no")
    told = []
    async with grpc.aio.insecure_channel(server.address) as channel:
        for request_id in ("mine", ""):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw_infer(channel)(pb.ModelInferRequest(model_name="echo", id=request_id))
            told.append(dict(caught.value.trailing_metadata())["offramp-request-id"])

    assert told[0] == "mine"
    assert told == [vars(record)["request_id"] for record in caplog.records]


async def test_a_wrong_request_is_explained(client: triton_aio.InferenceServerClient) -> None:
    tensor = triton.InferInput("x", [1, 2], "INT32")
    tensor.set_data_from_numpy(np.zeros((1, 2), dtype=np.int32))

    caught = await infer_error(client, "echo", [tensor])

    assert caught.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.message() == 'input "x": expected FP32[-1,-1], got INT32[1,2]'


async def test_a_client_that_goes_away_takes_its_request_with_it(server: Running) -> None:
    server.serving.gate = asyncio.Event()
    async with triton_aio.InferenceServerClient(server.address) as client:
        # A machine may be too busy to bring the request here in that time.
        while not server.serving.seen:
            caught = await infer_error(client, "echo", [floats(1)], client_timeout=0.2)
            assert caught.status() == "StatusCode.DEADLINE_EXCEEDED"

    await server.serving.until(lambda state: state.cancelled == len(state.seen))


async def test_a_traced_request_is_announced_with_the_callers_metadata(
    server: Running, client: triton_aio.InferenceServerClient
) -> None:
    await client.infer("echo", [floats(1)], request_id="first")
    server.traces.enabled = True
    await client.infer("echo", [floats(1)], request_id="second", headers={"traceparent": "00-a-b-01"})

    [(metadata, name, request_id)] = server.traces.traced
    assert metadata["traceparent"] == "00-a-b-01"
    assert (name, request_id) == ("echo", "second")


# Streams


class Stream:
    """A tritonclient stream that collects its answers."""

    def __init__(self, address: str, headers: dict[str, str] | None = None) -> None:
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client = triton.InferenceServerClient(address)
        self.client.start_stream(lambda result, error: self._answers.put((result, error)), headers=headers)

    def answers(self, count: int) -> Iterator[tuple[Any, Any]]:
        for _ in range(count):
            yield self._answers.get(timeout=PATIENCE)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


async def test_a_stream_answers_in_order_and_survives_errors(server: Running) -> None:
    def blocking() -> list[tuple[Any, Any]]:
        with Stream(server.address) as stream:
            for index, model in enumerate(["echo", "missing", "echo"]):
                stream.client.async_stream_infer(
                    model, [floats(index)], request_id=str(index), enable_empty_final_response=True
                )
            return list(stream.answers(3))

    first, second, third = await asyncio.to_thread(blocking)

    assert [first[0].as_numpy("y")[0, 0], third[0].as_numpy("y")[0, 0]] == [0.0, 2.0]
    for result, _ in (first, third):
        assert result.get_response().parameters["triton_final_response"].bool_param
    assert second[0] is None
    assert 'there is no model "missing"' in second[1].message()


async def stream_infer(channel: grpc.aio.Channel, *requests: pb.ModelInferRequest, **options: Any) -> Any:
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )(**options)
    for request in requests:
        await call.write(request)
    return call


def echo_request(request_id: str, model: str = "echo") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(bytes(4))
    return request


async def test_an_error_in_a_stream_carries_the_id_of_its_request(server: Running) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = await stream_infer(channel, echo_request("7", "missing"), echo_request("8"))
        await call.done_writing()
        responses = [response async for response in call]

    assert [response.infer_response.id for response in responses] == ["7", "8"]
    assert responses[0].error_message.startswith('there is no model "missing"')
    said = responses[0].infer_response.parameters
    assert said["triton_final_response"].bool_param
    assert (said["offramp_status"].string_param, said["offramp_request_id"].string_param) == ("NOT_FOUND", "7")
    assert not responses[1].error_message


async def test_overload_in_a_stream_hints_when_to_come_back(server: Running) -> None:
    server.serving.failure = Overloaded("full", 0.25)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = await stream_infer(channel, echo_request(""))
        await call.done_writing()
        [response] = [response async for response in call]

    said = response.infer_response.parameters
    assert said["offramp_status"].string_param == "RESOURCE_EXHAUSTED"
    assert said["offramp_retry_after"].double_param == 0.25
    assert said["offramp_request_id"].string_param
    assert response.infer_response.id == ""


async def test_a_stream_ends_with_the_first_error_if_the_client_wants_that(server: Running) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = await stream_infer(
            channel, echo_request("7"), echo_request("8", "missing"), metadata=(("triton_grpc_error", "true"),)
        )
        assert (await call.read()).infer_response.id == "7"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert dict(caught.value.trailing_metadata())["offramp-request-id"] == "8"


async def test_a_stream_has_no_more_than_its_window_under_way() -> None:
    serving = FakeServing(gate=asyncio.Event())
    async with (
        running(RpcSettings("1", stream_window=3), serving=serving) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        call = await stream_infer(channel, *(echo_request(str(index)) for index in range(10)))
        await call.done_writing()
        await serving.until(lambda state: state.in_flight == 3)
        assert serving.gate is not None
        serving.gate.set()
        responses = [response async for response in call]

    assert [response.infer_response.id for response in responses] == [str(index) for index in range(10)]
    assert serving.most_in_flight == 3


async def test_a_stream_that_is_cancelled_cancels_its_requests() -> None:
    serving = FakeServing(gate=asyncio.Event())
    async with running(serving=serving) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = await stream_infer(channel, echo_request("1"), echo_request("2"))
        await serving.until(lambda state: state.in_flight == 2)
        call.cancel()
        await serving.until(lambda state: state.cancelled == 2)


# What else there is


async def test_liveness_and_readiness(server: Running, client: triton_aio.InferenceServerClient) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("echo")
    assert not await client.is_model_ready("missing")
    server.serving.ready = False
    assert not await client.is_server_ready()


async def test_server_metadata_advertises_what_works(server: Running, client: triton_aio.InferenceServerClient) -> None:
    metadata = await client.get_server_metadata(as_json=True)

    assert metadata == {"name": "offramp", "version": "1.2.3", "extensions": ANY}
    assert "classification" in metadata["extensions"]
    assert not {"system_shared_memory", "cuda_shared_memory", "sequence"} & set(metadata["extensions"])


async def test_model_metadata_shows_the_batch_dimension_and_config_does_not(
    client: triton_aio.InferenceServerClient,
) -> None:
    metadata = await client.get_model_metadata("simple", as_json=True)
    config = (await client.get_model_config("simple", as_json=True))["config"]

    assert metadata["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": ["-1", "16"]}
    assert metadata["versions"] == ["1"]
    assert metadata["platform"] == config["platform"] == "onnx_onnxv1"
    assert config["input"][0]["name"] == "INPUT0"
    assert config["input"][0]["data_type"] == "TYPE_INT32"
    assert config["input"][0]["dims"] == ["16"]
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 8
    assert config["parameters"] == {"precision": {"string_value": "fp32"}}
    assert config["instance_group"] == [{"name": "simple_0", "count": 1, "kind": "KIND_CPU"}]
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 512


async def test_labels_are_in_the_config(client: triton_aio.InferenceServerClient) -> None:
    config = (await client.get_model_config("echo", as_json=True))["config"]

    assert config["parameters"]["labels.y"] == {"string_value": '["cat", "dog"]'}
    assert config["output"][0]["label_filename"] == "model.toml"


async def test_an_unknown_model_is_not_found(client: triton_aio.InferenceServerClient) -> None:
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException) as caught:
            await call("missing")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as caught:
        await client.get_model_metadata("")
    assert caught.value.message() == "the request names no model"


async def test_statistics_count_what_happened(server: Running, client: triton_aio.InferenceServerClient) -> None:
    stats = server.serving.stats.model("echo", "1")
    stats.answered(3, 10, 20, 30, 40, 100)
    stats.executed(3, 20, 30, 40)
    stats.failed("invalid_argument", 7)

    everything = await client.get_inference_statistics(as_json=True)
    [one] = (await client.get_inference_statistics("echo", "1", as_json=True))["model_stats"]

    assert {entry["name"] for entry in everything["model_stats"]} == {"simple", "echo", "text", "half"}
    assert one in everything["model_stats"]
    assert (one["inference_count"], one["execution_count"]) == ("3", "1")
    assert one["inference_stats"]["success"] == {"count": "1", "ns": "100"}
    assert one["inference_stats"]["fail"] == {"count": "1", "ns": "7"}
    assert one["inference_stats"]["queue"] == {"count": "1", "ns": "10"}
    assert one["inference_stats"]["compute_infer"] == {"count": "1", "ns": "30"}
    assert one["batch_stats"] == [
        {
            "batch_size": "3",
            "compute_input": {"count": "1", "ns": "20"},
            "compute_infer": {"count": "1", "ns": "30"},
            "compute_output": {"count": "1", "ns": "40"},
        }
    ]


async def test_asking_for_statistics_makes_no_counters(
    server: Running, client: triton_aio.InferenceServerClient
) -> None:
    await client.get_inference_statistics()

    assert server.serving.stats.models == {}


async def test_the_repository_is_listed(client: triton_aio.InferenceServerClient) -> None:
    index = await client.get_model_repository_index(as_json=True)

    assert {"name": "echo", "version": "1", "state": "READY"} in index["models"]
    assert {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "no such file"} in index["models"]


async def test_models_are_loaded_and_unloaded(server: Running, client: triton_aio.InferenceServerClient) -> None:
    await client.load_model("echo")
    await client.unload_model("echo")

    assert server.serving.calls == [("load", "echo"), ("unload", "echo")]


async def test_load_and_unload_parameters_are_refused_with_a_reason(
    server: Running, client: triton_aio.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException, match='load parameter "config": a model is loaded as its folder'):
        await client.load_model("echo", config="{}")
    with pytest.raises(InferenceServerException, match=r'load parameter "(config|file:1/model[.]onnx)"'):
        await client.load_model("echo", config="{}", files={"file:1/model.onnx": b"x"})
    with pytest.raises(InferenceServerException, match="unload_dependents: models are unloaded one by one"):
        await client.unload_model("echo", unload_dependents=True)

    assert server.serving.calls == []


async def test_extensions_that_are_not_there_are_unimplemented(client: triton_aio.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.get_cuda_shared_memory_status()

    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
