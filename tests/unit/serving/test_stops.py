"""Where an answer stops: before a word that is asked for, within no ad; a limit leaves no half of one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylla.auction import markup
from raylla.records import Ad
from raylla.serving.auction.repair import Repair, Repaired
from raylla.serving.auction.stops import Stops

CUP, BOWL = Ad("1", "Lumo Cup", "cups", "home"), Ad("22", "Vada Bowl", "bowls", "home")
LABEL = "Ad"


def stopped(pieces: list[str], words: list[str], halved: bool = False) -> tuple[list[str], str, Repaired]:
    """What a stream shows of an answer, what of it the model wrote, and its end."""
    repair, stops = Repair([CUP, BOWL], LABEL), Stops(words)
    shown = []
    for piece in pieces:
        shown.append(stops.take(repair.feed(piece), repair.disclosed))
        if stops.end is not None:
            break
    else:
        shown.append(stops.take(repair.finish(halved), repair.disclosed, final=True))
    return shown, repair.raw(stops.end), repair.repaired(end=stops.end)


@pytest.mark.parametrize(
    ("words", "text", "placed"),
    [
        (["tea."], "Try Lumo Cup (Ad) or Vada Bowl (Ad) for ", ["1", "22"]),
        (["Cup"], "Try ", []),
        (["(Ad) or"], "Try ", []),
        (["y Lumo"], "Tr", []),
        ([" or "], "Try Lumo Cup (Ad)", ["1"]),
        (["Bowl", "never"], "Try Lumo Cup (Ad) or ", ["1"]),
        (["@", "[Ad-"], "Try Lumo Cup (Ad) or Vada Bowl (Ad) for tea.", ["1", "22"]),
    ],
)
def test_an_ad_is_whole_or_not_there(words: list[str], text: str, placed: list[str]) -> None:
    answer = f"Try {markup(CUP)} or {markup(BOWL)} for tea."
    for pieces in ([answer], list(answer)):
        shown, raw, end = stopped(pieces, words)
        assert "".join(shown) == end.text == text
        assert [one.ad_id for one in end.spans] == list(end.parsed.ad_ids) == placed
        assert answer.startswith(raw)
        assert [text[one.start : one.end] for one in end.spans] == [
            {"1": CUP, "22": BOWL}[id].title for id in placed
        ]


def test_what_begins_no_stop_is_shown_at_once() -> None:
    shown, _, _ = stopped(["one ", "two ST", "O", "Q", " three", " STOP four"], ["STOP"])
    assert shown[:2] == ["one", " two "]
    assert "".join(shown) == "one two STOQ three "


@pytest.mark.parametrize("size", range(1, len(markup(CUP))))
def test_a_limit_leaves_no_half_of_an_ad(size: int) -> None:
    _, _, end = stopped([f"Try {markup(CUP)[:size]}"], [], halved=True)
    assert (end.text, end.spans) == ("Try", ())
    _, _, both = stopped([f"Try {markup(BOWL)} and {markup(CUP)[:size]}"], [], halved=True)
    assert both.text == "Try Vada Bowl (Ad) and"


@pytest.mark.parametrize("text", ["Mail me@home.org", "See list[0] of x", "Ask @someone else for a bowl"])
def test_a_limit_leaves_other_signs_alone(text: str) -> None:
    assert stopped([text], [], halved=True)[2].text == text


PIECES = [
    markup(CUP),
    markup(BOWL),
    "@Lumo",
    "[Ad-",
    "@",
    " ",
    "cup",
    "STOP",
    "ST",
    "Cup",
    "\n",
    "(Ad)",
    "x.",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.sampled_from(["STOP", "Cup", ") x", "p"]))
)
def test_however_it_is_cut_the_outcome_is_one(parts: list[str], words: list[str]) -> None:
    answer = "".join(parts)
    shown, raw, end = stopped([answer], words)
    by_piece, same_raw, same = stopped(list(answer), words)
    assert "".join(shown) == "".join(by_piece) == end.text == same.text
    assert end.spans == same.spans
    assert raw.strip() == same_raw.strip()
    assert list(end.parsed.ad_ids) == [one.ad_id for one in end.spans]
    assert not any(word in end.text for word in words)
