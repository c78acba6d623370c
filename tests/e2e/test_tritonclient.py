"""Triton's own client against a real server: the blocking one, the asyncio one, and what their messages may hold."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from eventually import PATIENCE, eventually
from metrics_page import metric
from model_files import write_identity_onnx
from server_process import ServerProcess, serving
from shared_models import GIVEN_UP, LABELS
from triton_calls import WIDTH, add_sub, check_add_sub, operands, tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

MODELS = ["add_sub_pt2", "add_sub_onnx"]
ROW = tensor("x", np.zeros((1, 4), np.float32), "FP32")


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
async def aio(server: ServerProcess) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[Any]:
    """The generated stub, for messages that tritonclient itself would not write."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def refusal(client: triton.InferenceServerClient, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Status and sentence of an inference that fails."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(*arguments, **options)
    return caught.value.status(), caught.value.message()


# Inference


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_the_blocking_client_infers(client: triton.InferenceServerClient, model: str, rows: int) -> None:
    left, right = operands(rows, seed=rows)

    result = client.infer(model, add_sub(left, right), model_version="1", request_id="mine")

    check_add_sub(result, left, right)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (model, "1", "mine")


@pytest.mark.parametrize("model", MODELS)
async def test_the_asyncio_client_infers_side_by_side(aio: triton_aio.InferenceServerClient, model: str) -> None:
    pairs = [operands(1 + seed % 4, seed) for seed in range(40)]

    results = await asyncio.gather(*(aio.infer(model, add_sub(*pair), request_id="r") for pair in pairs))

    for result, pair in zip(results, pairs, strict=True):
        check_add_sub(result, *pair)


@pytest.mark.parametrize("model", MODELS)
def test_callbacks_get_their_results(client: triton.InferenceServerClient, model: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    left, right = operands()

    client.async_infer(model, add_sub(left, right), callback=lambda result, error: answers.put((result, error)))

    result, error = answers.get(timeout=PATIENCE)
    assert error is None
    check_add_sub(result, left, right)


@pytest.mark.parametrize("model", MODELS)
def test_only_the_requested_outputs_come_in_the_order_of_the_request(
    client: triton.InferenceServerClient, model: str
) -> None:
    left, right = operands()
    for names in (["OUTPUT1", "OUTPUT0"], ["OUTPUT1"]):
        wanted = [triton.InferRequestedOutput(name) for name in names]
        result = client.infer(model, add_sub(left, right), outputs=wanted)
        assert [output.name for output in result.get_response().outputs] == names
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), left - right)


@pytest.mark.parametrize("model", MODELS)
def test_inputs_may_come_in_any_order(client: triton.InferenceServerClient, model: str) -> None:
    left, right = operands()
    check_add_sub(client.infer(model, add_sub(left, right)[::-1]), left, right)


@pytest.mark.parametrize("model", MODELS)
def test_typed_contents_are_answered_with_typed_contents(stub: Any, model: str) -> None:
    left, right = operands(2)
    request = service_pb2.ModelInferRequest(model_name=model, id="typed")
    for name, values in (("INPUT0", left), ("INPUT1", right)):
        entry = request.inputs.add(name=name, datatype="INT32", shape=values.shape)
        entry.contents.int_contents.extend(values.ravel().tolist())

    response = stub.ModelInfer(request, timeout=PATIENCE)

    assert not response.raw_output_contents
    answers = {output.name: list(output.contents.int_contents) for output in response.outputs}
    assert answers == {"OUTPUT0": (left + right).ravel().tolist(), "OUTPUT1": (left - right).ravel().tolist()}
    assert [list(output.shape) for output in response.outputs] == [[2, WIDTH]] * 2


@pytest.mark.parametrize("model", MODELS)
def test_parameters_of_every_type_are_taken(client: triton.InferenceServerClient, model: str) -> None:
    left, right = operands()
    parameters = {"note": "hello", "flag": True, "count": 7}
    check_add_sub(client.infer(model, add_sub(left, right), parameters=parameters), left, right)


