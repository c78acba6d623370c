"""Optional traces of requests through OpenTelemetry, which is imported only if an endpoint is configured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from offramp_server.errors import ConfigurationError, FailedPrecondition, InvalidRequest
from offramp_server.telemetry.logs import shown

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# Seconds for one export, after which its spans are lost.
EXPORT_SECONDS = 5.0

Metadata = Iterable[tuple[str, str | bytes]]


# The span of the request that the running task serves.
_current: ContextVar[RequestSpan | None] = ContextVar("offramp_request_span", default=None)


def connect(endpoint: str, sample_ratio: float = 1.0) -> Tracer:
    """A tracer that exports over OTLP/gRPC to `endpoint`, e.g. http://127.0.0.1:4317; "": one that cannot trace.

    `sample_ratio` is the share of requests that are traced, rounded to one in a whole number.
    Raises ConfigurationError for an endpoint that is no address, or if OpenTelemetry is not installed.
    """
    if not endpoint:
        return Tracer(None, enabled=False)
    return Tracer(_exporting_provider(endpoint), rate=round(1 / sample_ratio) if sample_ratio else 0)


def record_request(model: str, queue_ns: int, infer_ns: int) -> None:
    """Add where the time went to the span of the present request, if it is traced: to be called when a model has
    answered. A route may do so several times."""
    span = _current.get()
    if span is not None:
        span.computed(model, queue_ns, infer_ns)


class Tracer:
    """Decides which requests are traced, and starts their spans. May be changed while the server runs.

    One request in `rate` is traced, and every one whose `traceparent` says that its caller is traced; one whose
    caller has decided against it is not (W3C Trace Context, 2021).
    """

    def __init__(self, provider: TracerProvider | None, enabled: bool = True, rate: int = 1) -> None:
        self._provider = provider
        self._enabled = False
        self._rate = 1
        self._seen = 0
        self.configure(enabled=enabled, rate=rate)

    @property
    def enabled(self) -> bool:
        """Triton's level: TIMESTAMPS if true, OFF if false."""
        return self._enabled

    @property
    def rate(self) -> int:
        """One request in this many is traced; 0: only those whose callers want it."""
        return self._rate

    def configure(self, *, enabled: bool | None = None, rate: int | None = None) -> None:
        """Takes effect at once; None leaves a setting as it is.

        Raises InvalidRequest for a value that is none, FailedPrecondition if this server cannot trace.
        """
        if rate is not None and rate < 0:
            raise InvalidRequest(f"trace rate {rate}: expected N for one request in N, or 0 for callers' choices only")
        if enabled and self._provider is None:
            raise FailedPrecondition(
                "this server has nowhere to send traces: set telemetry.otlp_endpoint and start it again"
            )
        self._enabled = self._enabled if enabled is None else enabled
        self._rate = self._rate if rate is None else rate

    def request(self, metadata: Metadata, name: str, request_id: str = "") -> RequestSpan | None:
        """The span of a request that has just arrived for that model or route; None if this one is not traced."""
        if not self._enabled or self._provider is None:
            return None
        parent = _parent(metadata)
        if not self._chosen(parent):
            return None
        return RequestSpan(self._provider, parent, name, request_id)

    def _chosen(self, parent: Context | None) -> bool:
        from opentelemetry import trace

        if parent is not None:
            return trace.get_current_span(parent).get_span_context().trace_flags.sampled
        self._seen += 1
        return self._rate > 0 and (self._seen - 1) % self._rate == 0

    def close(self) -> None:
        """Send what is left. It may wait some seconds for the collector, so call it off the event loop."""
        if self._provider is not None:
            self._provider.shutdown()


class RequestSpan:
    """A context manager around one request; an exception that passes through marks the span as failed."""

    def __init__(self, provider: TracerProvider, parent: Context | None, name: str, request_id: str) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        attributes = {"rpc.system": "grpc", "offramp.model": shown(name), "offramp.request_id": shown(request_id)}
        self._tracer = provider.get_tracer("offramp")
        self._span: Span = self._tracer.start_span(
            "infer", Context() if parent is None else parent, SpanKind.SERVER, attributes
        )

    def computed(self, model: str, queue_ns: int, infer_ns: int) -> None:
        """Add a child span for the queue and one for the computation, which has ended just now."""
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(self._span)
        start = time.time_ns() - queue_ns - infer_ns
        for name, duration in (("queue", queue_ns), ("compute", infer_ns)):
            child = self._tracer.start_span(name, context, attributes={"offramp.model": model}, start_time=start)
            start += duration
            child.end(start)

    def __enter__(self) -> RequestSpan:
        self._outer = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from opentelemetry.trace import Status, StatusCode

        _current.reset(self._outer)
        if kind is not None:
            self._span.set_attribute("error.type", kind.__name__)
            self._span.set_status(Status(StatusCode.ERROR, shown(str(error))))
        self._span.end()


def _parent(metadata: Metadata) -> Context | None:
    """What the caller's traceparent and tracestate say; None if there is none, or none that can be read."""
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in metadata if isinstance(value, str) and key in ("traceparent", "tracestate")}
    if "traceparent" not in carrier:
        return None
    context = TraceContextTextMapPropagator().extract(carrier, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def _exporting_provider(endpoint: str) -> TracerProvider:
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigurationError(f'tracing endpoint "{endpoint}": expected http://HOST:PORT or https://HOST:PORT')
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError as error:
        raise ConfigurationError(
            f'tracing to "{endpoint}" needs the extra "otel", which is not installed: pip install "offramp[otel]"'
        ) from error
    # The tracer has chosen already when a span starts.
    resource = Resource.create({"service.name": "offramp"})
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint, insecure=address.scheme == "http", timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
