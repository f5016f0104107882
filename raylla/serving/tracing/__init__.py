"""Traces of what the endpoint does: spans of a request, over all processes that it passes through."""

from raylla.serving.tracing.spans import (
    NO_TRACE,
    Carrier,
    Facts,
    Span,
    Tracer,
    begin_traces,
    check_tracing,
    trace_with,
    traced,
)

__all__ = [
    "NO_TRACE",
    "Carrier",
    "Facts",
    "Span",
    "Tracer",
    "begin_traces",
    "check_tracing",
    "trace_with",
    "traced",
]
