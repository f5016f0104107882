"""Judged impressions as training examples: a prompt, and its two one-token answers by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylla.engines.protocol import prompt_ids
from raylla.errors import ConfigError
from raylla.judging.published import Impression
from raylla.policy.supervised import Example
from raylla.world import prompts
from raylla.world.prompts import Messages

ANSWERS = prompts.CLICK_ANSWERS


def messages(impression: Impression) -> Messages:
    """The judge's prompt for an impression: the one that a run's judge is asked with."""
    return prompts.judge_click(
        impression.question, impression.name, impression.description, impression.passage.text
    )


def examples(impressions: Sequence[Impression], judges: Sequence[str], tokenizer: Any) -> list[Example]:
    """One example for each impression: "yes" weighs the share of ``judges`` that click, "no" the rest.

    Raises:
        ConfigError: one of the two answers is more than one token of ``tokenizer``.
    """
    answers = tuple((token_id(tokenizer, answer),) for answer in ANSWERS)
    found = []
    for impression in impressions:
        share = impression.share(judges)
        prompt = tuple(prompt_ids(tokenizer, messages(impression)))
        found.append(Example(prompt, answers, (share, 1 - share)))
    return found


def token_id(tokenizer: Any, answer: str) -> int:
    """The one token that ``answer`` is.

    Raises:
        ConfigError: it is more than one.
    """
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(
            f"user_llm.reading=token needs answers of one token, but {answer!r} is {len(ids)} tokens of "
            "this model; set user_llm.reading=json or give another user_llm.path"
        )
    return int(ids[0])
