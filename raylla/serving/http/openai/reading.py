"""A client's request, read into the auction's terms."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from raylla.config import Config
from raylla.records import Profile
from raylla.serving.auction.exchange import Asked
from raylla.serving.http.arrivals.origin import base_url
from raylla.serving.http.openai.bodies import Parameters, User
from raylla.serving.http.openai.faults import unusable
from raylla.serving.http.openai.history import Conversation, without_controls
from raylla.serving.http.openai.parameters import sampling
from raylla.serving.money.records import NOBODY, Filters
from raylla.serving.security.keys import Principal
from raylla.world.prompts import neutral


def asked_of(
    body: Parameters,
    said: Conversation,
    request: Request,
    caller: Principal,
    config: Config,
    longest: Sequence[int | None] = (),
    stop: str | Sequence[str] | None = None,
    field: str = "messages",
) -> Asked:
    """What ``body`` asks, in the conversation ``said`` (its field ``field``), with at most the least of
    ``longest`` tokens. Of ``request`` and ``caller`` are what click URLs begin with and where they stand.

    Raises:
        HttpError: a parameter is refused, or a text is too long.
    """
    extras = body.extras
    user = extras.profile or User()
    wished = sampling(body, extras.ads, config.ad_llm.sampling)
    most = config.serving.longest_query
    for name, text in ((field, said.question), ("raylla.profile.basics", user.basics)):
        if len(text) > most:
            why = f"{len(text)} characters; at most serving.longest_query={most}"
            raise unusable(name, why, "too_long")
    if extras.bids and not extras.test:
        raise unusable("raylla.bids", "only a request with raylla.test=true may set bids", "not_a_test")
    user_id = user.id or body.user or body.safety_identifier or None
    return Asked(
        request.state.request_id,
        said.question,
        Profile(
            user_id or NOBODY,
            without_controls(user.basics),
            tuple(neutral(without_controls(interest)) for interest in user.interests),
        ),
        Filters(user_id, extras.floor_micros, frozenset(extras.bcat), frozenset(extras.badv)),
        ads=extras.ads,
        test=extras.test,
        max_tokens=min((limit for limit in longest if limit is not None), default=None),
        bids=extras.bids,
        base=base_url(request, config.serving),
        links=extras.links or caller.links or config.serving.links,
        turns=said.turns,
        stop=_stops(stop),
        sampling=wished,
        metadata=body.metadata or {},
        trace=request.state.trace,
    )


def _stops(given: str | Sequence[str] | None) -> tuple[str, ...]:
    words = [given] if isinstance(given, str) else list(given or ())
    if "" in words:
        raise unusable("stop", "an empty text stops everything; give words or leave it out")
    return tuple(words)
