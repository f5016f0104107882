"""Traces: an auction's spans and how they hang together, what they say, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from raylla import config
from raylla.config import Config, Sampling
from raylla.errors import ConfigError
from raylla.serving.deploy.app import manifest
from raylla.serving.deploy.versions import Target
from raylla.serving.engine.predictor import Predictor
from raylla.serving.engine.remote import RemoteOracle, RemoteWriter
from raylla.serving.money.records import Listing
from raylla.serving.store import Store
from raylla.serving.tracing import begin_traces, check_tracing, spans, trace_with, traced
from raylla.serving.tracing.otel import OtelTracer
from tests.unit.serving.auctions import ask, client, placing
from tests.unit.serving.collector import collecting
from tests.unit.serving.market import ADMIN_KEY, Market
from tests.unit.serving.scripted import HEADERS, Script, endpoint
from tests.unit.serving.test_engine import run

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A client's traceparent: trace, span, sampled."""
PARTS = ["candidates", "prompt", "generation", "repair", "pctr", "record"]


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    """Where the spans of this process are."""
    kept = InMemorySpanExporter()
    trace_with(OtelTracer(SimpleSpanProcessor(kept)))
    yield kept
    trace_with(None)


@pytest.fixture
def silent() -> Iterator[None]:
    """No tracer is left behind."""
    yield
    trace_with(None)


def tree(found: tuple[ReadableSpan, ...]) -> dict[str, str | None]:
    """Name -> name of the parent; a parent that is not among ``found`` by its id in hex."""
    names = {one.context.span_id: one.name for one in found if one.context}
    return {
        one.name: names.get(one.parent.span_id, f"{one.parent.span_id:016x}") if one.parent else None
        for one in found
    }


def facts(found: tuple[ReadableSpan, ...], name: str) -> dict[str, Any]:
    (one,) = (span for span in found if span.name == name)
    return dict(one.attributes or {})


def test_an_auction_is_one_trace_of_its_parts_below_the_client_s(
    store: Store, cup: Listing, memory: InMemorySpanExporter
) -> None:
    one = endpoint(store, placing(cup))
    body = {"messages": [{"role": "user", "content": "which cup?"}]}
    answer = (
        client(one)
        .post("/v1/chat/completions", json=body, headers=HEADERS | {"traceparent": CLIENT})
        .json()
    )
    found = memory.get_finished_spans()
    assert tree(found) == {
        "POST /v1/chat/completions": "b7ad6b7169203331",
        "auction": "POST /v1/chat/completions",
        **dict.fromkeys(PARTS, "auction"),
        "eligibility": "candidates",
        "retrieval": "candidates",
    }
    assert {f"{span.context.trace_id:032x}" for span in found if span.context} == {CLIENT[3:35]}
    assert [span.name for span in found if span.name in PARTS] == PARTS
    assert next(span.kind for span in found if span.name.startswith("POST")) is SpanKind.SERVER
    told = facts(found, "auction")
    assert told["raylla.auction.id"] == answer["raylla"]["auction_id"]
    assert told["raylla.weight_version"] == "v1"
    assert (told["raylla.auction.candidates"], told["raylla.auction.placed"]) == (1, (cup.ad.id,))
    usage = answer["usage"]
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert facts(found, "POST /v1/chat/completions")["http.response.status_code"] == 200


def test_a_stream_ends_its_spans_with_its_last_event(
    store: Store, cup: Listing, memory: InMemorySpanExporter
) -> None:
    body = {"input": "which cup?", "stream": True}
    answer = client(endpoint(store, placing(cup))).post("/v1/responses", json=body, headers=HEADERS)
    assert answer.status_code == 200
    found = memory.get_finished_spans()
    assert tree(found)["POST /v1/responses"] is None
    assert set(tree(found)) == {"POST /v1/responses", "auction", *PARTS, "eligibility", "retrieval"}


def test_spans_hold_no_question_profile_ad_text_key_or_bid(
    store: Store, cup: Listing, market: Market, memory: InMemorySpanExporter
) -> None:
    market.listing(market.seat("Vara"), bid=77, title="Vara Steel Mug")
    profile = {"id": "u-77", "basics": "34 nurse Oslo", "interests": ["sailing"]}
    assert ask(endpoint(store, placing(cup)), "which mug for soup?", profile=profile).status_code == 200
    said = " ".join(span.to_json() for span in memory.get_finished_spans())
    for secret in (
        "soup",
        "nurse",
        "sailing",
        "u-77",
        "Lumo",
        "Vara",
        ADMIN_KEY,
        "640000",
        "770000",
        "64.0",
    ):
        assert secret not in said
    assert cup.ad.id in said


def test_what_fails_says_its_kind_and_not_its_words(
    store: Store, cup: Listing, memory: InMemorySpanExporter
) -> None:
    assert ask(endpoint(store, writer=Script(placing(cup), fail=2))).status_code == 503
    found = {span.name: span for span in memory.get_finished_spans()}
    for name in ("auction", "generation"):
        assert found[name].status.status_code is StatusCode.ERROR
        assert (found[name].attributes or {})["error.type"] == "EndpointError"
    assert "lost" not in " ".join(span.to_json() for span in found.values())
    assert "repair" not in found
    assert (found["POST /v1/chat/completions"].attributes or {})["http.response.status_code"] == 503