@pytest.mark.parametrize("model", MODELS)
def test_the_answer_says_how_the_log_knows_the_request(client: triton.InferenceServerClient, model: str) -> None:
    for request_id in ("mine", ""):
        response = client.infer(model, add_sub(*operands()), request_id=request_id).get_response()
        assert response.id == request_id
        known_as = response.parameters["offramp_request_id"].string_param
        assert known_as == request_id or (not request_id and known_as)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_messages_are_read(client: triton.InferenceServerClient, algorithm: str) -> None:
    left, right = operands(16)
    check_add_sub(client.infer("add_sub_pt2", add_sub(left, right), compression_algorithm=algorithm), left, right)


@pytest.mark.parametrize("model", MODELS)
def test_a_priority_and_a_generous_timeout_change_nothing_on_an_idle_server(
    client: triton.InferenceServerClient, model: str
) -> None:
    left, right = operands()
    timeout = int(PATIENCE * 1_000_000)
    check_add_sub(client.infer(model, add_sub(left, right), priority=2, timeout=timeout), left, right)


def test_a_request_is_told_when_its_timeout_has_passed(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    failures = client.get_inference_statistics("expires").model_stats[0].inference_stats.fail.count

    with server.computing_nothing():
        assert refusal(client, "expires", [ROW], timeout=20_000) == (
            "StatusCode.DEADLINE_EXCEEDED",
            "the request's deadline passed before its answer was ready",
        )

    assert client.get_inference_statistics("expires").model_stats[0].inference_stats.fail.count == failures + 1


def test_classes_with_labels_come_instead_of_scores(client: triton.InferenceServerClient) -> None:
    # Output i is (i + 1) times the sum plus a half: the last class is the best where the sum is positive.
    rows = np.array([[1, 1, 1, 1], [-1, 0, 0, 0]], np.float32)
    wanted = [triton.InferRequestedOutput("y", class_count=2)]

    classes = client.infer("labelled", [tensor("x", rows, "FP32")], outputs=wanted).as_numpy("y")

    assert classes.tolist() == [
        [f"12.500000:2:{LABELS[2]}".encode(), f"8.500000:1:{LABELS[1]}".encode()],
        [f"-0.500000:0:{LABELS[0]}".encode(), f"-1.500000:1:{LABELS[1]}".encode()],
    ]


def test_a_model_without_a_batch_dimension_takes_its_own_shape(client: triton.InferenceServerClient) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(client.infer("unbatched", [tensor("x", values, "FP32")]).as_numpy("y"), values)
    assert list(client.get_model_metadata("unbatched").inputs[0].shape) == [2, -1]
    assert client.get_model_config("unbatched").config.max_batch_size == 0


# Refusals


def test_unknown_models_and_versions_are_not_found(client: triton.InferenceServerClient) -> None:
    status, message = refusal(client, "nobody", add_sub(*operands()))
    assert status == "StatusCode.NOT_FOUND"
    assert '"nobody"' in message
    status, message = refusal(client, "add_sub_pt2", add_sub(*operands()), model_version="9")
    assert status == "StatusCode.NOT_FOUND"
    assert '"9"' in message
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException) as caught:
            ask("nobody")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert not client.is_model_ready("nobody")


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_shape_is_answered_with_the_right_one(client: triton.InferenceServerClient, model: str) -> None:
    wrong = [tensor(name, np.zeros((1, 3), np.int32), "INT32") for name in ("INPUT0", "INPUT1")]
    assert refusal(client, model, wrong) == (
        "StatusCode.INVALID_ARGUMENT",
        'input "INPUT0": expected INT32[-1,16], got INT32[1,3]',
    )


def test_the_clients_own_deadline_ends_the_call(server: ServerProcess, client: triton.InferenceServerClient) -> None:
    with server.computing_nothing():
        status, _ = refusal(client, GIVEN_UP, [ROW], client_timeout=0.05)
    assert status == "StatusCode.DEADLINE_EXCEEDED"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """Whose counters and gauges tell of nobody else's requests. It has worker processes and the model "held"."""
    write_identity_onnx(tmp_path / "held" / "1" / "model.onnx")
    with serving(tmp_path) as server:
        yield server


