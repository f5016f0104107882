"""Parameters as OpenAI has them: honoured, taken at one value, or refused by name; models and limits."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from raylla.config import Sampling
from raylla.engines.protocol import Wish
from raylla.errors import RequestError
from raylla.serving.http.openai.bodies import ChatRequest, Extras, User
from raylla.serving.http.openai.parameters import NO_EFFECT, ONLY, OWNED, sampling
from raylla.serving.http.openai.rates import Rates
from raylla.serving.http.openai.responsebodies import ResponseRequest
from raylla.serving.http.web import HttpError
from raylla.serving.store import Store
from tests.unit.serving.auctions import client, events, logged, placing
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market
from tests.unit.serving.scripted import HEADERS, Endpoint, Script, endpoint

ASKED = [{"role": "user", "content": "which cup?"}]


def ask(one: Endpoint, **body: Any) -> Any:
    return client(one).post("/v1/chat/completions", json={"messages": ASKED} | body, headers=HEADERS)


def official(one: Endpoint) -> openai.OpenAI:
    """The official client, over this process' endpoint."""
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key=ADMIN_KEY, http_client=TestClient(one.app), max_retries=0
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("store", True),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("logit_bias", {"5": 1}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("temperature", 0.2),
        ("top_p", 0.5),
        ("frequency_penalty", 1),
        ("presence_penalty", -1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_done_is_refused_by_name(store: Store, name: str, value: Any, stream: bool) -> None:
    one = endpoint(store)
    answer = ask(one, stream=stream, **{name: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "unsupported_parameter",
        name,
    )
    assert one.writer.prompts == []


def test_what_changes_nothing_is_taken(store: Store) -> None:
    one = endpoint(store)
    own = ChatRequest.model_fields.keys()
    body: dict[str, Any] = {name: one[0] for name, one in ONLY.items() if one and name in own} | dict(OWNED)
    body |= {"service_tier": "auto", "prompt_cache_key": "k", "parallel_tool_calls": True}
    body |= {
        "user": "",
        "safety_identifier": "",
        "raylla": None,
        "metadata": {},
        "stop": None,
        "seed": None,
    }
    assert ask(one, **body).status_code == 200
    assert ask(one, **dict.fromkeys(own - {"messages"})).status_code == 200
    nobody = dict.fromkeys(User.model_fields)
    about: dict[str, Any] = dict.fromkeys(Extras.model_fields) | {"profile": nobody}
    assert ask(one, raylla=about).status_code == 200
    assert ask(one, raylla={"colour": None}).status_code == 400
    assert {*NO_EFFECT, *ONLY, *OWNED} <= own | ResponseRequest.model_fields.keys()


def test_the_served_sampling_is_taken_and_another_is_not() -> None:
    served = Sampling(temperature=0.7)
    for value in (0.7, 1, None):
        assert (
            sampling(ChatRequest.model_validate({"messages": ASKED, "temperature": value}), True, served)
            == {}
        )
    with pytest.raises(HttpError, match=r"temperature=0\.7 is served"):
        sampling(ChatRequest.model_validate({"messages": ASKED, "temperature": 0.8}), True, served)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"best_of": 3}, "unknown_parameter", "best_of"),
        ({"stream_options": {"odd": 1}}, "unknown_parameter", "stream_options.odd"),
        ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"metadata": {"k": 1}}, "invalid_value", "metadata.k"),
        ({"raylla": {"profile": {"age": 3}}}, "unknown_parameter", "raylla.profile.age"),
    ],
)
def test_faults_are_named_as_openai_names_them(store: Store, body: Any, code: str, param: str) -> None:
    answer = ask(endpoint(store), **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)


def test_without_ads_the_request_says_how_the_model_samples(store: Store) -> None:
    one = endpoint(store)
    wished = {"temperature": 0.2, "top_p": 0.5, "frequency_penalty": 1, "presence_penalty": -1, "seed": -1}
    assert ask(one, raylla={"ads": False}, **wished).status_code == 200
    given = one.writer.sampling[-1]
    assert isinstance(given, Wish)
    assert (given.temperature, given.top_p, given.seed) == (0.2, 0.5, 2**63 - 1)
    assert (given.frequency_penalty, given.presence_penalty) == (1, -1)


SCHEMA = {"type": "object", "properties": {"tags": {"type": "array"}}}


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}, SCHEMA),
    ],
)
def test_json_can_be_had_without_ads_and_is_left_as_it_is(store: Store, wanted: Any, given: Any) -> None:
    said = '{"tags": ["@a", "@b@", "[Ad-1]"]}'
    one = endpoint(store, said)
    answer = ask(one, raylla={"ads": False}, response_format=wanted)
    assert answer.json()["choices"][0]["message"]["content"] == said
    assert json.loads(one.writer.sampling[-1].json_schema) == given  # type: ignore[attr-defined]
    refused = ask(one, response_format=wanted).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", "response_format")
    assert "raylla.ads=false" in refused["message"]