def test_requests_of_no_interest_and_an_unsampled_client_leave_no_spans(
    store: Store, memory: InMemorySpanExporter
) -> None:
    one = client(endpoint(store))
    assert one.get("/healthz").status_code == 200
    assert one.get("/v1/models", headers={"traceparent": CLIENT[:-2] + "00"}).status_code == 200
    assert memory.get_finished_spans() == ()
    one.get("/v1/clicks/a-token-that-is-worth-money")
    assert [span.name for span in memory.get_finished_spans()] == ["GET /v1/clicks/{token}"]
    assert "a-token-that" not in memory.get_finished_spans()[0].to_json()


def test_engine_and_predictor_hang_below_what_asked_them(
    tmp_path: Path, memory: InMemorySpanExporter
) -> None:
    async def body(engine: Any, live: Any) -> None:
        async for _ in engine.generate([3], Sampling(max_tokens=5), True, {"traceparent": CLIENT}):
            pass

    run(tmp_path, body)

    async def predict() -> None:
        predictor = Predictor(Config())
        await predictor.encode(["which cup?"], {"traceparent": CLIENT})
        await predictor.encode(["nobody asked"])

    asyncio.run(predict())
    found = memory.get_finished_spans()
    assert tree(found) == {"engine": "b7ad6b7169203331", "predictor.encode": "b7ad6b7169203331"}
    assert facts(found, "engine") == {"raylla.weight_version": "v0", "gen_ai.usage.output_tokens": 3}


class Handle:
    """A handle of Serve's that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Handle:
        return self

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)

        async def found() -> Any:
            return "found"

        return found()


def test_a_trace_goes_with_the_call_of_another_actor() -> None:
    handle, trace = Handle(), {"traceparent": CLIENT}
    asyncio.run(RemoteOracle(handle).encode(["a"], trace))
    asyncio.run(RemoteOracle(handle).rates([], trace))
    assert [one[-1] for one in handle.asked] == [trace, trace]
    assert RemoteWriter(handle).generate([1], Sampling(), True, trace)


@pytest.mark.usefixtures("silent")
def test_a_collector_gets_the_trace_by_otlp_over_http(
    store: Store, cup: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shop")
    with collecting() as collector:
        begin_traces(collector.url)
        assert ask(endpoint(store, placing(cup))).status_code == 200
        found = {one.name: one for one in collector.until("POST /v1/chat/completions")}
    assert {one.trace for one in found.values()} == {found["auction"].trace}
    assert found["record"].parent == found["auction"].id
    assert found["auction"].facts["raylla.auction.placed"] == [cup.ad.id]
    assert collector.headers["x-tenant"] == "shop"


@pytest.mark.usefixtures("silent")
def test_a_collector_that_hangs_refuses_or_is_away_costs_no_request(store: Store, cup: Listing) -> None:
    one = endpoint(store, placing(cup))
    with collecting() as collector:
        collector.gate.clear()
        begin_traces(collector.url)
        assert ask(one).status_code == 200
        collector.called()
        assert [ask(one).status_code for _ in range(3)] == [200] * 3
        assert not collector.gate.is_set(), "nobody has been answered yet"
        collector.status = 500
        collector.gate.set()
        assert ask(one).status_code == 200
    begin_traces(collector.url)  # nobody listens there any more
    assert ask(one).status_code == 200


def test_without_traces_nothing_of_opentelemetry_is_loaded() -> None:
    code = "import sys, raylla.serving.auction.exchange, raylla.serving.tracing as t"
    code += (
        "; t.begin_traces(None); print([m for m in sys.modules if m.startswith('opentelemetry.sdk.trace')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert traced("auction", {"traceparent": CLIENT}, serves=True).trace == {}


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "find_spec", lambda name: None)
    check_tracing(None)
    with pytest.raises(ConfigError, match=r"serving\.traces=http://otel:4318: .*'raylla\[otel\]'"):
        begin_traces("http://otel:4318")


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        *(
            (url, "such as http://localhost:4318, where a collector takes")
            for url in ("otel:4318", "http://")
        ),
        *((f"http://{url}", "port and path alone") for url in ("u:p@otel:4318", "otel:4318/?a=b")),
    ],
)
def test_an_unusable_collector_is_refused(url: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=rf"serving\.traces.*{way_out}"):
        config.changed(Config(), None, [f"serving.traces={url}"])


def test_every_replica_is_told_of_the_collector() -> None:
    chosen = config.changed(Config(), None, ["serving.traces=http://otel:4318"])
    made = manifest(chosen, Target("runs/pocket", "v1"))
    assert made["applications"][0]["args"]["serving"]["traces"] == "http://otel:4318"