async def test_a_cancelled_call_is_taken_back_on_the_server(own_server: ServerProcess) -> None:
    def cancelled() -> float:
        return metric(own_server, "offramp_requests_total", model="held", status="cancelled")

    def in_flight() -> float:
        return metric(own_server, "offramp_requests_in_flight")

    with own_server.computing_nothing():
        async with triton_aio.InferenceServerClient(own_server.grpc) as aio:
            task = asyncio.create_task(aio.infer("held", [ROW]))
            await eventually(lambda: in_flight() == 1)
            task.cancel()
            await eventually(lambda: cancelled() == 1)
            with pytest.raises(asyncio.CancelledError):
                await task

        outcome: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with triton.InferenceServerClient(own_server.grpc) as client:
            call = client.async_infer("held", [ROW], callback=lambda result, error: outcome.put((result, error)))
            await eventually(lambda: in_flight() == 1)
            call.cancel()
            await eventually(lambda: cancelled() == 2)
            result, error = await asyncio.to_thread(outcome.get, timeout=PATIENCE)
        assert result is None
        assert error.status() == "StatusCode.CANCELLED"
        assert in_flight() == 0


# What there is


def test_the_server_says_what_it_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "offramp"
    assert metadata.version
    works = {"classification", "model_repository", "model_configuration", "parameters", "statistics", "logging"}
    assert works | {"system_shared_memory"} <= set(metadata.extensions)
    assert "cuda_shared_memory" not in metadata.extensions


