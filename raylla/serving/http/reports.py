"""What an operator sees of the endpoint: a log line per request with its id, and Prometheus metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from raylla.errors import BusyError
from raylla.serving.auction.exchange import Answered, Asked

log = logging.getLogger("raylla.serving")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Reports:
    """The metrics of one ingress replica, and its log of requests."""

    def __init__(self, revenue_today: Callable[[], int], ongoing: Callable[[], int]) -> None:
        """``revenue_today`` is asked at each scrape for what the ledger has earned today (micros)."""
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"raylla_{name}", what, labels, registry=self._registry)

        self._requests = counter("requests", "requests by how they ended", "outcome")
        self._auctions = counter("auctions", "auctions by weight version", "weight_version", "canary")
        self._tokens = counter("answer_tokens", "tokens generated")
        self._impressions = counter("impressions", "ads placed")
        self._violations = counter("violations", "attempted placements that were broken, by type", "type")
        self._expected = counter("expected_revenue_micros", "bid x pCTR of the ads placed, micros")
        self._clicks = counter("clicks", "clicks by what became of them", "outcome")
        self._task_failures = counter("task_failures", "failures of background tasks", "task")
        self._latency = Histogram(
            "raylla_latency_seconds", "time by part", ["part"], buckets=_BUCKETS, registry=self._registry
        )
        Gauge(
            "raylla_revenue_today_micros",
            "earned today (UTC) by the ledger, micros",
            registry=self._registry,
        ).set_function(revenue_today)
        self._task_age = Gauge(
            "raylla_task_age_seconds",
            "since a background task was done",
            ["task"],
            registry=self._registry,
        )
        Gauge("raylla_ongoing", "requests in progress", registry=self._registry).set_function(ongoing)

    def task_failed(self, name: str) -> None:
        """Count a failure of a background task."""
        self._task_failures.labels(name).inc()

    def watch(self, name: str, age: Callable[[], float]) -> None:
        """Tell at each scrape how long ago a background task was done, in seconds."""
        self._task_failures.labels(name)
        self._task_age.labels(name).set_function(age)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def clicked(self, outcome: str) -> None:
        """Count a click."""
        self._clicks.labels(str(outcome)).inc()

    def answered(self, asked: Asked, end: Answered) -> None:
        """Count and log an answer; an auction is in the store already."""
        self._requests.labels("answered").inc()
        self._tokens.inc(end.answer_tokens)
        for part, milliseconds in end.latency_ms.items():
            self._latency.labels(part).observe(milliseconds / 1000)
        line: dict[str, Any] = {
            "request_id": asked.request_id,
            "weight_version": end.weight_version,
            "prompt_tokens": end.prompt_tokens,
            "answer_tokens": end.answer_tokens,
            "latency_ms": end.latency_ms,
        }
        auction = end.auction
        if auction is None:
            log.info("answer without ads", extra=line)
            return
        self._auctions.labels(end.weight_version, str(auction.canary).lower()).inc()
        self._impressions.inc(len(auction.impressions))
        if not auction.test:
            self._expected.inc(
                sum(impression.bid_micros * impression.pctr for impression in auction.impressions)
            )
        for kind, count in auction.violations.items():
            self._violations.labels(kind).inc(count)
        line |= {
            "auction_id": auction.id,
            "pctr_version": auction.pctr_version,
            "canary": auction.canary,
            "test": auction.test,
            "ads": [impression.ad_id for impression in auction.impressions],
            "violations": dict(auction.violations),
        }
        log.info("auction", extra=line)

    def failed(self, asked: Asked, error: Exception, seconds: float) -> None:
        """Count and log a request that got an error."""
        self._requests.labels("overloaded" if isinstance(error, BusyError) else "failed").inc()
        log.warning(
            "request failed: %s",
            error,
            extra={"request_id": asked.request_id, "seconds": round(seconds, 3)},
        )

    def dropped(self, asked: Asked, seconds: float) -> None:
        """Count and log a request whose client has gone."""
        self._requests.labels("client_gone").inc()
        log.info("client gone", extra={"request_id": asked.request_id, "seconds": round(seconds, 3)})
