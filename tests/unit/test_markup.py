"""Placements are found exactly; every broken one has a type; plain text has none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import Parsed, Violation, markup, parse
from raylla.records import Ad

KETTLE = Ad("12", "Lumo Kettle", "tea", "food")
BOOT = Ad("34", "Boot by Nara", "shoes", "fashion")
ADS = (KETTLE, BOOT)
CATALOGUE = frozenset({"12", "34", "56"})

TITLES = st.text(
    st.characters(blacklist_characters="@[]\n\r", blacklist_categories=("Cs", "Cc")), min_size=1
)
IDS = st.from_regex(r"[0-9]{1,6}", fullmatch=True)
TRICKY = st.lists(
    st.sampled_from(["@", "[Ad-", "]", "1", "12", "Lumo", " ", "\n", ".", "x", markup(BOOT)])
).map("".join)


def violations(text: str) -> tuple[Violation, ...]:
    return parse(text, ADS, CATALOGUE).violations


@given(st.text() | TRICKY)
def test_any_text_parses(text: str) -> None:
    parsed = parse(text, ADS)
    assert parsed.attempts == len(parsed.placements) + len(parsed.violations)


@given(TITLES, IDS)
def test_markup_round_trips(title: str, id: str) -> None:
    ad = Ad(id, title, "tea", "food")
    parsed = parse(markup(ad), [ad])
    assert parsed.ad_ids == (id,)
    assert parsed.violations == ()


@given(st.text() | TRICKY, st.text() | TRICKY)
def test_an_inserted_placement_is_found_and_its_span_is_exact(before: str, after: str) -> None:
    new = Ad("777", "Zed Cup", "tea", "food")
    text = before + markup(new) + after
    apart = parse(before, ADS).placements + parse(after, ADS).placements
    parsed = parse(text, (*ADS, new))
    assert "777" in parsed.ad_ids
    assert len(parsed.placements) == len({placement.ad_id for placement in apart}) + 1
    for placement in parsed.placements:
        ad = next(ad for ad in (*ADS, new) if ad.id == placement.ad_id)
        assert text[placement.start : placement.end] == markup(ad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@Lumo Kettle@[Ad-99]", Violation.UNKNOWN_ID),
        ("@Other@[Ad-56]", Violation.NOT_A_CANDIDATE),
        ("@Lumo@[Ad-12]", Violation.ALTERED_TITLE),
        ("@lumo kettle@[Ad-12]", Violation.ALTERED_TITLE),
        ("@Lumo Kettle@[Ad-34]", Violation.ALTERED_TITLE),
        ("@Zed Cup @[Ad-12]", Violation.ALTERED_TITLE),
        ("@Lumo Kettle@ is good", Violation.MALFORMED),
        ("@Lumo Kettle is good", Violation.MALFORMED),
        ("@Lumo Kettle [Ad-12] good", Violation.MALFORMED),
        ("@Lumo Kettle@ [Ad-12]", Violation.MALFORMED),
        ("@Lumo Kettle@[Ad-12 x", Violation.MALFORMED),
        ("@Lumo Kettle@[Ad-]", Violation.MALFORMED),
        ("@Lumo Kettle@(Ad-12)", Violation.MALFORMED),
        ("Lumo@[Ad-12]", Violation.MALFORMED),
        ("see [Ad-12]", Violation.MALFORMED),
        ("@Zed Cup@ is nice", Violation.MALFORMED),
    ],
)
def test_each_broken_placement_is_one_typed_violation(text: str, expected: Violation) -> None:
    parsed = parse(text, ADS, CATALOGUE)
    assert parsed == Parsed((), (expected,))


def test_a_second_placement_of_an_ad_is_a_duplicate() -> None:
    parsed = parse(f"{markup(KETTLE)} {markup(BOOT)} {markup(KETTLE)}", ADS)
    assert parsed.ad_ids == ("12", "34")
    assert parsed.violations == (Violation.DUPLICATE,)


@pytest.mark.parametrize(
    "text",
    [
        "mail bob@x.com and ann@y.org",
        "@bob on that",
        "thanks @ann and @bob",
        "@bob@mastodon.social wrote",
        "a @ b @ c",
        "an [aside] and [another]",
        f"bob@x.com or {markup(KETTLE)}",
        f"see @bob and {markup(KETTLE)}",
    ],
)
def test_addresses_and_handles_are_no_violations(text: str) -> None:
    assert violations(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        "@" * 200_000,
        "@a@" * 70_000,
        "[Ad-" * 50_000,
        "@a@[Ad-1" * 30_000,
        "@" + "a " * 100_000,
        "@[Ad-" + "1" * 200_000,
        "@a@" + "a." * 100_000,
        "@a@" + "a" * 200_000,
        " " * 200_000 + "@",
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.process_time()
    parse(text, ADS)
    assert time.process_time() - started < 5
