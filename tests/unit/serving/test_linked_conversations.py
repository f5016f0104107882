"""Links, earlier turns and stops in one answer: whole and streamed, over chat completions and responses."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient

from raylla.auction import markup
from raylla.config import Links
from raylla.serving.auction.links import escaped, link, unlinked
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Listing
from tests.unit.serving.auctions import client, logged
from tests.unit.serving.market import Market
from tests.unit.serving.scripted import HEADERS, Endpoint, endpoint

CUP, BOWL = "Lumo *Floral* Cup_1", "Vada Bowl"
LINKED = re.compile(re.escape(f"[{escaped(CUP)}](") + r"(http://testserver/v1/clicks/[A-Za-z0-9._-]+)\)")
ASKED, NEXT = "which mug keeps tea warm?", "and a cheaper one?"


@dataclass
class Got:
    """An answer as its client has it: the text's pieces and what annotations cite."""

    pieces: list[str]
    cited: list[dict[str, Any]]
    id: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def events(text: str) -> list[dict[str, Any]]:
    lines = [
        line for block in text.split("\n\n") for line in block.split("\n") if line.startswith("data: ")
    ]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def chat(one: Endpoint, stream: bool, links: Links, turns: list[dict[str, str]], **more: Any) -> Got:
    body = {"messages": turns, "stream": stream, "raylla": {"links": links}} | more
    answer = client(one).post("/v1/chat/completions", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    if not stream:
        message = answer.json()["choices"][0]["message"]
        return Got([message["content"]], [each["url_citation"] for each in message["annotations"]])
    deltas = [each["choices"][0]["delta"] for each in events(answer.text)]
    cited = [each["url_citation"] for delta in deltas for each in delta.get("annotations", ())]
    return Got([delta["content"] for delta in deltas if delta.get("content")], cited)


def respond(one: Endpoint, stream: bool, links: Links, asked: str, **more: Any) -> Got:
    body = {"input": asked, "stream": stream, "raylla": {"links": links}} | more
    answer = client(one).post("/v1/responses", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    found = events(answer.text) if stream else []
    whole = found[-1]["response"] if stream else answer.json()
    (part,) = whole["output"][0]["content"]
    pieces = [one["delta"] for one in found if one["type"] == "response.output_text.delta"]
    assert not stream or "".join(pieces) == part["text"]
    return Got(pieces or [part["text"]], part["annotations"], whole["id"])


@pytest.fixture
def ads(market: Market) -> tuple[Listing, Listing]:
    return (
        market.listing(market.seat(), bid=64, title=CUP),
        market.listing(market.seat(), bid=32, title=BOWL),
    )


def serve(market: Market, ads: tuple[Listing, Listing]) -> Endpoint:
    cup, bowl = ads
    return endpoint(market.store, f"Try! {markup(cup.ad)} for tea, or {markup(bowl.ad)} for soup.")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("links", ["annotations", "markdown", "both"])
@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (["Bowl"], ", or "),
        ([" (Sponsored) for soup"], ", or "),
        (["clicks"], f", or {BOWL} (Sponsored) for soup."),
        ([", or"], ""),
    ],
)
def test_a_stop_is_looked_for_in_the_words_and_cuts_every_form(
    market: Market, ads: tuple[Listing, Listing], links: Links, stream: bool, stop: list[str], said: str
) -> None:
    before = f"Try! {link(CUP, 'http://testserver/v1/clicks/k1.abc.def')} (Sponsored)"
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": before}]
    one = serve(market, ads)
    got = chat(one, stream, links, [*turns, {"role": "user", "content": NEXT}], stop=stop)
    assert unlinked(got.text) == f"Try! {CUP} (Sponsored) for tea{said}"
    placed = [CUP] + [BOWL] * (BOWL in said)
    linked = LINKED.search(got.text)
    assert (linked is not None) == (links != "annotations")
    assert [each["title"] for each in got.cited] == (placed if links != "markdown" else [])
    for each in got.cited:
        inside = got.text[each["start_index"] : each["end_index"]]
        assert inside == (each["title"] if links == "annotations" else link(each["title"], each["url"]))
    assert not linked or [LINKED.search(piece) is not None for piece in got.pieces].count(True) == 1
    (served,) = logged(market.store)
    auction = served.auction
    assert auction.text == f"Try! {CUP} (Sponsored) for tea{said}"
    assert [auction.text[each.start : each.end] for each in auction.impressions] == placed
    assert [turn.text for turn in auction.turns] == [ASKED, f"Try! {CUP} (Sponsored)"]
    assert "/v1/clicks/" not in one.writer.prompts[0]
    if linked:
        assert TestClient(one.app, follow_redirects=False).get(linked[1]).status_code == 302
        assert len(market.store.charges(auction.id)) == 1
    assert audit(market.store).discrepancies == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("links", ["annotations", "markdown", "both"])
def test_responses_have_their_links_as_chat_has_and_are_gone_on_from_without(
    market: Market, ads: tuple[Listing, Listing], links: Links, stream: bool
) -> None:
    one = serve(market, ads)
    plain = f"Try! {CUP} (Sponsored) for tea, or {BOWL} (Sponsored) for soup."
    first = respond(one, stream, links, ASKED)
    got = respond(one, stream, links, NEXT, previous_response_id=first.id)
    linked = LINKED.search(got.text)
    assert (linked is not None) == (links != "annotations")
    assert unlinked(got.text) == plain
    assert len(got.cited) == (0 if links == "markdown" else 2)
    for each in got.cited:
        inside = got.text[each["start_index"] : each["end_index"]]
        assert inside == (each["title"] if links == "annotations" else link(each["title"], each["url"]))
    second = logged(market.store)[1].auction
    assert second.text == plain
    assert [turn.text for turn in second.turns] == [ASKED, plain]
    assert "/v1/clicks/" not in one.writer.prompts[1]
    kept = client(one).get(f"/v1/responses/{got.id}", headers=HEADERS).json()
    assert kept["output"][0]["content"][0]["text"] == got.text
    if linked:
        assert TestClient(one.app, follow_redirects=False).get(linked[1]).status_code == 302
        assert len(market.store.charges(second.id)) == 1


def test_responses_stand_by_the_key_and_a_trusted_proxy(
    market: Market, ads: tuple[Listing, Listing]
) -> None:
    cup, _ = ads
    one = endpoint(market.store, f"Try {markup(cup.ad)}.", trusted_proxies=("10.0.0.0/8",))
    body = {"role": "application", "name": "a", "links": "both"}
    key = client(one).post("/v1/keys", json=body, headers=HEADERS).json()["key"]
    said = {
        "Authorization": f"Bearer {key}",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "ask.example",
    }
    near = TestClient(one.app, client=("10.0.0.9", 40_000))
    answer = near.post("/v1/responses", json={"input": ASKED}, headers=said).json()
    (part,) = answer["output"][0]["content"]
    (cited,) = part["annotations"]
    assert cited["url"].startswith("https://ask.example/v1/clicks/")
    assert link(CUP, cited["url"]) in part["text"]
    wrong = near.post("/v1/responses", json={"input": ASKED, "raylla": {"links": "html"}}, headers=said)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "raylla.links")
