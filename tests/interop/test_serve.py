"""Inference by every client from a real server with a worker process."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Channel, Client, Opening
from eventually import eventually
from metrics_page import metric
from offramp_server.transport.interface import Code
from open_inference import grpc_predict_v2_pb2 as pb
from serve import MODEL, answers_to, infer, infer_stream, request_of
from server_process import ServerProcess

from clients import ANY_CALL, CALL_COMPRESSION, UNARY_CANCEL


@pytest.fixture
def channel(opened: Callable[[Opening], Channel], served: ServerProcess) -> Channel:
    return opened(Opening(served.grpc))


def test_an_inference(channel: Channel) -> None:
    for size in (4, 16, 100_000):
        call = infer(size)
        ended = channel.begin(call).outcome()
        assert (ended.code, ended.message) == (Code.OK, "")
        assert answers_to(call, ended.answers[0])


def test_16_megabytes(channel: Channel) -> None:
    call = infer(16 * 2**20)
    ended = channel.begin(call).outcome()
    assert ended.code is Code.OK
    assert answers_to(call, ended.answers[0])


def test_an_unknown_model_is_not_found(channel: Channel) -> None:
    ended = channel.begin(infer(model="nobody")).outcome()
    assert ended.code is Code.NOT_FOUND
    assert '"nobody"' in ended.message


@pytest.mark.needs(ANY_CALL)
def test_a_stream_answers_in_order_and_survives_errors(channel: Channel) -> None:
    ended = channel.begin(infer_stream(MODEL, "nobody", MODEL)).outcome()
    assert ended.code is Code.OK
    answers = [pb.ModelStreamInferResponse.FromString(answer) for answer in ended.answers]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]


@pytest.mark.needs(CALL_COMPRESSION)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_inference(channel: Channel, algorithm: str) -> None:
    call = infer(100_000, compression=algorithm)
    assert answers_to(call, channel.begin(call).outcome().answers[0])


def test_many_at_once(channel: Channel) -> None:
    calls = [infer(4 * number) for number in range(1, 301)]
    pending = [channel.begin(call) for call in calls]
    for call, each in zip(calls, pending, strict=True):
        ended = each.outcome()
        assert ended.code is Code.OK
        assert answers_to(call, ended.answers[0])


def test_a_deadline_passes_while_nobody_computes(channel: Channel, served: ServerProcess) -> None:
    with served.computing_nothing():
        assert channel.begin(infer(timeout=0.1)).outcome().code is Code.DEADLINE_EXCEEDED
    assert channel.begin(infer()).outcome().code is Code.OK


@pytest.mark.needs(UNARY_CANCEL)
async def test_a_call_that_is_cancelled_is_taken_back(channel: Channel, served: ServerProcess, client: Client) -> None:
    def cancelled() -> float:
        return metric(served, "offramp_requests_total", model=MODEL, status="cancelled")

    before = cancelled()
    with served.computing_nothing():
        pending = channel.begin(infer())
        await eventually(lambda: metric(served, "offramp_requests_in_flight") >= 1)
        pending.cancel()
        assert pending.outcome().code is Code.CANCELLED
        await eventually(lambda: cancelled() > before)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="there is no h2load (Debian: nghttp2-client)")
def test_h2load(served: ServerProcess, tmp_path: Path) -> None:
    """It knows nothing of gRPC: what it counts are whole answers, with a status of HTTP."""
    request = request_of(64)
    (tmp_path / "body").write_bytes(b"\0" + len(request).to_bytes(4) + request)
    before = metric(served, "offramp_requests_total", model=MODEL, status="ok")
    command = ["h2load", "-n", "1000", "-c", "8", "-m", "20", f"--data={tmp_path / 'body'}"]
    fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{served.grpc}/inference.GRPCInferenceService/ModelInfer"
    done = subprocess.run([*command, *fields, url], capture_output=True, text=True, timeout=120, check=True)
    assert "1000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    assert "status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx" in done.stdout
    assert metric(served, "offramp_requests_total", model=MODEL, status="ok") - before == 1000