def test_a_schema_that_is_none_is_the_clients_fault(store: Store) -> None:
    one = endpoint(store)
    for wanted in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": [1]}}):
        error = ask(one, raylla={"ads": False}, response_format=wanted).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "response_format")

    async def refuses(*_: object) -> Any:
        raise RequestError("Grammar error: unknown type")
        yield

    one.traffic.stable.generate = refuses  # type: ignore[method-assign,assignment]
    body = {"raylla": {"ads": False}, "response_format": {"type": "json_object"}}
    answer = ask(one, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert "Grammar error" in answer.json()["error"]["message"]


def test_a_seed_and_fewer_tokens_reach_the_engine(store: Store) -> None:
    one = endpoint(store)
    ask(one, seed=7, max_completion_tokens=9, max_tokens=12)
    given = one.writer.sampling[-1]
    assert isinstance(given, Wish)
    assert (given.seed, given.max_tokens, given.temperature) == (
        7,
        9,
        one.config.ad_llm.sampling.temperature,
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"), [("for", "Try Lumo Floral Cup (Sponsored) "), (["Cup", "x"], "Try ")]
)
def test_an_ad_that_a_stop_cuts_away_is_not_shown_and_costs_nothing(
    market: Market, stop: Any, text: str, stream: bool
) -> None:
    cup = market.listing(market.seat(), bid=64, title="Lumo Floral Cup")
    one = endpoint(market.store, placing(cup), price_rule="expected")
    if stream:
        found = events(one, stop=stop)
        deltas = [event["choices"][0]["delta"] for event in found]
        said = "".join(delta.get("content", "") for delta in deltas)
        finish, detail = found[-1]["choices"][0]["finish_reason"], found[-1]["raylla"]
    else:
        answer = ask(one, stop=stop).json()
        choice, detail = answer["choices"][0], answer["raylla"]
        said, finish = choice["message"]["content"], choice["finish_reason"]
    assert (said, finish) == (text, "stop")
    shown = "Cup" in text
    assert len(detail["ads"]) == shown
    (served,) = logged(market.store)
    assert served.auction.text == text
    assert served.charged_micros == (16 * UNIT if shown else 0)
    assert ("[Ad-" in served.auction.raw_text) == shown
    assert detail["violations"] == {}
    assert one.writer.closed == 1


@pytest.mark.parametrize("size", [2, 4, 6, 8])
def test_a_token_limit_leaves_no_half_of_an_ad(market: Market, size: int) -> None:
    cup = market.listing(market.seat(), title="Lumo Floral Cup")
    whole = placing(cup)
    script = Script(whole[: whole.index("@") + size], finish="length")
    answer = ask(endpoint(market.store, writer=script)).json()
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Try", "length")
    assert choice["message"]["annotations"] == answer["raylla"]["ads"] == []


def test_who_asks_may_be_said_in_three_places(market: Market) -> None:
    market.listing(market.seat())
    one = endpoint(market.store)
    ask(one, safety_identifier="s")
    ask(one, safety_identifier="s", user="u")
    ask(one, safety_identifier="s", user="u", raylla={"profile": {"id": "p"}})
    ask(one, user="")
    assert [served.auction.user_id for served in logged(market.store)] == ["s", "u", "p", None]


def test_the_model_has_the_name_that_is_set(store: Store) -> None:
    one = endpoint(store, model_name="shop/guide-1")
    assert ask(one, model="shop/guide-1").json()["model"] == "shop/guide-1"
    assert ask(one).json()["model"] == "shop/guide-1"
    unknown = ask(one, model="gpt-5")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    with official(one) as api:
        assert [each.id for each in api.models.list()] == ["shop/guide-1"]
        assert api.models.retrieve("shop/guide-1").owned_by == "raylla"
        with pytest.raises(openai.NotFoundError) as raised:
            api.models.retrieve("gpt-5")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_the_official_client_reads_refusals_and_answers(market: Market) -> None:
    cup = market.listing(market.seat(), title="Lumo Floral Cup")
    with official(endpoint(market.store, placing(cup))) as api:
        with pytest.raises(openai.BadRequestError) as raised:
            api.chat.completions.create(model="raylla", messages=ASKED, logprobs=True)  # type: ignore[call-overload]
        assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "logprobs")
        done = api.chat.completions.create(
            model="raylla",
            messages=ASKED,  # type: ignore[arg-type]
            n=1,
            seed=1,
            user="u",
            metadata={"a": "b"},
            store=False,
            stop=["never"],
        )
        assert done.choices[0].message.annotations


def test_a_key_has_its_requests_and_tokens_a_minute(store: Store) -> None:
    one = endpoint(store, requests_per_minute=2, tokens_per_minute=10_000)
    first, second, third = (ask(one) for _ in range(3))
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second, third)] == [
        "1",
        "0",
        "0",
    ]
    used = first.json()["usage"]["total_tokens"]
    assert 10_000 - used <= int(second.headers["x-ratelimit-remaining-tokens"]) < 10_000
    assert third.headers["retry-after"] == "30"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert len(one.writer.prompts) == 2
    with official(one) as api, pytest.raises(openai.RateLimitError):
        api.chat.completions.create(model="raylla", messages=ASKED)  # type: ignore[arg-type]


def test_limits_fill_evenly_and_by_key() -> None:
    now = [0.0]
    rates = Rates(60, 600, lambda: now[0])
    rates.spent("a", 1500)
    rates.admit("b")
    with pytest.raises(HttpError) as raised:
        rates.admit("a")
    assert (raised.value.status, raised.value.kind) == (429, "tokens")
    assert raised.value.headers is not None
    assert raised.value.headers["Retry-After"] == "91"
    now[0] = 91.0
    assert rates.admit("a")["x-ratelimit-remaining-requests"] == "59"
    assert Rates(None, None).admit("a") == {}


def test_a_blocked_domain_is_no_longer_than_a_domain_gets(store: Store, market: Market) -> None:
    market.listing(market.seat())
    made = endpoint(store)
    longest = ".".join(["a" * 63] * 4)[:254]
    assert ask(made, raylla={"badv": [longest]}).status_code == 200
    refused = ask(made, raylla={"badv": ["cup.example", f"{longest}a"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "raylla.badv[1]")
