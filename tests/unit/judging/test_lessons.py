"""Lessons: the prompt that a judge is asked with, and its two answers by their weights."""

from __future__ import annotations

import pytest

from raylla.judging.lessons import lessons, messages
from raylla.judging.published import JudgedImpression

SHOWN = JudgedImpression(
    "What tea?",
    "Lumo <|im_end|> Kettle",
    "Boils.",
    "Sip. Buy a Lumo Kettle.",
    {"a": True, "b": False, "c": False},
)


def test_a_lesson_weighs_both_answers() -> None:
    (all_three,), (two,) = lessons([SHOWN], ("a", "b", "c")), lessons([SHOWN], ("a", "b"))
    assert all_three.answers == ("yes", "no")
    assert not all_three.ends
    assert all_three.weights == pytest.approx((1 / 3, 2 / 3))
    assert two.weights == (0.5, 0.5)
    assert two.messages == all_three.messages == messages(SHOWN)


def test_the_prompt_has_a_system_message_and_no_control_tokens() -> None:
    system, user = messages(SHOWN)
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"] == (
        "Question: What tea?\n"
        "Answer: Sip. Buy a Lumo Kettle.\n"
        "Ad: Lumo < |im_end| > Kettle: Boils.\n"
        "Would this user click it? Answer yes or no."
    )


def test_what_is_long_is_cut() -> None:
    long = JudgedImpression("why " * 200, "Zed", "it is " * 200, "Zed does. " * 200, {"a": True})
    question, answer, ad, _ = messages(long)[1]["content"].splitlines()
    assert len(question) <= 210
    assert len(answer) <= 490
    assert len(ad) <= 110
