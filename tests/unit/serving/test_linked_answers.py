"""Answers whose text holds its links: whole and streamed, by request, key and setting, and clicked."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from raylla.auction import markup
from raylla.serving.billing.audit import audit
from raylla.serving.http import web
from raylla.serving.money.records import Listing
from raylla.serving.security.keys import Role
from raylla.serving.store import Store
from tests.unit.serving.market import UNIT, Market
from tests.unit.serving.scripted import HEADERS, Endpoint, endpoint

TITLE = "Lumo *Floral* Cup_1 \\"
ESCAPED = r"Lumo \*Floral\* Cup\_1 \\"
LINK = re.compile(re.escape(f"[{ESCAPED}](") + r"(http://testserver/v1/clicks/[A-Za-z0-9._-]+)\)")
PLAIN = f"Try {TITLE} (Sponsored) for tea."


@pytest.fixture
def cup(market: Market) -> Listing:
    return market.listing(market.seat(), bid=64, title=TITLE)


def serve(store: Store, cup: Listing, **serving: Any) -> Endpoint:
    return endpoint(store, f"Try {markup(cup.ad)} for tea.", **serving)


def ask(
    one: Endpoint, stream: bool, links: str | None, headers: dict[str, str] | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """The chunks of an answer (one, if it is whole) and what its annotations cite."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "which cup?"}], "stream": stream}
    body["raylla"] = {} if links is None else {"links": links}
    client = TestClient(one.app)
    answer = client.post("/v1/chat/completions", json=body, headers=HEADERS | (headers or {}))
    assert answer.status_code == 200, answer.text
    if not stream:
        message = answer.json()["choices"][0]["message"]
        return [message["content"]], [each["url_citation"] for each in message["annotations"]]
    lines = [line[6:] for line in answer.text.split("\n\n") if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines if line != "[DONE]"]
    cited = [each["url_citation"] for delta in deltas for each in delta.get("annotations", ())]
    return [delta["content"] for delta in deltas if delta.get("content")], cited


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("links", ["annotations", "markdown", "both", None])
def test_each_form_holds_its_links_at_the_right_characters(
    store: Store, cup: Listing, links: str | None, stream: bool
) -> None:
    chunks, cited = ask(serve(store, cup), stream, links)
    text, linked = "".join(chunks), links in ("markdown", "both")
    assert len(chunks) > 1 or not stream
    assert len(cited) == (links != "markdown")
    found = LINK.search(text)
    assert (found is not None) == linked
    for each in cited:
        inside = text[each["start_index"] : each["end_index"]]
        assert each["title"] == TITLE
        assert inside == (f"[{ESCAPED}]({each['url']})" if linked else TITLE)
    if found is not None:
        assert LINK.sub("", text) == "Try  (Sponsored) for tea."
        assert [LINK.search(chunk) is not None for chunk in chunks].count(True) == 1
    else:
        assert text == PLAIN
    (served,) = store.auctions(cup_day(), web.now(), None)
    shown = served.auction.impressions[0]
    assert served.auction.text == PLAIN
    assert served.auction.raw_text == f"Try {markup(cup.ad)} for tea."
    assert PLAIN[shown.start : shown.end] == TITLE
    assert shown.seen is not None
    assert served.auction.created <= shown.seen <= web.now()


def cup_day() -> Any:
    return web.now().replace(year=2000)


@pytest.mark.parametrize("rule", ["first_price", "expected", "resampled"])
def test_a_link_in_the_text_is_charged_as_any(store: Store, cup: Listing, rule: str) -> None:
    one = serve(store, cup, price_rule=rule, resample_share=0.5)
    for stream in (False, True, False, True):
        chunks, cited = ask(one, stream, "both")
        found = LINK.search("".join(chunks))
        assert found is not None
        assert found[1] == cited[0]["url"]
        click = TestClient(one.app, follow_redirects=False).get(found[1])
        assert click.status_code == 302
        assert "raylla_click=" in click.headers["location"]
    served = list(store.auctions(cup_day(), web.now()))
    assert [len(each.clicked) for each in served] == [1] * 4
    assert [len(store.charges(each.auction.id)) for each in served] == [1] * 4
    assert audit(store).discrepancies == []


def test_the_request_says_before_the_key_and_the_key_before_the_server(store: Store, cup: Listing) -> None:
    one = serve(store, cup, links="markdown")
    keys: dict[str | None, dict[str, str]] = {None: HEADERS}
    for links in ("annotations", "both"):
        body = {"role": "application", "name": "a", "links": links}
        made = TestClient(one.app).post("/v1/keys", json=body, headers=HEADERS)
        assert made.json()["links"] == links
        keys[links] = {"Authorization": f"Bearer {made.json()['key']}"}
    for key, asked, linked, cited in (
        (None, None, True, 0),
        ("annotations", None, False, 1),
        ("both", None, True, 1),
        ("both", "annotations", False, 1),
        ("annotations", "markdown", True, 0),
    ):
        chunks, found = ask(one, False, asked, keys[key])
        assert (LINK.search(chunks[0]) is not None, len(found)) == (linked, cited)
    wrong = {"role": "application", "name": "a", "links": "html"}
    assert TestClient(one.app).post("/v1/keys", json=wrong, headers=HEADERS).status_code == 422
    _, plain = store.parties.add_key(Role.APPLICATION, None, "b", web.now())
    assert ask(one, False, None, {"Authorization": f"Bearer {plain}"})[1] == []


def test_click_urls_follow_a_trusted_proxy(store: Store, cup: Listing) -> None:
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "ask.example"}
    for networks, base in (((), "http://testserver"), (("10.0.0.0/8",), "https://ask.example")):
        one = serve(store, cup, trusted_proxies=networks)
        client = TestClient(one.app, client=("10.0.0.9", 40_000))
        body = {"messages": [{"role": "user", "content": "which cup?"}]}
        answer = client.post("/v1/chat/completions", json=body, headers=HEADERS | said).json()
        (each,) = answer["choices"][0]["message"]["annotations"]
        assert each["url_citation"]["url"].startswith(f"{base}/v1/clicks/")


def test_pages_of_allowed_origins_may_ask_and_no_others(store: Store, cup: Listing) -> None:
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    app, allowed = "https://app.example", "access-control-allow-origin"
    path = "/v1/chat/completions"
    for origins, origin, given in (
        ((), app, None),
        ((app,), app, app),
        ((app,), "https://evil.example", None),
        (("*",), app, "*"),
    ):
        client = TestClient(serve(store, cup, cors_origins=origins).app)
        before = client.options(path, headers={"Origin": origin} | asks)
        assert before.headers.get(allowed) == given
        assert (before.status_code == 200) == (given is not None)
        refused = client.post(path, json={}, headers={"Origin": origin})
        assert (refused.status_code, refused.headers.get(allowed)) == (401, given)
        assert "access-control-allow-credentials" not in refused.headers
    assert cup.bid_micros == 64 * UNIT
