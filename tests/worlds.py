"""Worlds whose queries were asked without a User-LLM."""

from __future__ import annotations

import random
from dataclasses import replace

from raylla.config import World as Settings
from raylla.world import World, build
from raylla.world.synthetic import grammar


def asked_world(settings: Settings) -> World:
    """A synthetic world with queries from the grammar; a quarter of its profiles are for testing."""
    drawn = build.synthetic(settings, 0)
    rng = random.Random(0)
    splits = build.split_users(drawn.profiles, 0.25, 0)
    queries = [
        build.query_from_text(user, place, grammar.query(rng, user).text, splits[user.id])
        for user in drawn.profiles
        for place in range(settings.queries_per_profile)
    ]
    return replace(drawn, queries=tuple(one for one in queries if one is not None))
