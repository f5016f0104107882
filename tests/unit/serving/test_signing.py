"""Notices verify as any webhook does: by the library of Standard Webhooks, with the secret of the API."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.testclient import TestClient

from raylla.serving.http import web
from raylla.serving.security.signing import notice_keys, webhook_secret
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store
from tests.unit.serving.hooks import Hook, Post, billed
from tests.unit.serving.market import ADMIN_KEY, KEYS, Market


@pytest.fixture
def market(store: Store) -> Market:
    """Now: verifiers refuse what is five minutes old."""
    return Market(store, web.now())


def shown(client: TestClient, seat: str) -> dict[str, Any]:
    """What the API shows of an advertiser's secret."""
    answer = client.get(
        f"/v1/advertisers/{seat}/notice-key", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    )
    return dict(answer.json())


def test_a_notice_verifies_with_the_secret_that_its_advertiser_sees(
    market: Market, store: Store, hook: Hook, client: TestClient
) -> None:
    seat, other = billed(market, hook.url), market.seat("Vara")
    Post(store, market.now).send()
    ((_, headers, body),) = hook.got
    secret = Webhook(shown(client, seat)["secret"])
    told = secret.verify(body, headers)
    assert (told["seat"], told["id"]) == (seat, headers["webhook-id"])
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        secret.verify(body.replace(b'"price_micros":640000', b'"price_micros":640001'), headers)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        secret.verify(body, headers | {"webhook-id": "ntc_0123456789abcdef"})
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(shown(client, other)["secret"]).verify(body, headers)


def test_an_old_notice_is_refused(market: Market, store: Store, hook: Hook, client: TestClient) -> None:
    market.now -= dt.timedelta(seconds=301)
    seat = billed(market, hook.url)
    Post(store, market.now).send()
    secret = Webhook(shown(client, seat)["secret"])
    ((_, old, body),) = hook.got
    with pytest.raises(WebhookVerificationError, match="too old"):
        secret.verify(body, old)
    fresh = old | {"webhook-timestamp": str(int(time.time()))}
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        secret.verify(body, fresh)


def test_each_attempt_is_signed_anew_under_one_id(
    market: Market, store: Store, hook: Hook, client: TestClient
) -> None:
    hook.statuses = [503, 200]
    seat = billed(market, hook.url)
    post = Post(store, market.now)
    assert (post.send(), post.send(later=3)) == (1, 1)
    (_, first, body), (_, second, again) = hook.got
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 3
    assert body == again
    secret = Webhook(shown(client, seat)["secret"])
    assert secret.verify(body, first) == secret.verify(again, second)


def test_a_secret_verifies_until_its_token_key_is_dropped(market: Market, store: Store, hook: Hook) -> None:
    seat = billed(market, hook.url)
    Post(store, market.now).send()
    ((_, headers, body),) = hook.got
    for id in KEYS:
        only = notice_keys(TokenKeys({id: KEYS[id]}), seat)
        Webhook(webhook_secret(only[id])).verify(body, headers)
    assert len(headers["webhook-signature"].split(" ")) == len(KEYS)


def test_the_header_of_this_version_verifies_with_the_same_secret_in_hex(
    market: Market, store: Store, hook: Hook, client: TestClient
) -> None:
    seat = billed(market, hook.url)
    Post(store, market.now).send()
    ((_, headers, body),) = hook.got
    parts = dict(part.split("=", 1) for part in headers["Raylla-Signature"].split(","))
    key = shown(client, seat)
    mac = hmac.new(bytes.fromhex(key["key"]), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
    assert (parts["k"], parts["v1"]) == (key["key_id"], mac)
    assert json.loads(body)["seat"] == seat
