"""Spans by OpenTelemetry, sent by OTLP over HTTP from a thread that no request waits for.

What a collector that is away or hangs does not take is dropped, once `QUEUE` spans wait for it, and what a
process has not sent when it ends is lost. The SDK's own variables hold for the rest:
OTEL_EXPORTER_OTLP_HEADERS (a collector's credentials), OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES,
OTEL_SERVICE_NAME.
"""

from __future__ import annotations

import os
import socket

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from raylla import __version__
from raylla.serving.tracing.spans import Carrier, Facts, Span

QUEUE = 2048
"""Spans that wait to be sent, at most; the oldest go first."""
SEND_SECONDS = 5.0
"""Longest time that a batch is tried to be sent."""
EVERY_SECONDS = 1.0
"""Between two batches."""
_CONTEXT = TraceContextTextMapPropagator()


class RecordedSpan(Span):
    """A span of OpenTelemetry's."""

    def __init__(self, told: OtelSpan) -> None:
        self._told = told
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, set_span_in_context(told))
        self.trace = carrier

    def note(self, facts: Facts) -> None:
        """See `Span`."""
        self._told.set_attributes(dict(facts))

    def rename(self, name: str) -> None:
        """See `Span`."""
        self._told.update_name(name)

    def end(self, error: str | None = None) -> None:
        """See `Span`; of an error its type alone, for what it says may quote the request."""
        if error is not None:
            self._told.set_attribute("error.type", error)
            self._told.set_status(Status(StatusCode.ERROR))
        self._told.end()


class OtelTracer:
    """Hands spans to ``processor``."""

    def __init__(self, processor: SpanProcessor) -> None:
        ours = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "raylla"),
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        # An end that waits for a collector would hold up the replica's.
        provider = TracerProvider(resource=Resource.create(ours), shutdown_on_exit=False)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("raylla", __version__)

    def start(self, name: str, trace: Carrier, serves: bool) -> RecordedSpan:
        """See `Tracer`."""
        kind = SpanKind.SERVER if serves else SpanKind.INTERNAL
        return RecordedSpan(self._tracer.start_span(name, _CONTEXT.extract(trace), kind))


def sending(url: str) -> OtelTracer:
    """A tracer whose spans go to the collector at ``url``, as /v1/traces below it."""
    exporter = OTLPSpanExporter(f"{url.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)
    return OtelTracer(
        BatchSpanProcessor(exporter, max_queue_size=QUEUE, schedule_delay_millis=1000 * EVERY_SECONDS)
    )
