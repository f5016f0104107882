"""The Responses API with the official client: whole and streamed, gone on from, read again and deleted."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import openai
import pytest

from raylla.pocket.tokenizer import ASSISTANT, END
from raylla.records import Turn
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Listing
from tests.unit.serving.auctions import client, logged, placing
from tests.unit.serving.market import Market
from tests.unit.serving.scripted import HEADERS, Endpoint, Script, endpoint
from tests.unit.serving.test_parameters import official

ASKED = "which mug keeps tea warm?"
TEXT = "Try Lumo Floral Cup (Sponsored) for tea."


def send(one: Endpoint, headers: Any = HEADERS, **body: Any) -> Any:
    return client(one).post("/v1/responses", json={"input": ASKED} | body, headers=headers)


def test_a_response_has_its_ads_as_citations_that_are_charged(market: Market, cup: Listing) -> None:
    one = endpoint(market.store, placing(cup))
    with official(one) as api:
        done = api.responses.create(model="raylla", input=ASKED, user="u1", metadata={"a": "b"})
    assert (done.status, done.output_text, done.error) == ("completed", TEXT, None)
    message = done.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    (cited,) = part.annotations
    assert cited.type == "url_citation"
    assert TEXT[cited.start_index : cited.end_index] == cited.title == cup.ad.title
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 10
    (served,) = logged(market.store)
    assert done.model_extra is not None
    assert done.model_extra["raylla"]["auction_id"] == served.auction.id
    assert (served.auction.user_id, served.auction.metadata) == ("u1", {"a": "b"})
    click = client(one).get(cited.url.removeprefix("http://testserver"))
    assert click.status_code == 302
    assert len(market.store.charges(served.auction.id)) == 1
    assert audit(market.store).discrepancies == []


def test_a_stream_has_the_events_that_clients_read(market: Market, cup: Listing) -> None:
    with official(endpoint(market.store, placing(cup))) as api:
        found = list(api.responses.create(model="raylla", input=ASKED, stream=True))
        with api.responses.stream(model="raylla", input=ASKED) as stream:
            final = stream.get_final_response()
    assert final.output_text == TEXT
    kinds = list(dict.fromkeys(event.type for event in found))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.annotation.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert "".join(event.delta for event in found if event.type == "response.output_text.delta") == TEXT
    last = found[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == TEXT
    whole = api_get(market, last.response.id)
    assert whole["output"][0]["content"][0]["text"] == TEXT


def api_get(market: Market, id: str) -> Any:
    answer = client(endpoint(market.store)).get(f"/v1/responses/{id}", headers=HEADERS)
    assert answer.status_code == 200
    return answer.json()


def test_a_response_is_gone_on_from(market: Market, cup: Listing) -> None:
    one = endpoint(market.store, placing(cup))
    with official(one) as api:
        first = api.responses.create(model="raylla", input=ASKED, instructions="be brief")
        second = api.responses.create(
            model="raylla",
            input="and a cheaper one?",
            previous_response_id=first.id,
            instructions="be kind",
        )
        third = api.responses.create(model="raylla", input="in blue?", previous_response_id=second.id)
    assert second.previous_response_id == first.id
    said = f"{ASKED}{ASSISTANT}{TEXT}{END}"
    assert "be kind" in one.writer.prompts[1]
    assert "be brief" not in one.writer.prompts[1]
    assert said in one.writer.prompts[1]
    assert [turn.text for turn in logged(market.store)[2].auction.turns] == [
        ASKED,
        TEXT,
        "and a cheaper one?",
        TEXT,
    ]
    assert third.status == "completed"


def test_a_conversation_longer_than_a_body_is_not_gone_on_from(market: Market) -> None:
    one = endpoint(market.store, "ok", largest_body=2000)
    previous, answers = None, []
    for _ in range(8):
        answers.append(send(one, input="tea? " * 60, previous_response_id=previous))
        if answers[-1].status_code != 200:
            break
        previous = answers[-1].json()["id"]
    assert 4 < len(answers) < 8
    fault = answers[-1].json()["error"]
    assert (answers[-1].status_code, fault["code"]) == (400, "context_length_exceeded")
    assert "serving.largest_body" in fault["message"]
    assert fault["param"] == "previous_response_id"


def test_a_response_is_read_again_and_deleted_by_its_key_alone(market: Market, cup: Listing) -> None:
    one = endpoint(market.store, placing(cup))
    now = dt.datetime.now(dt.UTC)
    admin = {"role": "application", "name": "other"}
    key = client(one).post("/v1/keys", json=admin, headers=HEADERS).json()["key"]
    other = {"Authorization": f"Bearer {key}"}
    with official(one) as api:
        done = api.responses.create(model="raylla", input=ASKED)
        assert api.responses.retrieve(done.id).output_text == TEXT
        path = f"/v1/responses/{done.id}"
        assert client(one).get(path, headers=other).status_code == 404
        assert client(one).delete(path, headers=other).status_code == 404
        assert send(one, other, previous_response_id=done.id).status_code == 400
        api.responses.delete(done.id)
        with pytest.raises(openai.NotFoundError):
            api.responses.retrieve(done.id)
        with pytest.raises(openai.BadRequestError) as raised:
            api.responses.create(model="raylla", input="more", previous_response_id=done.id)
    assert (raised.value.code, raised.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    assert len(list(market.store.auctions(now - dt.timedelta(hours=1), now + dt.timedelta(hours=1)))) == 1


def test_what_a_response_was_asked_is_listed_for_its_key(market: Market, cup: Listing) -> None:
    one = endpoint(market.store, placing(cup))
    asked: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": TEXT},
        {"role": "user", "content": "and a cheaper one?"},
    ]
    roles = ["system", "user", "assistant", "user"]
    with official(one) as api:
        first = api.responses.create(model="raylla", input=asked, instructions="be kind")
        second = api.responses.create(model="raylla", input="in blue?", previous_response_id=first.id)
        found: list[Any] = list(api.responses.input_items.list(first.id, order="asc"))
        assert [(item.role, item.content[0].text) for item in found] == [
            (role, each["content"]) for role, each in zip(roles, asked, strict=True)
        ]
        paged = api.responses.input_items.list(first.id, limit=1)
        assert paged.has_next_page()
        assert [item.id for item in paged] == [item.id for item in reversed(found)]
        own: list[Any] = list(api.responses.input_items.list(second.id))
        assert [item.content[0].text for item in own] == ["in blue?"]
        assert list(api.responses.input_items.list(first.id, after=found[0].id)) == []
        with pytest.raises(openai.BadRequestError) as raised:
            api.responses.input_items.list(first.id, after="msg_0")
        assert raised.value.param == "after"
        with pytest.raises(openai.BadRequestError) as raised:
            api.responses.input_items.list(first.id, limit=101)
        assert raised.value.param == "limit"
    body = {"role": "application", "name": "other"}
    key = client(one).post("/v1/keys", json=body, headers=HEADERS).json()["key"]
    path = f"/v1/responses/{first.id}/input_items"
    assert client(one).get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 404


def test_what_is_not_to_be_kept_is_not(market: Market, cup: Listing) -> None:
    one = endpoint(market.store, placing(cup))
    done = send(one, store=False).json()
    assert done["store"] is False
    assert client(one).get(f"/v1/responses/{done['id']}", headers=HEADERS).status_code == 404


def test_items_of_a_conversation_are_turns_or_notes(market: Market, cup: Listing) -> None:
    one = endpoint(market.store, placing(cup))
    first = send(one).json()
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASKED}]},
        *first["output"],
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"role": "user", "content": "and a cheaper one?"},
    ]
    answer = send(one, input=items).json()
    assert answer["raylla"]["notes"] == [
        "1 x function_call passed over, first input[3]",
        "1 x function_call_output passed over, first input[4]",
    ]
    assert logged(market.store)[1].auction.turns == (
        Turn("system", "be brief"),
        Turn("user", ASKED),
        Turn("assistant", TEXT),
    )
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
    refused = send(one, input=[image]).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", "input[0].content[0]")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "web_search"}]),
        ("background", True),
        ("text", {"format": {"type": "json_object"}}),
        ("reasoning", {"effort": "high"}),
        ("include", ["message.output_text.logprobs"]),
        ("conversation", "conv_1"),
        ("temperature", 0.3),
    ],
)
def test_what_is_not_done_is_refused_by_name(market: Market, name: str, value: Any) -> None:
    answer = send(endpoint(market.store), **{name: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", name)


def test_what_changes_nothing_is_taken(market: Market) -> None:
    body = {"tools": [], "tool_choice": "auto", "include": [], "truncation": "auto", "background": False}
    body |= {"text": {"format": {"type": "text"}, "verbosity": None}, "reasoning": {"effort": None}}
    assert send(endpoint(market.store), **body).status_code == 200
    assert send(endpoint(market.store), stop=["x"]).json()["error"]["code"] == "unknown_parameter"


def test_json_can_be_had_without_ads(market: Market) -> None:
    one = endpoint(market.store, '{"a": 1}')
    wanted = {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}}
    done = send(one, text=wanted, raylla={"ads": False}).json()
    assert done["output"][0]["content"][0]["text"] == '{"a": 1}'
    assert done["text"] == wanted
    refused = send(one, text=wanted | {"verbosity": "high"}, raylla={"ads": False}).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", "text")
    assert json.loads(one.writer.sampling[-1].json_schema) == {"type": "object"}  # type: ignore[attr-defined]


def test_an_answer_that_is_cut_or_breaks_off_says_so(market: Market, cup: Listing) -> None:
    cut = endpoint(market.store, writer=Script("Try this", finish="length"))
    answer = send(cut, max_output_tokens=5).json()
    assert (answer["status"], answer["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert cut.writer.sampling[-1].max_tokens == 5
    assert '"response.incomplete"' in send(cut, stream=True).text
    broken = endpoint(market.store, "one two three four five")
    broken.writer.fail = 3
    assert send(broken).status_code == 503
    events = send(broken, stream=True).text.strip().split("\n\n")
    assert json.loads(events[-1].partition("data: ")[2])["code"] == "unavailable"
    with official(broken) as api, pytest.raises(openai.APIError, match="was lost"):
        list(api.responses.create(model="raylla", input=ASKED, stream=True))


def test_limits_hold_for_both_apis_together(market: Market) -> None:
    one = endpoint(market.store, requests_per_minute=1)
    assert send(one).headers["x-ratelimit-remaining-requests"] == "0"
    body = {"messages": [{"role": "user", "content": ASKED}]}
    assert client(one).post("/v1/chat/completions", json=body, headers=HEADERS).status_code == 429
