"""Asking a scripted endpoint, and what it has logged."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from starlette.testclient import TestClient

from raylla.auction import markup
from raylla.serving.money.records import Listing, Served
from raylla.serving.store import Store
from tests.unit.serving.scripted import HEADERS, Endpoint


def ask(one: Endpoint, query: str = "which cup?", **extras: Any) -> Any:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": query}], "raylla": extras}
    return client(one).post("/v1/chat/completions", json=body, headers=HEADERS)


def client(one: Endpoint) -> TestClient:
    return TestClient(one.app, follow_redirects=False)


def events(one: Endpoint, **body: Any) -> list[Any]:
    sent = {"messages": [{"role": "user", "content": "which cup?"}], "stream": True} | body
    answer = client(one).post("/v1/chat/completions", json=sent, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]" or "error" in json.loads(lines[-1])
    return [json.loads(line) for line in lines if line != "[DONE]"]


def logged(store: Store) -> list[Served]:
    now = dt.datetime.now(dt.UTC)
    return list(store.auctions(now - dt.timedelta(hours=1), now + dt.timedelta(hours=1), None))


def placing(*listings: Listing) -> str:
    return f"Try {' or '.join(markup(one.ad) for one in listings)} for tea."
