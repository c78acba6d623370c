"""What an app that calls a server through the SDK relies on, with the blocking and with the asyncio client."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import offramp_client
import pytest
from client_fakes import KINDS, Failure, FakeServer, client_of
from eventually import PATIENCE
from offramp_client import AnswerPath, Duration, IndexEntry, RetryPolicy, Tensor, TensorInfo, errors
from offramp_client._connection import FAILURES
from open_inference.grpc_predict_v2_pb2 import ModelInferResponse
from open_inference.tensor import NUMPY_TYPES

X = np.array([[1, 2], [3, 4]], np.float32)
AT_ONCE = RetryPolicy(initial_backoff=0.0)
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

Connect = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Connect]:
    made: list[Any] = []

    def connect(target: str | None = None, **options: Any) -> Any:
        made.append(client_of(request.param, target or server.target, **{"retries": AT_ONCE, **options}))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


class TestInfer:
    @pytest.mark.parametrize("datatype", sorted(set(NUMPY_TYPES) - {"BF16"}))
    def test_arrays_come_back_in_their_type_and_shape(self, client: Any, server: FakeServer, datatype: str) -> None:
        array = np.array([[0, 1, 1], [1, 0, 1]]).astype(NUMPY_TYPES[datatype])

        back = client.infer("echo", {"x": array})["x"]

        assert server.last().inputs[0].datatype == datatype
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)

    @pytest.mark.parametrize("words", [["grün", "b"], [b"gr\xc3\xbcn", b"b"]])
    def test_text_and_byte_strings_come_back_as_bytes(self, client: Any, words: list[Any]) -> None:
        for array in (np.array(words), np.array(words, dtype=object), words):
            assert client.infer("echo", {"x": array})["x"].tolist() == ["grün".encode(), b"b"]

    def test_bf16_goes_as_a_tensor_or_as_its_own_numpy_type_and_comes_back_as_float32(self, client: Any) -> None:
        for value in (Tensor.from_numpy("x", X, "BF16"), X.astype(ml_dtypes.bfloat16)):
            back = client.infer("echo", {"x": value})["x"]
            assert back.dtype == np.float32
            np.testing.assert_array_equal(back, X)

    def test_several_inputs_and_empty_and_scalar_ones_travel(self, client: Any) -> None:
        inputs = {"a": X, "none": np.zeros((0, 3), np.int32), "scalar": np.int64(7)}

        outputs = client.infer("echo", inputs).outputs

        assert {name: array.shape for name, array in outputs.items()} == {"a": (2, 2), "none": (0, 3), "scalar": ()}
        assert outputs["scalar"] == 7

    def test_only_the_wanted_outputs_are_asked_for(self, client: Any) -> None:
        assert list(client.infer("echo", {"a": X, "b": X}, outputs=["b"]).outputs) == ["b"]

    def test_what_identifies_the_request_is_sent_and_comes_back(self, client: Any) -> None:
        result = client.infer("echo", {"x": X}, version="3", request_id="r-9")

        assert (result.model_name, result.model_version, result.id) == ("echo", "3", "r-9")

    def test_parameters_travel_in_the_types_that_servers_look_for(self, client: Any, server: FakeServer) -> None:
        given = {"flag": True, "count": -2, "large": 2**63, "share": 0.5, "word": "w"}

        client.infer("echo", {"x": X}, parameters=given, priority=3, unit="user-1", route="model:student")

        sent = {name: (p.WhichOneof("parameter_choice"), p) for name, p in server.last().parameters.items()}
        assert {name: (kind, getattr(p, kind)) for name, (kind, p) in sent.items()} == {
            "flag": ("bool_param", True),
            "count": ("int64_param", -2),
            "large": ("uint64_param", 2**63),
            "share": ("double_param", 0.5),
            "word": ("string_param", "w"),
            "priority": ("uint64_param", 3),
            "offramp_unit": ("string_param", "user-1"),
            "offramp_route": ("string_param", "model:student"),
        }

    def test_the_answer_says_how_it_was_made(self, client: Any, server: FakeServer) -> None:
        server.response_parameters = {
            "offramp_route": "fashion",
            "offramp_models": "student,teacher",
            "offramp_exit": "1",
            "offramp_confidence": "0.75",
            "offramp_epoch": 4,
            "offramp_arm": "b",
            "offramp_request_id": "abc",
            "offramp_assigned": "unit",
            "route": "not ours",
        }

        result = client.infer("echo", {"x": X})

        assert result.path == AnswerPath("fashion", ("student", "teacher"), ("1",), (0.75,), 4, "b", "abc", "unit")
        assert (result.path.exit, result.path.confidence) == ("1", 0.75)
        assert result.parameters == server.response_parameters

    def test_each_item_of_a_request_has_its_own_exit(self, client: Any, server: FakeServer) -> None:
        server.response_parameters = {"offramp_exit": "fast,teacher,fast", "offramp_confidence": "0.9,0.9,0.9"}

        path = client.infer("echo", {"x": X}).path

        assert (path.exits, path.confidences) == (("fast", "teacher", "fast"), (0.9, 0.9, 0.9))
        assert (path.exit, path.confidence) == (None, 0.9)
        assert path.of_item(1) == AnswerPath(exits=("teacher",), confidences=(0.9,))
        assert path.of_item(1).exit == "teacher"

    def test_an_answer_that_does_not_say_how_it_was_made_has_an_empty_path(self, client: Any) -> None:
        path = client.infer("echo", {"x": X}).path
        assert path == AnswerPath()
        assert (path.exit, path.confidence, path.of_item(0)) == (None, None, AnswerPath())

    def test_a_path_that_is_not_as_agreed_is_a_protocol_error(self, client: Any, server: FakeServer) -> None:
        server.response_parameters = {"offramp_confidence": "high"}
        with pytest.raises(errors.ProtocolError, match="high"):
            _ = client.infer("echo", {"x": X}).path

    def test_an_output_that_is_not_there_is_named_with_those_that_are(self, client: Any) -> None:
        with pytest.raises(KeyError, match=r'no output "y" in the answer, which has x'):
            client.infer("echo", {"x": X})["y"]

    def test_large_tensors_pass_up_to_the_limit_and_not_beyond(self, connect: Connect) -> None:
        ten_megabytes = np.ones(10_000_000, np.uint8)
        assert connect().infer("echo", {"x": ten_megabytes})["x"].sum() == 10_000_000
        with pytest.raises(errors.ResourceExhausted, match="larger than max"):
            connect(max_message_bytes=1000).infer("echo", {"x": ten_megabytes})

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"inputs": {"x": np.zeros(1, complex)}}, '"x": numpy type complex128 does not travel'),
            ({"inputs": {"x": Tensor("y", "FP32", (0,), b"")}}, 'input "x" is given a tensor whose name is "y"'),
            ({"priority": -1}, "priority is 0 or more"),
            ({"unit": "a", "parameters": {"offramp_unit": "b"}}, '"offramp_unit" is given twice'),
            ({"priority": 1, "parameters": {"priority": 2}}, '"priority" is given twice'),
            ({"parameters": {"p": None}}, 'parameter "p": expected bool, int, float or str, got NoneType'),
            ({"timeout": 0}, "a timeout is a positive number of seconds, or None"),
            ({"timeout": float("nan")}, "a timeout is a positive number of seconds, or None"),
        ],
    )
    def test_what_cannot_be_sent_is_refused_before_anything_is_sent(
        self, client: Any, server: FakeServer, options: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises((ValueError, TypeError), match=sentence):
            client.infer("echo", **{"inputs": {"x": X}, **options})
        assert server.seen == []


class TestCasting:
    def test_lists_become_what_the_model_declares_and_it_is_asked_once(self, client: Any, server: FakeServer) -> None:
        for values in ([[1, 2]], [[0.1, 2.0]]):
            back = client.infer("echo", {"x": values}, cast=True)["x"]
            np.testing.assert_array_equal(back, np.array(values, np.float32))
        assert server.methods() == ["ModelMetadata", "ModelInfer", "ModelInfer"]

    def test_without_it_the_arrays_own_type_travels_and_nothing_is_asked(self, client: Any, server: FakeServer) -> None:
        client.infer("echo", {"x": [[1, 2]]})

        assert server.methods() == ["ModelInfer"]
        assert server.last().inputs[0].datatype == "INT64"

    def test_what_would_lose_its_value_is_refused(self, client: Any, server: FakeServer) -> None:
        server.declared = {"x": "UINT8"}
        with pytest.raises(ValueError, match='"x": UINT8 holds integers from 0 to 255, got 300 to 300'):
            client.infer("echo", {"x": [300]}, cast=True)

    def test_a_refused_request_makes_it_ask_again(self, client: Any, server: FakeServer) -> None:
        client.infer("echo", {"x": [1]}, cast=True)
        server.declared = {"x": "INT32"}
        server.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, 'input "x": expected INT32'))
        with pytest.raises(errors.InvalidArgument):
            client.infer("echo", {"x": [1]}, cast=True)

        assert client.infer("echo", {"x": [1]}, cast=True)["x"].dtype == np.int32

    def test_inputs_that_the_model_does_not_declare_are_left_for_the_server_to_judge(
        self, client: Any, server: FakeServer
    ) -> None:
        client.infer("echo", {"z": np.array([1.0])}, cast=True)
        assert server.last().inputs[0].datatype == "FP64"


class TestAskingTheServer:
    def test_it_tells_about_itself(self, client: Any) -> None:
        assert client.server_metadata() == offramp_client.ServerMetadata("fake", "1.2", ("statistics",))

    def test_health_is_what_it_says(self, client: Any, server: FakeServer) -> None:
        assert (client.is_live(), client.is_ready(), client.is_model_ready("echo")) == (True, True, True)
        server.ready = False
        assert (client.is_live(), client.is_ready(), client.is_model_ready("echo", "2")) == (True, False, False)
        assert (server.last().name, server.last().version) == ("echo", "2")

    def test_a_server_that_nobody_reaches_is_neither_live_nor_ready(self, connect: Connect, server: FakeServer) -> None:
        server.__exit__()
        client = connect()
        assert (client.is_live(), client.is_ready(), client.is_model_ready("echo")) == (False, False, False)

    def test_metadata_of_a_model_lists_its_tensors(self, client: Any) -> None:
        metadata = client.model_metadata("echo", "2")

        assert (metadata.name, metadata.versions, metadata.platform) == ("echo", ("1", "2"), "fake")
        assert metadata.inputs == metadata.outputs == (TensorInfo("x", "FP32", (-1, 2)),)
        assert str(metadata.inputs[0]) == "x: FP32[-1,2]"

    def test_configuration_of_a_model_has_the_protocols_datatypes(self, client: Any, server: FakeServer) -> None:
        config = client.model_config("echo")

        assert (config.name, config.backend, config.max_batch_size, config.instances) == ("echo", "eager", 8, 3)
        assert config.inputs == (TensorInfo("x", "FP64", (-1,)),)
        assert config.outputs == (TensorInfo("words", "BYTES", (1,)),)
        assert config.parameters == {"precision": "fp32"}

    def test_statistics_count_and_time(self, client: Any, server: FakeServer) -> None:
        (model,) = client.model_statistics("echo")

        assert (model.name, model.inference_count, model.execution_count) == ("echo", 7, 3)
        assert (model.queue, model.queue.mean, model.fail.mean) == (Duration(4, 2_000_000_000), 0.5, 0.0)
        assert [(batch.batch_size, batch.compute_infer.count) for batch in model.batches] == [(2, 3)]
        assert [(usage.type, usage.byte_size) for usage in model.memory] == [("CPU", 1024)]

    def test_the_repository_is_listed_with_the_reasons(self, client: Any) -> None:
        assert client.repository_index() == [
            IndexEntry("echo", "1", "READY", ""),
            IndexEntry("bad", "1", "UNAVAILABLE", "broken file"),
        ]
        assert [entry.ready for entry in client.repository_index()] == [True, False]
        assert [entry.name for entry in client.repository_index(ready=True)] == ["echo"]

    def test_models_are_loaded_and_unloaded_by_name_with_time_to_compile(self, client: Any, server: FakeServer) -> None:
        client.load_model("a")
        client.unload_model("b")

        calls = [(method, request.model_name) for method, request, *_ in server.seen]
        assert calls == [("RepositoryModelLoad", "a"), ("RepositoryModelUnload", "b")]
        assert min(server.limits()) > 60


class TestErrors:
    @pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
    def test_every_status_code_has_its_class(self, connect: Connect, server: FakeServer, code: grpc.StatusCode) -> None:
        trailing = (("offramp-request-id", "r-7"),)
        server.failures.append(Failure(code, "so it is", trailing))

        with pytest.raises(offramp_client.OfframpError) as caught:
            connect(retries=RetryPolicy(max_attempts=1)).infer("echo", {"x": X})

        error = caught.value
        assert (error.code, type(error).__name__) == (code.name, code.name.title().replace("_", ""))
        assert (error.message, str(error), error.request_id) == ("so it is", "so it is", "r-7")
        assert isinstance(error.__cause__, FAILURES)

    @pytest.mark.parametrize(("sent", "seconds"), [("1500", 1.5), ("0", 0.0), ("-1", np.inf), ("soon", np.inf)])
    def test_an_overloaded_server_is_not_asked_again_and_its_hint_is_passed_on(
        self, client: Any, server: FakeServer, sent: str, seconds: float
    ) -> None:
        server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", sent),)))
        with pytest.raises(errors.ResourceExhausted) as caught:
            client.infer("echo", {"x": X})

        assert caught.value.retry_after == seconds
        assert len(server.seen) == 1

    def test_an_error_without_hints_has_none(self, client: Any, server: FakeServer) -> None:
        server.failures.append(Failure(grpc.StatusCode.NOT_FOUND))
        with pytest.raises(errors.NotFound) as caught:
            client.model_metadata("x")
        assert (caught.value.retry_after, caught.value.request_id) == (None, None)

    def test_a_server_that_says_no_more_than_its_code_is_quoted_so(self, client: Any, server: FakeServer) -> None:
        server.failures.append(Failure(grpc.StatusCode.ABORTED, ""))
        with pytest.raises(errors.Aborted, match="the server said ABORTED and no more"):
            client.server_metadata()

    def test_errors_travel_between_processes(self) -> None:
        error = errors.ResourceExhausted("full", request_id="r", retry_after=2.0)
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), back.message, back.request_id, back.retry_after) == (type(error), "full", "r", 2.0)

    @pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x80"])
    def test_an_answer_that_is_no_message_is_a_protocol_error(
        self, client: Any, server: FakeServer, garbage: bytes
    ) -> None:
        server.garbage = garbage
        with pytest.raises(errors.ProtocolError, match=r"ModelInfer: the answer is no inference\.ModelInferResponse"):
            client.infer("echo", {"x": X})

    @pytest.mark.parametrize(
        ("outputs", "raw", "sentence"),
        [
            ([("x", "FP32", [2])], [b"1234"], r'"x": FP32\[2\] takes 8 bytes, got 4'),
            ([("x", "BYTES", [1])], [b"\x05\x00\x00\x00a"], "says 5 bytes, only 1 are left"),
            ([("x", "FP9", [1])], [b"1"], "no datatype FP9"),
            ([("x", "FP32", [0])], [], "1 outputs and 0 raw contents"),
        ],
    )
    def test_an_answer_whose_tensors_do_not_fit_is_a_protocol_error(
        self, client: Any, server: FakeServer, outputs: list[Any], raw: list[bytes], sentence: str
    ) -> None:
        answer = ModelInferResponse(raw_output_contents=raw)
        for name, datatype, shape in outputs:
            answer.outputs.add(name=name, datatype=datatype, shape=shape)
        server.garbage = answer.SerializeToString()

        with pytest.raises(errors.ProtocolError, match=sentence):
            client.infer("echo", {"x": X})


class TestRetries:
    def test_what_is_unavailable_is_tried_again(self, client: Any, server: FakeServer) -> None:
        server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 3)

        assert client.infer("echo", {"x": X}, request_id="same").id == "same"
        assert server.methods() == ["ModelInfer"] * 4

    def test_after_the_last_attempt_the_error_is_raised(self, connect: Connect, server: FakeServer) -> None:
        server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE, "draining")] * 5)
        with pytest.raises(errors.Unavailable, match="draining"):
            connect(retries=RetryPolicy(max_attempts=2, initial_backoff=0.001)).infer("echo", {"x": X})
        assert len(server.seen) == 2

    @pytest.mark.parametrize("code", [code for code in CODES if code.name != "UNAVAILABLE"], ids=lambda code: code.name)
    def test_nothing_else_is_tried_again(self, client: Any, server: FakeServer, code: grpc.StatusCode) -> None:
        server.failures.append(Failure(code))
        with pytest.raises(offramp_client.OfframpError):
            client.infer("echo", {"x": X})
        assert len(server.seen) == 1

    @pytest.mark.parametrize("call", ["load_model", "unload_model"])
    def test_a_change_of_the_repository_is_not_tried_again(self, client: Any, server: FakeServer, call: str) -> None:
        server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
        with pytest.raises(errors.Unavailable):
            getattr(client, call)("echo")
        assert len(server.seen) == 1

    def test_a_server_that_comes_back_on_its_port_is_found_again(self, client: Any, server: FakeServer) -> None:
        client.infer("echo", {"x": X})
        server.__exit__()
        with pytest.raises(errors.Unavailable):
            client.infer("echo", {"x": X})
        with FakeServer(port=server.port):
            client.wait_until_ready(timeout=PATIENCE)
            client.infer("echo", {"x": X})


class TestDeadlines:
    def test_every_call_has_one_by_default(self, client: Any, server: FakeServer) -> None:
        client.server_metadata()
        # gRPC rounds up what it tells the server.
        assert 0 < server.limits()[0] < 15

    def test_the_clients_own_and_that_of_a_call_replace_it(self, connect: Connect, server: FakeServer) -> None:
        client = connect(timeout=100.0)
        client.server_metadata()
        client.server_metadata(timeout=1000.0)
        client.server_metadata(timeout=None)

        first, second, third = server.limits()
        assert 15 < first < 150
        assert 150 < second < 1500
        assert third > 1e6

    def test_a_call_whose_time_is_up_ends_here_and_on_the_server(self, client: Any, server: FakeServer) -> None:
        with pytest.raises(errors.DeadlineExceeded):
            client.infer("slow", {"x": X}, timeout=0.1)
        while not server.working.wait(0.1):
            # The machine was too busy to bring it to the server in that time.
            with pytest.raises(errors.DeadlineExceeded):
                client.infer("slow", {"x": X}, timeout=1.0)
        assert server.cancelled.wait(PATIENCE)


class TestWaitingUntilReady:
    def test_it_returns_once_the_server_is_ready(self, client: Any, server: FakeServer) -> None:
        server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE), Failure(grpc.StatusCode.DEADLINE_EXCEEDED)])
        client.wait_until_ready()
        client.wait_until_ready("echo")
        assert server.methods() == ["ServerReady", "ServerReady", "ServerReady", "ModelReady"]

    def test_it_says_how_long_it_has_waited_when_the_time_is_up(self, client: Any, server: FakeServer) -> None:
        server.ready = False
        # The last reason may be that the server's answer did not come in time.
        with pytest.raises(errors.DeadlineExceeded, match=r"not ready after 0\.1 s: "):
            client.wait_until_ready(timeout=0.1)

    def test_what_waiting_does_not_cure_is_raised_at_once(self, client: Any, server: FakeServer) -> None:
        server.failures.append(Failure(grpc.StatusCode.UNAUTHENTICATED))
        with pytest.raises(errors.Unauthenticated):
            client.wait_until_ready()


class TestClosing:
    @pytest.mark.parametrize("call", [lambda client: client.is_live(), lambda client: client.infer_stream([])])
    def test_a_closed_client_says_so(self, server: FakeServer, call: Callable[[Any], Any]) -> None:
        client = offramp_client.Client(server.target)
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match=rf"Client\('{server.target}'\) is closed; make a new one"):
            call(client)

    def test_leaving_the_block_closes(self, server: FakeServer) -> None:
        with offramp_client.Client(server.target) as client:
            assert client.is_live()
        with pytest.raises(RuntimeError, match="is closed"):
            client.is_live()

    def test_closing_ends_what_is_in_flight(self, server: FakeServer) -> None:
        client = offramp_client.Client(server.target)

        def close_when_working() -> None:
            server.working.wait(PATIENCE)
            client.close()

        closer = threading.Thread(target=close_when_working)
        closer.start()
        with pytest.raises(errors.Cancelled):
            client.infer("slow", {"x": X})
        closer.join()
        assert server.cancelled.wait(PATIENCE)


def test_a_token_is_sent_with_every_call(connect: Connect, server: FakeServer) -> None:
    client = connect(token="s3cret")
    client.infer("echo", {"x": X})
    client.is_live()
    list(client.infer_stream([offramp_client.InferRequest("echo", {"x": X})]))

    assert [metadata.get("authorization") for _, _, metadata, _ in server.seen] == ["Bearer s3cret"] * 3
