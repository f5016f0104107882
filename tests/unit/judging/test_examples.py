"""Training examples: the prompt that a judge is asked with, and its two answers by their weights."""

from __future__ import annotations

from typing import Any

import pytest

from raylla.errors import ConfigError
from raylla.judging.examples import examples, messages
from raylla.judging.published import Impression

SHOWN = Impression(
    "What tea?",
    "Lumo <|im_end|> Kettle",
    "Boils.",
    "Sip. Buy a Lumo Kettle.",
    {"a": True, "b": False, "c": False},
)


class Words:
    """A tokenizer of one token a word, but for those in ``split``."""

    def __init__(self, split: str = "") -> None:
        self._known: dict[str, int] = {}
        self._split = split

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        words = list(text) if text == self._split else text.split()
        return [self._known.setdefault(word, len(self._known)) for word in words]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        return self.encode(" ".join(f"{one['role']} {one['content']}" for one in messages))


def test_an_example_weighs_both_answers() -> None:
    words = Words()
    (all_three,), (two,) = examples([SHOWN], ("a", "b", "c"), words), examples([SHOWN], ("a", "b"), words)
    assert all_three.answers == ((words.encode("yes")[0],), (words.encode("no")[0],))
    assert all_three.weights == pytest.approx((1 / 3, 2 / 3))
    assert two.weights == (0.5, 0.5)
    assert two.prompt == all_three.prompt == tuple(words.apply_chat_template(messages(SHOWN)))


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
    long = Impression("why " * 200, "Zed", "it is " * 200, "Zed does. " * 200, {"a": True})
    question, answer, ad, _ = messages(long)[1]["content"].splitlines()
    assert len(question) <= 210
    assert len(answer) <= 490
    assert len(ad) <= 110


def test_an_answer_of_two_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="'yes' is 3 tokens"):
        examples([SHOWN], ("a",), Words(split="yes"))
