"""Calls that are fed by hand are calls."""

from __future__ import annotations

import asyncio

import pytest
from offramp_server.transport.interface import CallContext, CallFailed, Code, Method
from offramp_server.transport.native.connection import Connection, Shared
from offramp_server.transport.native.limits import NativeLimits

from benchmarks.call_path import Caller

PATH = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize("alike", [True, False])
async def test_each_call_is_answered_and_failures_are_counted(alike: bool) -> None:
    heard: list[bytes] = []

    async def handler(request: bytes, context: CallContext) -> bytes:
        heard.append(request)
        if len(heard) > 2000:
            raise CallFailed(Code.INTERNAL, "enough")
        return bytes(200)

    method = Method("ModelInfer", PATH, "fuzz.Bytes", bytes, False, False, handler, swift=True)
    shared = Shared({PATH: method}, NativeLimits(), 1000)
    caller = Caller(lambda: Connection(shared), b"m" * 100, alike)
    for _ in range(2001):
        caller.call()
        await asyncio.sleep(0)
        assert not caller.waits
    assert caller.wire.failures == 1
    assert len(set(heard)) == (1 if alike else 2001)
    caller.hang_up()
    assert not shared.connections
