"""Requests drawn from the OpenAPI document: none is answered with a server error, all as documented."""

from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from raylla.serving.billing.audit import audit
from raylla.serving.http import advertisers, campaigns, clicks, web
from raylla.serving.store import Store
from tests.unit.serving.market import ADMIN_KEY, Market

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


def operations() -> list[tuple[str, str]]:
    """Path and method of everything in the document."""
    bare = FastAPI()
    for router in (campaigns.router, clicks.router, *advertisers.ROUTERS):
        bare.include_router(router)
    return [(path, method) for path, methods in bare.openapi()["paths"].items() for method in methods]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), operations())
def test_no_request_breaks_the_api(
    app: FastAPI, market: Market, services: web.Services, path: str, method: str
) -> None:
    listing = market.listing(market.seat())
    token = services.tokens.sign(market.claims(market.served(listing)))
    there = {
        "advertiser_id": listing.advertiser_id,
        "campaign_id": listing.campaign_id,
        "ad_id": listing.ad.id,
        "token": token,
    }
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    drawn = st.one_of(operation.as_strategy(generation_mode=mode) for mode in modes)

    @given(case=drawn, real=st.booleans())
    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def holds(case: schemathesis.Case, real: bool) -> None:
        if real:  # ids drawn at random are never there
            parameters = {name: there.get(name, value) for name, value in case.path_parameters.items()}
            case.path_parameters = parameters
        case.call_and_validate(headers=HEADERS, checks=CHECKS)

    holds()


def test_every_operation_has_a_summary_a_tag_and_an_example(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            assert operation["tags"], (method, path)
            assert "422" in operation["responses"], (method, path)
            reference = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if reference:
                name = reference["schema"]["$ref"].rpartition("/")[2]
                assert document["components"]["schemas"][name]["examples"], name


def test_the_documents_examples_are_valid_bodies(client: TestClient, store: Store, market: Market) -> None:
    seat = market.seat()
    listing = market.listing(seat)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]

    def send(method: str, path: str, body: str, **change: object) -> None:
        example = schemas[body]["examples"][0] | change
        assert client.request(method, path, json=example, headers=HEADERS).status_code < 300

    send("POST", "/v1/advertisers", "NewAdvertiser")
    send("POST", f"/v1/advertisers/{seat}/payments", "Payment")
    send("POST", f"/v1/advertisers/{seat}/campaigns", "NewCampaign")
    send("PATCH", f"/v1/campaigns/{listing.campaign_id}", "CampaignChange")
    send("POST", f"/v1/campaigns/{listing.campaign_id}/ads", "NewAd")
    send("PATCH", f"/v1/ads/{listing.ad.id}", "AdChange")
    send("PUT", "/v1/floors", "FloorBody")
    send("POST", "/v1/keys", "NewKey", advertiser_id=seat)
    charge = store.click(market.claims(market.served(listing)), market.now)
    send("POST", "/v1/conversions", "NewConversion", click_id=charge.click_id)
    assert audit(store).discrepancies == []
