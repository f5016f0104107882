"""Requests and tokens a minute of each API key, as OpenAI limits them and says it in headers.

A key has a bucket of each, filled evenly. A request takes one from the first when it begins, and what it
has read and written from the second when it ends, which may leave that below zero. Each ingress replica
counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from raylla.serving.http.web import HttpError

MINUTE = 60.0
KEYS = 10_000
"""Keys that are remembered; the one that asked longest ago is forgotten, and its buckets are full again."""
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{part}-{kind}"
    for kind in ("requests", "tokens")
    for part in ("limit", "remaining", "reset")
)
"""OpenAI's headers of an answer to a key with limits."""


@dataclass(slots=True)
class TokenBucket:
    """``level`` of ``size`` at the time ``at`` (seconds)."""

    size: int
    level: float
    at: float

    def fill(self, now: float) -> None:
        """What a minute gives, in proportion."""
        self.level = min(self.size, self.level + (now - self.at) * self.size / MINUTE)
        self.at = now

    def seconds(self, wanted: float) -> float:
        """Until it holds ``wanted``."""
        return max(0.0, (wanted - self.level) * MINUTE / self.size)


class Rates:
    """The limits of all keys; None: there is none."""

    def __init__(
        self, requests: int | None, tokens: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sizes = {
            kind: size for kind, size in (("requests", requests), ("tokens", tokens)) if size is not None
        }
        self._clock = clock
        self._keys: OrderedDict[str, dict[str, TokenBucket]] = OrderedDict()

    def admit(self, key: str) -> dict[str, str]:
        """Let a request of ``key`` in; the headers of its answer.

        Raises:
            HttpError: 429, it is one too many; says when to come back.
        """
        buckets = self._of(key)
        for kind, bucket in buckets.items():
            # Of tokens something must be left; how many an answer takes is known at its end.
            if bucket.level < 1:
                wait = bucket.seconds(1)
                raise HttpError(
                    429,
                    "rate_limit_exceeded",
                    f"this key may use {bucket.size} {kind} a minute, and has; try again in {wait:.1f} s",
                    {**_headers(buckets), "Retry-After": str(max(1, math.ceil(wait)))},
                    kind=kind,
                )
        if "requests" in buckets:
            buckets["requests"].level -= 1
        return _headers(buckets)

    def spent(self, key: str, tokens: int) -> None:
        """An answer of ``key`` has taken so many tokens."""
        if "tokens" in self._sizes:
            self._of(key)["tokens"].level -= tokens

    def _of(self, key: str) -> dict[str, TokenBucket]:
        now = self._clock()
        buckets = self._keys.get(key)
        if buckets is None:
            buckets = self._keys[key] = {
                kind: TokenBucket(size, size, now) for kind, size in self._sizes.items()
            }
            if len(self._keys) > KEYS:
                self._keys.popitem(last=False)
        self._keys.move_to_end(key)
        for bucket in buckets.values():
            bucket.fill(now)
        return buckets


def _headers(buckets: dict[str, TokenBucket]) -> dict[str, str]:
    headers = {}
    for kind, bucket in buckets.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(bucket.size)
        headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level)))
        headers[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds(bucket.size):.3f}s"
    return headers
