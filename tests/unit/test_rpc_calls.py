"""What a caller is told of a failure, and what the log keeps of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import pytest
from offramp_server import errors
from offramp_server.errors import InvalidRequest, OfframpError, Overloaded
from offramp_server.rpc.auth import Authenticator
from offramp_server.rpc.calls import guarded
from offramp_server.rpc.status import CODES, MAX_MESSAGE_LENGTH, failure_of, failure_parameters, identified
from offramp_server.transport.interface import CallContext, CallFailed, Code, Service
from open_inference import grpc_predict_v2_pb2 as pb
from rpc_fakes import FakeContext

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
REQUEST = pb.ModelInferRequest(model_name="m", id="r1", raw_input_contents=[b"payload"])


class Failing:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    async def model_infer(self, request: pb.ModelInferRequest, context: CallContext) -> pb.ModelInferResponse:
        if self.error is not None:
            raise self.error
        return pb.ModelInferResponse()


async def infer(error: BaseException | None) -> Any:
    service = guarded(Service.of(DESCRIPTOR, Failing(error)), Authenticator())
    [method] = [method for method in service.methods if method.name == "ModelInfer"]
    answer: Any = method.handler(REQUEST, FakeContext())
    return await answer


def test_every_error_of_the_domain_but_internal_has_a_code() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OfframpError)}

    assert kinds - set(CODES) == {OfframpError, errors.InternalError}
    # Clients tell the kinds apart by their codes, and retry by themselves what is UNAVAILABLE.
    assert [kind for kind, code in CODES.items() if code is Code.UNAVAILABLE] == [errors.Unavailable]
    assert Code.INTERNAL not in CODES.values()


def test_a_kind_made_later_has_the_code_of_its_parent() -> None:
    class Special(InvalidRequest):
        pass

    assert failure_of(Special("x")).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [ValueError("secret"), errors.InternalError("secret"), OfframpError("secret")])
def test_a_defect_is_an_id_for_the_caller_and_a_traceback_in_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failure = failure_of(error)

    assert failure.code is Code.INTERNAL
    assert "secret" not in failure.message
    error_id = failure.message.rsplit(" ", 1)[1]
    assert len(error_id) == 32
    [record] = caplog.records
    assert error_id in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_overload_says_when_to_come_back() -> None:
    assert failure_of(Overloaded("full", 0.1)).trailing == {"grpc-retry-pushback-ms": "100"}
    assert failure_of(InvalidRequest("no")).trailing == {}


def test_a_failure_says_of_which_request_it_is() -> None:
    failure = identified(failure_of(Overloaded("full", 0.1)), "r1")

    assert failure.trailing == {"grpc-retry-pushback-ms": "100", "offramp-request-id": "r1"}
    assert failure_parameters(failure, "r1") == {
        "offramp_status": "RESOURCE_EXHAUSTED",
        "offramp_request_id": "r1",
        "offramp_retry_after": 0.1,
    }


@pytest.mark.parametrize("request_id", ["", "é", "a b", "a\n", "x" * 257])
def test_an_id_that_metadata_cannot_hold_is_left_out(request_id: str) -> None:
    assert identified(CallFailed(Code.NOT_FOUND, "no"), request_id).trailing == {}


def test_a_message_too_long_for_a_header_is_cut() -> None:
    assert len(failure_of(InvalidRequest("x" * 100_000)).message) == MAX_MESSAGE_LENGTH


@pytest.mark.parametrize(
    ("error", "code", "level"),
    [
        (InvalidRequest("wrong"), "INVALID_ARGUMENT", logging.INFO),
        (Overloaded("full", 1), "RESOURCE_EXHAUSTED", logging.WARNING),
        (CallFailed(Code.UNAVAILABLE, "later"), "UNAVAILABLE", logging.WARNING),
    ],
)
async def test_a_failed_call_is_one_line_without_payload(
    error: Exception, code: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "offramp")
    with pytest.raises(CallFailed):
        await infer(error)

    [record] = caplog.records
    assert record.levelno == level
    assert record.getMessage() == f"call failed: {error}"
    fields = vars(record)
    assert [fields[key] for key in ("method", "model", "request_id", "code")] == ["ModelInfer", "m", "r1", code]
    assert fields["ms"] >= 0
    assert "payload" not in str(fields)


async def test_a_call_that_succeeds_is_a_line_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "offramp")
    await infer(None)
    assert not caplog.records

    caplog.set_level(logging.DEBUG, "offramp")
    await infer(None)
    assert [vars(record)["code"] for record in caplog.records] == ["OK"]


async def test_a_cancelled_call_stays_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "offramp")
    with pytest.raises(asyncio.CancelledError):
        await infer(asyncio.CancelledError())

    assert [vars(record)["code"] for record in caplog.records] == ["CANCELLED"]
