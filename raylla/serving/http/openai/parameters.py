"""Which parameters of a request are honoured, which are taken at one value only, and which change nothing.

How the model samples is part of the mechanism, for prices are computed of it: where ads compete, parameters
of sampling are taken at OpenAI's default or the served value, and refused else.  The tables here are what
docs/serving.md shows.
"""

from __future__ import annotations

import json
from typing import Any

from raylla.config import Sampling
from raylla.serving.http.openai.bodies import Parameters
from raylla.serving.http.openai.faults import refused, unusable

NO_EFFECT = ("service_tier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")
"""Sent by clients, and nothing changes by them, here or elsewhere, in what is answered."""
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "store": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "background": (False,),
    "truncation": ("auto",),
    "text": ({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
    "reasoning": ({}, {"effort": "none"}),
    "include": ([], ["reasoning.encrypted_content"]),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
}
"""Parameter -> the values, beside null, at which it asks for nothing that is not done."""
FORMATS: dict[str, tuple[str, ...]] = {"response_format": (), "text": ("format",)}
"""Parameters that may ask for JSON -> where in them; honoured where no ads are wanted."""
ANY_OBJECT = '{"type": "object"}'
SPARE_DEPTH = 200
"""Levels that a response, and who writes it, may add to a value of a request."""
OWNED: dict[str, float] = {"temperature": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
"""Parameters of sampling -> OpenAI's default."""


def sampling(body: Parameters, ads: bool, served: Sampling) -> dict[str, Any]:
    """What ``body`` says of how its answer is sampled (as `raylla.engines.protocol.Wish` has it), once all
    that it may not say is refused.

    Raises:
        HttpError: a parameter is refused; names it.
    """
    wished: dict[str, Any] = {} if ads else schema(body)
    for name, taken in ONLY.items():
        value = None if name in body.HONOURED else getattr(body, name, None)
        if isinstance(value, dict):  # what is null in it is not given either
            value = {key: part for key, part in value.items() if part is not None}
        if wished and name in FORMATS:  # the schema is taken; what stands beside it is to be as ever
            value = {**(value or {}), "format": {"type": "text"}} if FORMATS[name] else None
        if value is None or value in taken:
            continue
        allowed = f"only {' or '.join(map(repr, taken))} is taken" if taken else "it is not taken"
        if ads and name in FORMATS:
            allowed += " with ads; JSON can be had with raylla.ads=false"
        raise refused(name, f"not supported here: {allowed}; leave it out")
    for name, default in OWNED.items():
        value = getattr(body, name, None)
        if value is None:
            continue
        own = getattr(served, name, default)
        if not ads:
            wished[name] = value
        elif value not in (default, own):
            raise refused(
                name,
                f"the auction owns how the model samples: with ads, {name}={own:g} is served; leave it "
                "out, or ask with raylla.ads=false",
            )
    if (seed := getattr(body, "seed", None)) is not None:
        wished["seed"] = seed % 2**63  # what the engine takes; -1 would be none
    return wished


def schema(body: Parameters) -> dict[str, str]:
    """The schema of JSON that ``body`` asks for, as either API has it; {}: none.

    Raises:
        HttpError: it asks for JSON of a schema that is none, or that no response could say again.
    """
    for name, path in FORMATS.items():
        asked = getattr(body, name, None)
        for key in path:
            asked = asked.get(key) if isinstance(asked, dict) else None
        if not isinstance(asked, dict):
            continue
        _check_json(name, getattr(body, name))
        if asked.get("type") == "json_object":
            return {"json_schema": ANY_OBJECT}
        if asked.get("type") == "json_schema":
            given = asked.get("json_schema", asked)
            if not isinstance(given, dict) or not isinstance(given.get("schema"), dict):
                raise unusable(name, "its schema must be an object")
            return {"json_schema": json.dumps(given["schema"])}
    return {}


def _check_json(name: str, value: Any) -> None:
    """Refuse what Python reads as JSON and no JSON can hold: NaN, numbers beyond all floats, a nesting that
    cannot be written again."""
    for _ in range(SPARE_DEPTH):
        value = [value]
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise unusable(name, "holds a number that JSON does not have, or that is too large") from None
    except RecursionError:
        raise unusable(name, "is nested too deeply") from None
