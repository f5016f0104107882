"""Spans, whether or not they are sent anywhere: without `serving.traces` they are nothing and cost nothing.

    with traced("predict clicks", asked.trace) as told:      # a child of what `asked` came from
        await oracle.rates(rows, told.trace)               # which may be in another process
        told.note({"raylla.rows": 3})

A span is handed on as a `Carrier`, W3C Trace Context in headers (traceparent, tracestate): the same from a
client's request, between Ray's actors, and inside a process. Spans hold names, counts and ids; never
prompts, questions, profiles, keys or bids.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol

from raylla.errors import ConfigError

Carrier = Mapping[str, str]
NO_TRACE: Carrier = {}
"""Of what belongs to no trace."""
Facts = Mapping[str, str | bool | int | float | list[str]]


class Span:
    """Something that takes time; as it is here, nobody is told of it."""

    trace: Carrier = NO_TRACE
    """What its parts say that they are parts of."""

    def note(self, facts: Facts) -> None:
        """Add attributes."""

    def rename(self, name: str) -> None:
        """Call it otherwise: its name was not known at its start."""

    def end(self, error: str | None = None) -> None:
        """It is over; ``error`` is the type of what it failed by."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Over; where whoever asked has gone, nothing has failed."""
        gone = kind is not None and issubclass(kind, (GeneratorExit, CancelledError))
        self.end(None if kind is None or gone else kind.__name__)


class Tracer(Protocol):
    """Where spans go."""

    def start(self, name: str, trace: Carrier, serves: bool) -> Span:
        """A span that begins here; ``serves``: it answers somebody outside this process."""


_NOBODY = Span()
_tracer: Tracer | None = None


def traced(name: str, trace: Carrier, serves: bool = False) -> Span:
    """A part of ``trace`` that begins here; what ``serves`` begins one of its own where that is none."""
    if _tracer is None or not (trace or serves):
        return _NOBODY
    return _tracer.start(name, trace, serves)


def trace_with(tracer: Tracer | None) -> None:
    """Have this process's spans go to ``tracer``; None: to nobody."""
    global _tracer
    _tracer = tracer


def check_tracing(url: str | None) -> None:
    """Refuse `serving.traces` where what sends traces is not installed.

    Raises:
        ConfigError: it is not, and how to get it.
    """
    if url is not None and not _installed("opentelemetry.exporter.otlp.proto.http"):
        raise ConfigError(
            f"serving.traces={url}: traces need the extra `otel`, which is not installed; "
            "pip install 'raylla[otel]', or leave serving.traces out"
        )


def begin_traces(url: str | None) -> None:
    """Send this process's spans to the collector at ``url``; None: to nobody.

    Raises:
        ConfigError: see `check_tracing`.
    """
    check_tracing(url)
    if url is not None:
        from raylla.serving.tracing.otel import sending

        trace_with(sending(url))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
