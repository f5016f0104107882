"""A collector of traces on loopback: takes OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp


@dataclass(frozen=True)
class Told:
    """A span as it came: ids in hex, ``parent`` "" where it has none; ``process`` tells senders apart."""

    name: str
    trace: str
    id: str
    parent: str
    process: str
    facts: dict[str, Any]


class Collector:
    """Answers 200 once ``gate`` is open, and ``status`` in its place where that is another."""

    def __init__(self) -> None:
        self.spans: list[Told] = []
        self.calls = 0
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        self.headers: dict[str, str] = {}
        self._news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._take(self.path, dict(self.headers), body)
                collector.gate.wait(60)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def until(self, *names: str, trace: str = "") -> list[Told]:
        """The spans of ``trace``, or of all, once there are some of all these names."""

        def found() -> list[Told]:
            return [one for one in self.spans if trace in ("", one.trace)]

        with self._news:
            self._news.wait_for(lambda: {one.name for one in found()} >= set(names), 60)
            assert set(names) - {one.name for one in found()} == set()
            return found()

    def called(self) -> None:
        """Wait until somebody has sent something."""
        with self._news:
            assert self._news.wait_for(lambda: self.calls > 0, 60)

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        sent = otlp.ExportTraceServiceRequest.FromString(body)
        with self._news:
            self.calls += 1
            self.headers = headers
            for resource in sent.resource_spans:
                about = {one.key: one.value.string_value for one in resource.resource.attributes}
                assert about["service.name"] == "raylla"
                for scope in resource.scope_spans:
                    for one in scope.spans:
                        facts = {fact.key: _value(fact.value) for fact in one.attributes}
                        ids = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
                        self.spans.append(Told(one.name, *ids, about["service.instance.id"], facts))
            self._news.notify_all()


def _value(given: Any) -> Any:
    kind = given.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in given.array_value.values]
    return getattr(given, kind)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.gate.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join()
