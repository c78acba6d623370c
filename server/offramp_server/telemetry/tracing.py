"""Optional traces of requests through OpenTelemetry, which is imported only if an endpoint is configured."""

from __future__ import annotations

import time
from collections.abc import Iterable
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


def connect(endpoint: str, enabled: bool = True, rate: int = 1) -> Tracer:
    """A tracer that exports over OTLP/gRPC to `endpoint`, e.g. http://127.0.0.1:4317; "": one that cannot trace.

    Raises ConfigurationError for an endpoint that is no address, or if OpenTelemetry is not installed.
    """
    return Tracer(_exporting_provider(endpoint), enabled, rate) if endpoint else Tracer(None, enabled=False)


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
        """One request in this many is traced; at least 1."""
        return self._rate

    def configure(self, *, enabled: bool | None = None, rate: int | None = None) -> None:
        """Takes effect at once; None leaves a setting as it is.

        Raises InvalidRequest for a value that is none, FailedPrecondition if this server cannot trace.
        """
        if rate is not None and rate < 1:
            raise InvalidRequest(f"trace rate {rate}: expected 1 or more, for one request in that many")
        if enabled and self._provider is None:
            raise FailedPrecondition("this server has nowhere to send traces: start it with a tracing endpoint")
        self._enabled = self._enabled if enabled is None else enabled
        self._rate = self._rate if rate is None else rate

    def request(self, metadata: Metadata, model: str, request_id: str = "") -> RequestSpan | None:
        """The span of a request that has just arrived, to be entered; None if this one is not traced."""
        if not self._enabled or self._provider is None:
            return None
        parent = _parent(metadata)
        if not self._chosen(parent):
            return None
        return RequestSpan(self._provider, parent, model, request_id)

    def _chosen(self, parent: Context | None) -> bool:
        from opentelemetry import trace

        if parent is not None:
            return trace.get_current_span(parent).get_span_context().trace_flags.sampled
        self._seen += 1
        return (self._seen - 1) % self._rate == 0

    def close(self) -> None:
        """Send what is left. It may wait some seconds for the collector, so call it off the event loop."""
        if self._provider is not None:
            self._provider.shutdown()


class RequestSpan:
    """A context manager around one request; an exception that passes through marks the span as failed."""

    def __init__(self, provider: TracerProvider, parent: Context | None, model: str, request_id: str) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        attributes = {
            "rpc.system": "grpc",
            "offramp.model": shown(model),
            "offramp.request_id": shown(request_id),
        }
        self._tracer = provider.get_tracer("offramp")
        self._span: Span = self._tracer.start_span(
            "infer", Context() if parent is None else parent, SpanKind.SERVER, attributes
        )

    def answered(self, version: str, items: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Add where the time went, as child spans that end now. To be called when the outputs have come."""
        from opentelemetry.trace import set_span_in_context

        self._span.set_attribute("offramp.version", version)
        self._span.set_attribute("offramp.items", items)
        context = set_span_in_context(self._span)
        parts = {"queue": queue_ns, "compute_input": input_ns, "compute_infer": infer_ns, "compute_output": output_ns}
        start = time.time_ns() - sum(parts.values())
        for name, duration in parts.items():
            child = self._tracer.start_span(name, context, start_time=start)
            start += duration
            child.end(start)

    def __enter__(self) -> RequestSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from opentelemetry.trace import Status, StatusCode

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
