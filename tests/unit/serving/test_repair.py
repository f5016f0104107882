"""What becomes of the model's text before a user sees it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylla.auction import markup, parse
from raylla.auction.markup import Violation
from raylla.records import Ad
from raylla.serving.auction.repair import HELD_CHARACTERS, Repair, repair

CUP = Ad("4820", "Lumo Floral Cup", "mugs", "home")
KETTLE = Ad("17", "Lumo Kettle", "kettles", "home")
CANDIDATES = (CUP, KETTLE)
CATALOGUE = frozenset({"4820", "17", "99"})


def clean(text: str) -> str:
    return repair(text, CANDIDATES, "Sponsored", CATALOGUE).text


def streamed(pieces: list[str]) -> tuple[str, Repair]:
    one = Repair(CANDIDATES, "Sponsored")
    return "".join([*(one.feed(piece) for piece in pieces), one.finish()]), one


@pytest.mark.parametrize(
    ("raw", "shown", "violations"),
    [
        ("Try @Lumo Kettle@[Ad-17] now.", "Try Lumo Kettle (Sponsored) now.", []),
        ("@Lumo Kettle@[Ad-17]", "Lumo Kettle (Sponsored)", []),
        (
            "A @Lumo Kettle@[Ad-17], yes, @Lumo Kettle@[Ad-17]!",
            "A Lumo Kettle (Sponsored), yes, Lumo Kettle!",
            [Violation.DUPLICATE],
        ),
        ("Try @Lumo Pot@[Ad-17] now.", "Try now.", [Violation.ALTERED_TITLE]),
        ("Try @Lumo Kettle@[Ad-4820].", "Try.", [Violation.ALTERED_TITLE]),
        ("Try @Lumo Kettle@[Ad-18] now", "Try now", [Violation.UNKNOWN_ID]),
        ("Try @Lumo Kettle@[Ad-99] now", "Try now", [Violation.NOT_A_CANDIDATE]),
        ("Try @Lumo Kettle@[Ad-1", "Try", [Violation.MALFORMED]),
        ("Try @Lumo Kettle@ now", "Try now", [Violation.MALFORMED]),
        ("Try @Lumo Kettle and boil", "Try and boil", [Violation.MALFORMED]),
        ("Try Lumo Kettle [Ad-17] now", "Try Lumo Kettle now", [Violation.MALFORMED]),
        ("Try Lumo Kettle@[Ad-17] now", "Try Lumo Kettle now", [Violation.MALFORMED]),
        ("One @[Ad-17]\n\nTwo", "One\n\nTwo", [Violation.MALFORMED]),
        ("[Ad-[Ad-17]]x", "]x", [Violation.MALFORMED]),
        ("Write to me@example.com or @anna [1].", "Write to me@example.com or @anna [1].", []),
        ("Ask @anna and bob@example.com, at 5 @ noon", "Ask @anna and bob@example.com, at 5 @ noon", []),
    ],
)
def test_what_the_user_sees(raw: str, shown: str, violations: list[Violation]) -> None:
    found = repair(raw, CANDIDATES, "Sponsored", CATALOGUE)
    assert found.text == shown
    assert list(found.parsed.violations) == violations


def test_without_candidates_every_ad_goes() -> None:
    assert repair("Try @Lumo Kettle@[Ad-17] now", (), "Sponsored").text == "Try now"


def test_text_is_released_as_soon_as_it_cannot_be_an_ad() -> None:
    one = Repair(CANDIDATES, "Sponsored")
    assert one.feed("Try a ") == "Try a"
    assert one.feed("@Lumo") == ""
    assert one.feed(" Kettle@[Ad-1") == ""
    assert one.feed("7]") == " Lumo Kettle (Sponsored)"
    assert one.feed(" or mail bob@") == " or mail bob"
    assert one.feed("home.\n") == "@home."
    assert one.feed("x" * 10) == "\n" + "x" * 10


def test_a_lone_sign_does_not_hold_the_stream_for_ever() -> None:
    one = Repair(CANDIDATES, "Sponsored")
    assert one.feed("@" + "long words " * 20).startswith("@long words")
    assert len("long words " * 20) > HELD_CHARACTERS


BITS = st.sampled_from(
    [
        *(
            "@",
            "[",
            "]",
            "[Ad-",
            "@[",
            "@[Ad-",
            "17",
            "4820",
            "99",
            "5",
            " ",
            "\n",
            ".",
            ", ",
            "a",
            "é",
            "𝄞",
        ),
        *(CUP.title, KETTLE.title, "Lumo", "Lumo ", "Kettle", markup(CUP), markup(KETTLE)),
        *("@Lumo Pot@[Ad-17]", "@Lumo Kettle@[Ad-99]", "me@example.com", "@anna", "<|im_end|>", "x" * 90),
    ]
)
TEXTS = st.lists(BITS, max_size=14).map("".join)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, max(0, len(text))), max_size=12)))
    edges = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=600, deadline=None)
@given(chunked())
def test_any_chunking_gives_the_same_text_and_spans(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    whole = repair(text, CANDIDATES, "Sponsored", CATALOGUE)
    released, one = streamed(pieces)
    assert one.repaired(CATALOGUE) == whole
    assert released == whole.text
    assert streamed(list(text))[0] == whole.text


@settings(max_examples=600, deadline=None)
@given(TEXTS)
def test_spans_are_the_placements_and_point_at_their_titles(text: str) -> None:
    found = repair(text, CANDIDATES, "Sponsored", CATALOGUE)
    assert [span.ad_id for span in found.spans] == [one.ad_id for one in found.parsed.placements]
    titles = {ad.id: ad.title for ad in CANDIDATES}
    for span in found.spans:
        assert found.text[span.start : span.end] == titles[span.ad_id]
        assert found.text[span.end :].startswith(" (Sponsored)")


@settings(max_examples=600, deadline=None)
@given(TEXTS)
def test_no_markup_is_left(text: str) -> None:
    shown = clean(text)
    assert "[Ad-" not in shown
    assert parse(shown, CANDIDATES).placements == ()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_text_without_attempts_is_left_alone(text: str) -> None:
    found = parse(text, CANDIDATES, CATALOGUE)
    if not found.attempts:
        assert clean(text) == text
