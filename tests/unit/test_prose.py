"""Answers with their markup or their ads taken out."""

from __future__ import annotations

import pytest

from raylla.auction import attempts, parse
from raylla.auction.prose import enclosing_sentence, sentences, stripped, undisclosed, without_ads
from raylla.records import Ad

ADS = (Ad("12", "Dr. Oat's Tea", "tea", "food"), Ad("34", "Lumo Kettle", "kettle", "home"))
ANSWER = (
    "Let the water cool. A kettle such as @Lumo Kettle@[Ad-34] (Sponsored) helps! "
    "1. Try @Dr. Oat's Tea@[Ad-12] too.\nSteep for 2.5 minutes."
)


def cut(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


def test_sentences_end_at_marks_and_lines_but_not_within_an_ad() -> None:
    assert cut(ANSWER, sentences(ANSWER, attempts(ANSWER, ADS))) == [
        "Let the water cool.",
        "A kettle such as @Lumo Kettle@[Ad-34] (Sponsored) helps!",
        "1. Try @Dr. Oat's Tea@[Ad-12] too.",
        "Steep for 2.5 minutes.",
    ]
    assert cut('He said "Go." Then\n\n- left\n', sentences('He said "Go." Then\n\n- left\n')) == [
        'He said "Go."',
        "Then",
        "- left",
    ]
    assert sentences(" \n 1. \n") == []


def test_markup_becomes_the_bare_title() -> None:
    assert stripped("Take @Lumo Kettle@[Ad-34 now.", ADS) == "Take Lumo Kettle now."
    assert stripped(undisclosed(ANSWER, "Sponsored"), ADS) == (
        "Let the water cool. A kettle such as Lumo Kettle helps! 1. Try Dr. Oat's Tea too.\n"
        "Steep for 2.5 minutes."
    )
    assert stripped("See me@home.org or @Lumo Kettle@ [Ad-3 now", ADS) == (
        "See me@home.org or Lumo Kettle now"
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (ANSWER, "Let the water cool. Steep for 2.5 minutes."),
        ("All of it is @Lumo Kettle@[Ad-34].", ""),
        ("Cool it. An unknown @Other@[Ad-99] ad. Pour.", "Cool it. Pour."),
        ("Cool it. An open @Lumo Kettle is one. Pour.", "Cool it. Pour."),
        ("Write to a@b.org. Ask @someone.", "Write to a@b.org. Ask @someone."),
    ],
)
def test_sentences_with_ads_are_left_out(text: str, left: str) -> None:
    assert without_ads(text, ADS) == left


def test_the_sentence_around_an_ad() -> None:
    placement = parse(ANSWER, ADS).placements[1]
    assert (
        enclosing_sentence(ANSWER, ADS, (placement.start, placement.end))
        == "1. Try @Dr. Oat's Tea@[Ad-12] too."
    )


def test_attempts_are_what_parsing_counts() -> None:
    for text in (ANSWER, "@Lumo Kettle@ [Ad-34] and @[Ad-12] @Lumo x", "@Other@[Ad-9]@Lumo Kettle@[Ad-34"):
        assert len(attempts(text, ADS)) == parse(text, ADS).attempts
    assert cut(ANSWER, attempts(ANSWER, ADS)) == [
        "@Lumo Kettle@[Ad-34]",
        "@Dr. Oat's Tea@[Ad-12]",
    ]
