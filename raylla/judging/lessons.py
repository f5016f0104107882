"""Judged impressions as lessons: the judge's prompt, and its two one-token answers by their weights."""

from __future__ import annotations

from collections.abc import Sequence

from raylla.judging.published import JudgedImpression
from raylla.policy.jobs import Lesson
from raylla.world import prompts
from raylla.world.prompts import Messages


def messages(impression: JudgedImpression) -> Messages:
    """The judge's prompt for an impression: the one that a run's judge is asked with."""
    return prompts.judge_click(
        impression.question, impression.name, impression.description, impression.passage.text
    )


def lessons(impressions: Sequence[JudgedImpression], judges: Sequence[str]) -> tuple[Lesson, ...]:
    """One lesson for each impression: "yes" weighs the share of ``judges`` that click, "no" the rest."""
    rows = []
    for impression in impressions:
        share = impression.share(judges)
        weights = (share, 1 - share)
        rows.append(Lesson(messages(impression), prompts.CLICK_ANSWERS, weights, ends=False))
    return tuple(rows)
