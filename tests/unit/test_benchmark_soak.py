"""What a reader of a soak's report relies on: that growth is seen, and that the traffic is what it says it is."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import grpc
import pytest
from offramp.v1 import route_service_pb2 as routes
from offramp_server.transport.interface import CallContext, CallFailed, Code, ListenOptions, Service
from offramp_server.transport.native.transport import NativeTransport
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.machine import describe_machine
from benchmarks.harness.steadiness import FIGURES, Moment, judge, slope, thinned
from benchmarks.runtimes import soak_sockets
from benchmarks.runtimes.soak_calls import KINDS, MODEL, ROUTE, Client, once
from benchmarks.runtimes.soak_sockets import ATTACKS, STRANGERS, meet
from benchmarks.runtimes.soak_traffic import Ends, run
from benchmarks.soak import LEFT_OVER, Probe, Soak, moments_table, parser, to_markdown

MOMENT = Moment(0.0, memory_mib=200.0, descriptors=60, threads=11, in_flight=0, probes=50, p50_ms=1.0, p99_ms=5.0)


def run_of(memory_per_s: float, spikes: int = 0) -> list[Moment]:
    moments = [replace(MOMENT, at_s=at, memory_mib=200 + at * memory_per_s) for at in map(float, range(0, 1200, 20))]
    return [replace(each, memory_mib=900.0) if index % 11 < spikes else each for index, each in enumerate(moments)]


def growing(moments: list[Moment]) -> list[str]:
    return [verdict.figure for verdict in judge(moments) if not verdict.is_flat]


def test_a_leak_is_seen_and_spikes_are_none() -> None:
    assert growing(run_of(memory_per_s=0.05)) == ["memory MiB"]
    assert growing(run_of(memory_per_s=0.0, spikes=3)) == []


def test_what_a_server_takes_until_it_is_warm_does_not_count() -> None:
    moments = [replace(MOMENT, at_s=float(at), memory_mib=min(400.0, 100.0 + at)) for at in range(0, 1200, 20)]
    assert growing(moments) == []


def test_a_few_moments_say_nothing() -> None:
    assert judge(run_of(5.0)[:9]) == []


def test_the_slope_is_that_of_most_points() -> None:
    assert slope([(0, 0), (1, 2), (2, 4), (3, 100), (4, 8)]) == 2.0


def test_every_figure_of_the_verdicts_is_one_of_a_moment() -> None:
    assert {verdict.figure for verdict in judge(run_of(0.0))} == set(FIGURES)


def test_a_long_run_is_shown_from_its_beginning_to_its_end() -> None:
    shown = thinned(run_of(0.0), most=5)
    assert [moment.at_s for moment in shown] == [0.0, 300.0, 600.0, 880.0, 1180.0]


def test_what_is_left_after_the_traffic_is_a_fault() -> None:
    soak = Soak(MOMENT, after=replace(MOMENT, in_flight=2, descriptors=60 + LEFT_OVER + 1, threads=11 + LEFT_OVER))
    assert soak.faults == ["2 requests in flight after the traffic", "descriptors after the traffic: 69, before it 60"]


def test_the_report_names_calls_that_ended_wrongly() -> None:
    ends = Ends()
    ends.note("plain", "OK", True)
    ends.note("plain", "UNAVAILABLE", False)
    soak = Soak(MOMENT, run_of(0.0), MOMENT, ends.counts, ends.wrong, ["gone"])
    report = to_markdown("command", describe_machine(), parser().parse_args([]), soak)
    assert "- 1 x plain UNAVAILABLE\n- the probe: gone\n" in report
    assert "| plain | UNAVAILABLE | 1 | no |" in " ".join(report.split())
    assert "| at rest |" in " ".join(moments_table(soak).split())


class Servicer:
    """Answers as the soak's models do."""

    async def model_infer(self, request: pb.ModelInferRequest, context: CallContext) -> pb.ModelInferResponse:
        if request.model_name not in (MODEL, ROUTE):
            raise CallFailed(Code.NOT_FOUND, "no such model")
        if request.inputs[0].shape[1] * 4 != len(request.raw_input_contents[0]):
            raise CallFailed(Code.INVALID_ARGUMENT, "another shape")
        return pb.ModelInferResponse(raw_output_contents=request.raw_input_contents)

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for request in requests:
            yield pb.ModelStreamInferResponse(infer_response=await self.model_infer(request, context))

    async def model_ready(self, request: pb.ModelReadyRequest, context: CallContext) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=True)

    async def watch_route(
        self, request: routes.WatchRouteRequest, context: CallContext
    ) -> AsyncIterator[routes.WatchRouteResponse]:
        yield routes.WatchRouteResponse()
        await asyncio.Event().wait()


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """The native transport in a thread."""
    loop, services = asyncio.new_event_loop(), []
    for name, module in (("GRPCInferenceService", pb), ("RouteService", routes)):
        services.append(Service.of(module.DESCRIPTOR.services_by_name[name], Servicer()))

    async def start() -> tuple[NativeTransport, int]:
        transport = NativeTransport(services, ListenOptions("127.0.0.1", 0))
        return transport, await transport.start()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    transport, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(transport.stop(0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_call_of_each_kind_ends_as_it_should(target: str) -> None:
    with closing(Client(target, random.Random(1))) as client:
        assert {name: end for name in KINDS for end, right in [once(client, name)] if not right} == {}


def test_another_end_than_expected_is_noticed(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "unknown_model", replace(KINDS["unknown_model"], ends=[grpc.StatusCode.INTERNAL]))
    with closing(Client(target, random.Random(1))) as client:
        assert once(client, "unknown_model") == ("NOT_FOUND", False)


def test_mixed_traffic_beside_a_probe(target: str) -> None:
    with Probe(target) as probe:
        ends = run(target, seconds=0.5, clients=2, strangers=1, attackers=0, seed=1)
    assert ends.wrong == {}
    assert any(key.startswith("plain ") for key in ends.counts)
    assert probe.failures == []
    assert len(probe.take()) > 1


def test_strangers_and_attackers_do_not_keep_others_from_being_answered(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_sockets, "PATIENCE_S", 0.3)
    monkeypatch.setattr(soak_sockets, "DAWDLE_S", 0.01)
    peers = {**STRANGERS, **ATTACKS}
    with ThreadPoolExecutor(len(peers)) as pool, Probe(target) as probe:
        ends = dict(
            zip(peers, pool.map(lambda peer: meet(target, peer, random.Random(1)), peers.values()), strict=True)
        )
    assert set(ends.values()) <= {"closed", "done"}
    assert {ends[name] for name in ("continuation_flood", "empty_data_flood", "rapid_reset")} == {"closed"}
    assert probe.failures == []


def test_a_port_that_nobody_listens_at_is_told() -> None:
    assert meet("127.0.0.1:1", STRANGERS["leaves_at_once"], random.Random(1)) == "refused"
