"""Traces of requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from offramp_server.errors import ConfigurationError, DeadlineExceeded, FailedPrecondition, InvalidRequest
from offramp_server.telemetry.tracing import Metadata, Tracer, connect, record_request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, CALLER = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACED: Metadata = [("user-agent", "x"), ("traceparent", f"00-{TRACE:032x}-{CALLER:016x}-01"), ("blob-bin", b"\x00")]
UNTRACED: Metadata = [("traceparent", f"00-{TRACE:032x}-{CALLER:016x}-00")]


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    yield provider
    provider.shutdown()


def by_name(exported: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exported.get_finished_spans()}


def traced(tracer: Tracer, metadata: Metadata, requests: int) -> list[bool]:
    return [tracer.request(metadata, "m") is not None for _ in range(requests)]


def test_a_request_is_one_span_with_its_queue_and_compute_times_below(
    provider: TracerProvider, exported: InMemorySpanExporter
) -> None:
    span = Tracer(provider).request([], "digits", "r-1")
    assert span is not None
    with span:
        record_request("digits", queue_ns=1000, infer_ns=5000)
    spans = by_name(exported)
    parent = spans.pop("infer")
    assert parent.kind is SpanKind.SERVER
    assert parent.attributes == {"rpc.system": "grpc", "offramp.model": "digits", "offramp.request_id": "r-1"}
    assert parent.status.status_code is StatusCode.UNSET
    durations = {name: (child.end_time or 0) - (child.start_time or 0) for name, child in spans.items()}
    assert durations == {"queue": 1000, "compute": 5000}
    assert {child.parent.span_id for child in spans.values() if child.parent} == {parent.context.span_id}
    assert spans["queue"].end_time == spans["compute"].start_time


def test_a_route_shows_each_model_that_it_ran(provider: TracerProvider, exported: InMemorySpanExporter) -> None:
    span = Tracer(provider).request([], "fast")
    assert span is not None
    with span:
        record_request("student", queue_ns=1, infer_ns=1)
        record_request("teacher", queue_ns=1, infer_ns=1)
    computed = [span for span in exported.get_finished_spans() if span.name == "compute"]
    assert [(span.attributes or {})["offramp.model"] for span in computed] == ["student", "teacher"]


async def test_requests_that_run_side_by_side_keep_their_times_apart(
    provider: TracerProvider, exported: InMemorySpanExporter
) -> None:
    both_are_open = asyncio.Barrier(2)

    async def serve(tracer: Tracer, model: str) -> None:
        span = tracer.request([], model)
        assert span is not None
        with span:
            await both_are_open.wait()
            record_request(model, queue_ns=1, infer_ns=1)

    tracer = Tracer(provider)
    await asyncio.gather(serve(tracer, "a"), serve(tracer, "b"))
    finished = exported.get_finished_spans()
    requests = {span.context.span_id: span.attributes for span in finished if span.name == "infer"}
    for child in (span for span in finished if span.name == "compute"):
        assert child.parent is not None
        assert (requests[child.parent.span_id] or {})["offramp.model"] == (child.attributes or {})["offramp.model"]


def test_times_of_a_request_that_is_not_traced_go_nowhere(
    provider: TracerProvider, exported: InMemorySpanExporter
) -> None:
    span = Tracer(provider).request([], "m")
    assert span is not None
    with span:
        pass
    record_request("m", queue_ns=1, infer_ns=1)
    assert by_name(exported).keys() == {"infer"}


def test_a_request_that_fails_is_a_span_that_says_how(provider: TracerProvider, exported: InMemorySpanExporter) -> None:
    span = Tracer(provider).request([], "digits")
    assert span is not None
    with pytest.raises(DeadlineExceeded), span:
        raise DeadlineExceeded("too late")
    found = by_name(exported)["infer"]
    assert (found.status.status_code, found.status.description) == (StatusCode.ERROR, "too late")
    assert (found.attributes or {})["error.type"] == "DeadlineExceeded"


def test_what_a_client_writes_is_cut_before_it_becomes_an_attribute(
    provider: TracerProvider, exported: InMemorySpanExporter
) -> None:
    span = Tracer(provider).request([], "m", "r" * 10**6)
    assert span is not None
    with span:
        pass
    assert len(str((by_name(exported)["infer"].attributes or {})["offramp.request_id"])) < 300


def test_the_span_continues_the_trace_of_the_caller(provider: TracerProvider, exported: InMemorySpanExporter) -> None:
    span = Tracer(provider).request(TRACED, "digits")
    assert span is not None
    with span:
        pass
    found = by_name(exported)["infer"]
    assert found.context.trace_id == TRACE
    assert found.parent is not None
    assert found.parent.span_id == CALLER


def test_one_request_in_n_is_traced(provider: TracerProvider) -> None:
    assert traced(Tracer(provider, rate=3), [], 7) == [True, False, False, True, False, False, True]


def test_a_request_whose_caller_is_traced_is_traced_whatever_the_rate(provider: TracerProvider) -> None:
    tracer = Tracer(provider, rate=1000)
    assert traced(tracer, [], 2) == [True, False]
    assert traced(tracer, TRACED, 3) == [True, True, True]


def test_a_request_whose_caller_decided_against_it_is_not_traced(provider: TracerProvider) -> None:
    assert traced(Tracer(provider), UNTRACED, 3) == [False, False, False]


@pytest.mark.parametrize("value", ["", "garbage", f"00-{0:032x}-{CALLER:016x}-01", "00-" + "f" * 10_000, b"\xff"])
def test_a_traceparent_that_cannot_be_read_counts_as_none(
    provider: TracerProvider, exported: InMemorySpanExporter, value: str | bytes
) -> None:
    span = Tracer(provider).request([("traceparent", value)], "m")
    assert span is not None
    with span:
        pass
    assert by_name(exported)["infer"].parent is None


def test_tracing_is_switched_and_thinned_out_while_the_server_runs(provider: TracerProvider) -> None:
    tracer = Tracer(provider, enabled=False)
    assert traced(tracer, TRACED, 1) == [False]
    tracer.configure(enabled=True, rate=2)
    assert (tracer.enabled, tracer.rate) == (True, 2)
    assert traced(tracer, [], 4) == [True, False, True, False]
    tracer.configure(enabled=False)
    assert (tracer.enabled, tracer.rate) == (False, 2)
    assert traced(tracer, [], 2) == [False, False]


def test_with_rate_zero_only_those_are_traced_whose_callers_are(provider: TracerProvider) -> None:
    tracer = Tracer(provider, rate=0)
    assert traced(tracer, [], 3) == [False, False, False]
    assert traced(tracer, TRACED, 1) == [True]


@pytest.mark.parametrize(("ratio", "rate"), [(1.0, 1), (0.1, 10), (0.001, 1000), (0.0, 0)])
def test_a_share_of_the_requests_is_one_in_so_many(ratio: float, rate: int) -> None:
    tracer = connect("http://127.0.0.1:4317", sample_ratio=ratio)
    assert (tracer.enabled, tracer.rate) == (True, rate)
    tracer.close()


def test_a_negative_rate_is_refused_and_changes_nothing(provider: TracerProvider) -> None:
    tracer = Tracer(provider, enabled=False)
    with pytest.raises(InvalidRequest, match="expected N"):
        tracer.configure(enabled=True, rate=-1)
    assert (tracer.enabled, tracer.rate) == (False, 1)


def test_a_server_without_a_collector_says_so_when_tracing_is_switched_on() -> None:
    tracer = connect("")
    assert tracer.request(TRACED, "m") is None
    with pytest.raises(FailedPrecondition, match=r"set telemetry\.otlp_endpoint"):
        tracer.configure(enabled=True)
    tracer.configure(enabled=False, rate=7)
    tracer.close()


def test_opentelemetry_is_not_even_imported_when_tracing_is_off() -> None:
    program = (
        "import sys; from offramp_server.telemetry.tracing import connect, record_request; "
        "connect('').request([], 'm'); "
        "record_request('m', 1, 1); assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_endpoint_without_the_extra_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r'pip install "offramp\[otel\]"'):
        connect("http://127.0.0.1:4317")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "ftp://x", "http://", "collector"])
def test_an_endpoint_that_is_no_address_is_an_error_that_shows_one(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="expected http://HOST:PORT"):
        connect(endpoint)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[str]]]:
    """An OTLP collector on a free port, and the names of the spans that it has got."""
    names: list[str] = []

    def export(request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        names.extend(s.name for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
        return ExportTraceServiceResponse()

    method = grpc.unary_unary_rpc_method_handler(
        export, ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", names
    server.stop(None).wait()


def test_spans_reach_a_collector_over_otlp(collector: tuple[str, list[str]]) -> None:
    endpoint, names = collector
    tracer = connect(endpoint)
    span = tracer.request([], "m")
    assert span is not None
    with span:
        record_request("m", queue_ns=1, infer_ns=1)
    tracer.close()
    assert sorted(names) == ["compute", "infer", "queue"]
