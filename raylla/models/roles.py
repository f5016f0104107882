"""What a model must have for the role that a config gives it; looks at small files alone, and quickly."""

from __future__ import annotations

import json
from typing import Any

from raylla import models
from raylla.config import Config
from raylla.errors import ConfigError
from raylla.models.places import ADAPTER
from raylla.storage import exists, read_text, remote, within

TEMPLATE, TOKENIZER = "chat_template.jinja", "tokenizer_config.json"
"""Files of a model's directory where chat templates are."""

CHATS = ("ad_llm.path", "user_llm.path", "evaluation.user_llm", "judging.base")
"""Fields of models that are asked in chats."""


def check_roles(config: Config) -> dict[str, str]:
    """Where every model of ``config`` is, by the field that names it.

    Raises:
        ConfigError: one of them does not exist, or cannot chat although its role is to.
    """
    places = models.check_places(config)
    for field in (field for field in CHATS if field in places):
        check_chat(places[field], field)
    return places


def check_chat(place: str, field: str) -> None:
    """Refuse a language model without a chat template. One that is not on this machine, and at no URL, is
    looked at when the engine starts.

    Raises:
        ConfigError: names ``field``.
    """
    if not (remote(place) or exists(place)):
        return
    if not (exists(within(place, TEMPLATE)) or _settings(place, TOKENIZER).get("chat_template")):
        base = _settings(place, ADAPTER).get("base_model_name_or_path")
        if base:
            check_chat(models.resolve(base, field), field)
            return
        raise ConfigError(
            f"{field}={place!r} has no chat template; give a model that was taught to chat, or put its "
            f"{TEMPLATE} beside the tokenizer"
        )


def versions_taken(config: Config) -> str:
    """How engines take the weight versions of ``config``, and why, for a reader."""
    if config.lora is None:
        return "whole models in rollout and endpoint, for lora is not set"
    ways = {
        "merged": "merged with the base: whole weights compute fastest, and are all there is at a time",
        "shared": "as adapters over one base: little is moved and held, and each row costs its adapter's "
        "products",
    }
    rollout, serving = config.rollout.adapters, config.serving.adapters
    if rollout == serving:
        return f"in rollout and endpoint {ways[rollout]}"
    return f"in rollout {ways[rollout]}; at the endpoint {ways[serving]}"


def _settings(place: str, name: str) -> dict[str, Any]:
    """What a JSON file of a model's directory says; nothing where there is none."""
    file = within(place, name)
    try:
        about = json.loads(read_text(file)) if exists(file) else {}
    except ValueError:
        return {}  # said by who reads it whole
    return about if isinstance(about, dict) else {}
