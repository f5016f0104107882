"""The whole OpenAPI document of the endpoint: fuzzed over ASGI, and complete."""

from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from raylla.auction import markup
from raylla.serving.store import Store
from tests.unit.serving.market import Market
from tests.unit.serving.scripted import HEADERS, endpoint

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]
OPERATIONS = [
    ("/v1/chat/completions", "post"),
    ("/v1/responses", "post"),
    ("/v1/responses/{response_id}", "get"),
    ("/v1/responses/{response_id}", "delete"),
    ("/v1/responses/{response_id}/input_items", "get"),
    ("/v1/models", "get"),
    ("/v1/models/{model}", "get"),
    ("/healthz", "get"),
    ("/metrics", "get"),
]


@pytest.fixture
def whole(market: Market) -> FastAPI:
    cup = market.listing(market.seat(), title="Lumo Floral Cup")
    return endpoint(market.store, f"Try {markup(cup.ad)} @broken@[Ad-9]").app


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_breaks_the_endpoint(whole: FastAPI, path: str, method: str) -> None:
    operation = schemathesis.openapi.from_asgi("/openapi.json", whole)[path][method]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    drawn = st.one_of(operation.as_strategy(generation_mode=mode) for mode in modes)

    @given(case=drawn)
    @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def holds(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=HEADERS, checks=CHECKS)

    holds()


def test_a_streamed_answer_is_as_the_document_says(whole: FastAPI) -> None:
    operation = schemathesis.openapi.from_asgi("/openapi.json", whole)["/v1/chat/completions"]["post"]
    body = {"messages": [{"role": "user", "content": "which cup?"}], "stream": True}
    case = operation.Case(body=body, media_type="application/json")
    answer = case.call_and_validate(headers=HEADERS, checks=CHECKS)
    assert "event-stream" in answer.headers["content-type"][0]


def test_the_document_is_complete(whole: FastAPI, store: Store) -> None:
    document = whole.openapi()
    paths = document["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation.get("description") or operation.get("summary"), (method, path)
            assert operation["tags"], (method, path)
    assert {"/v1/chat/completions", "/v1/responses", "/v1/clicks/{token}", "/v1/keys"} <= paths.keys()
    for body in ("ChatRequest", "ResponseRequest"):
        assert document["components"]["schemas"][body]["examples"]
    for path in ("/v1/chat/completions", "/v1/responses"):
        assert "422" not in paths[path]["post"]["responses"]