@pytest.mark.parametrize("model", MODELS)
def test_metadata_has_the_batch_dimension(client: triton.InferenceServerClient, model: str) -> None:
    assert client.is_model_ready(model, "1")
    metadata = client.get_model_metadata(model)

    def tensors(*names: str) -> list[tuple[str, str, list[int]]]:
        return [(name, "INT32", [-1, WIDTH]) for name in names]

    assert (metadata.name, list(metadata.versions)) == (model, ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == tensors("INPUT0", "INPUT1")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == tensors("OUTPUT0", "OUTPUT1")
    as_json = client.get_model_metadata(model, as_json=True)
    assert [t["shape"] for t in as_json["inputs"]] == [["-1", "16"]] * 2


@pytest.mark.parametrize(
    ("model", "platform", "engine", "file"),
    [
        ("add_sub_pt2", "pytorch_exported_program", "torch-eager", "model.pt2"),
        ("add_sub_onnx", "onnx_onnxv1", "onnxruntime", "model.onnx"),
    ],
)
def test_the_configuration_leaves_it_out_and_tells_the_engine(
    client: triton.InferenceServerClient, model: str, platform: str, engine: str, file: str
) -> None:
    config = client.get_model_config(model, as_json=True)["config"]

    assert (config["name"], config["platform"], config["backend"]) == (model, platform, engine)
    assert config["default_model_filename"] == file
    assert config["max_batch_size"] == 16
    for kind, names in (("input", ["INPUT0", "INPUT1"]), ("output", ["OUTPUT0", "OUTPUT1"])):
        assert [(t["name"], t["data_type"], t["dims"]) for t in config[kind]] == [
            (name, "TYPE_INT32", ["16"]) for name in names
        ]
    assert config["parameters"]["engine"]["string_value"] == engine
    assert config["parameters"]["precision"]["string_value"] == "fp32"
    assert client.get_model_config(model).config.parameters["engine"].string_value == engine


@pytest.mark.parametrize("model", MODELS)
def test_statistics_move_by_what_was_sent(client: triton.InferenceServerClient, model: str) -> None:
    def statistics() -> Any:
        [stats] = client.get_inference_statistics(model).model_stats
        return stats

    def batches(stats: Any) -> dict[int, int]:
        return {entry.batch_size: entry.compute_infer.count for entry in stats.batch_stats}

    before = statistics()
    for rows in (3, 1, 3):
        client.infer(model, add_sub(*operands(rows)))
    refusal(client, model, add_sub(*operands())[:1])
    after = statistics()

    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 3
    was, now = before.inference_stats, after.inference_stats
    assert now.success.count - was.success.count == 3
    assert now.fail.count - was.fail.count == 1
    assert now.success.ns > was.success.ns
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(now, part).count - getattr(was, part).count == 3
    # One after the other, each is a batch of its own.
    old, new = batches(before), batches(after)
    assert {size: new[size] - old.get(size, 0) for size in new if new[size] != old.get(size, 0)} == {3: 2, 1: 1}
    as_json = client.get_inference_statistics(model, "1", as_json=True)["model_stats"][0]
    assert (as_json["name"], int(as_json["inference_count"])) == (model, after.inference_count)


def test_statistics_of_all_models_are_there(client: triton.InferenceServerClient) -> None:
    assert set(MODELS) <= {stats.name for stats in client.get_inference_statistics().model_stats}


# Streams


def test_a_stream_answers_both_models_in_order_and_survives_errors(server: ServerProcess) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    pairs = [operands(1 + seed % 3, seed) for seed in range(20)]
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("nobody", add_sub(*pairs[0]), request_id="lost")
        for number, pair in enumerate(pairs):
            client.async_stream_infer(MODELS[number % 2], add_sub(*pair), request_id=str(number))
        _, error = answers.get(timeout=PATIENCE)
        assert '"nobody"' in error.message()
        for number, pair in enumerate(pairs):
            result, error = answers.get(timeout=PATIENCE)
            assert error is None
            assert result.get_response().id == str(number)
            check_add_sub(result, *pair)
        client.stop_stream()


async def test_an_asyncio_stream_answers(aio: triton_aio.InferenceServerClient) -> None:
    pairs = [operands(1, seed) for seed in range(10)]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, pair in enumerate(pairs):
            yield {"model_name": MODELS[number % 2], "inputs": add_sub(*pair), "request_id": str(number)}

    found = []
    async for result, error in aio.stream_infer(requests()):
        assert error is None
        found.append(result)
    assert [result.get_response().id for result in found] == [str(number) for number in range(10)]
    for result, pair in zip(found, pairs, strict=True):
        check_add_sub(result, *pair)


# Management


def test_models_come_and_go(client: triton.InferenceServerClient) -> None:
    def state() -> tuple[str, str]:
        [entry] = [entry for entry in client.get_model_repository_index().models if entry.name == "comes_and_goes"]
        return entry.state, entry.reason

    pair = operands()
    assert state() == ("READY", "")
    client.unload_model("comes_and_goes")
    assert state() == ("UNAVAILABLE", "unloaded")
    assert not client.is_model_ready("comes_and_goes")
    status, message = refusal(client, "comes_and_goes", add_sub(*pair))
    assert status == "StatusCode.NOT_FOUND"
    assert "unloaded" in message

    client.load_model("comes_and_goes")
    assert state() == ("READY", "")
    check_add_sub(client.infer("comes_and_goes", add_sub(*pair)), *pair)


def test_what_is_not_in_the_repository_cannot_be_loaded(client: triton.InferenceServerClient) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            change("nobody")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        assert '"nobody"' in caught.value.message()


def test_log_settings_change_what_is_logged(server: ServerProcess, client: triton.InferenceServerClient) -> None:
    assert client.get_log_settings(as_json=True)["settings"]["log_info"]["bool_param"] is True
    client.infer("add_sub_onnx", add_sub(*operands()), request_id="not-in-the-log")
    try:
        settings = client.update_log_settings({"log_verbose_level": 1}, as_json=True)["settings"]
        assert settings["log_verbose_level"]["uint32_param"] == 1
        client.infer("add_sub_onnx", add_sub(*operands()), request_id="in-the-log")
    finally:
        client.update_log_settings({"log_verbose_level": 0})
    client.infer("add_sub_onnx", add_sub(*operands()), request_id="not-in-the-log-either")

    logged = server.logged()
    assert "request_id=in-the-log" in logged
    assert "request_id=not-in-the-log" not in logged


def test_tracing_that_is_not_configured_is_off_and_says_why(client: triton.InferenceServerClient) -> None:
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"] == ["OFF"]
    with pytest.raises(InferenceServerException) as caught:
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
    assert "otlp_endpoint" in caught.value.message()


# One process

TOGETHER = """
import sys
import numpy as np
import offramp_client
import offramp_server.app
from tritonclient.grpc import InferenceServerClient, InferInput

rows = np.ones((1, 16), np.int32)
tensors = [InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
for tensor in tensors:
    tensor.set_data_from_numpy(rows)
with InferenceServerClient(sys.argv[1]) as theirs, offramp_client.Client(sys.argv[1], timeout=60) as ours:
    first = theirs.infer("add_sub_onnx", tensors).as_numpy("OUTPUT0")
    second = ours.infer("add_sub_onnx", {"INPUT0": rows, "INPUT1": rows})["OUTPUT0"]
assert (first == second).all() and first[0, 0] == 2
assert "torch" not in sys.modules
"""


def test_our_client_our_server_and_tritons_client_share_a_process(server: ServerProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, server.grpc], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
