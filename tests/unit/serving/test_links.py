"""Placed ads as Markdown links: nothing in a title breaks out of one, and no cut of a stream parts one."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from raylla.auction import markup
from raylla.records import Ad
from raylla.serving.auction.links import click_url, escaped, link, signs, unlinked
from raylla.serving.auction.repair import Repair, repair
from tests.unit.serving.test_repair import CANDIDATES, CATALOGUE, KETTLE, TEXTS, chunked

LABEL = " (Sponsored)"
READER = MarkdownIt("commonmark").enable(["strikethrough", "table"])
SIGNS = st.sampled_from(list("\\`*_<>&~|$()!#\"'.-:;=^{}/ 1aé𝄞"))
TITLES = st.one_of(st.text(SIGNS, min_size=1), st.text(min_size=1)).filter(
    lambda one: one.isprintable() and one == one.strip() and not set(one) & set("@[]")
)


def url_of(ad: Ad) -> str:
    return click_url("https://ask.example", f"k1.{'e30' * 9}.{ad.id}")


def linked(ad: Ad) -> str:
    return link(ad.title, url_of(ad))


class Linked:
    """Every ad as a link."""

    def placed(self, ad: Ad) -> str:
        return linked(ad)

    def again(self, title: str) -> list[str]:
        return signs(title)


def read(text: str) -> list[tuple[str, str]]:
    """Type and content of what a Markdown reader finds in one line of text."""
    (inline,) = [token for token in READER.parse(text) if token.type == "inline"]
    return [
        (token.type, token.content or str(token.attrs.get("href", ""))) for token in inline.children or ()
    ]


@settings(max_examples=500, deadline=None)
@given(TITLES)
@example("`a` *b* _c_ <d> &amp; ~~e~~ \\")
@example("](https://evil.example) (")
def test_a_title_is_its_links_text_and_nothing_else(title: str) -> None:
    title = title.replace("[", "(").replace("]", ")")
    found = read(f"Try {link(title, 'https://ask.example/v1/clicks/t')} (Sponsored) now")
    opened = found.index(("link_open", "https://ask.example/v1/clicks/t"))
    closed = found.index(("link_close", ""))
    inside = found[opened + 1 : closed]
    assert {kind for kind, _ in inside} <= {"text", "text_special"}
    assert "".join(content for _, content in inside) == title
    assert [kind for kind, _ in found].count("link_open") == 1
    assert "".join(content for _, content in found[closed:]).startswith(LABEL)


@settings(max_examples=300, deadline=None)
@given(TITLES)
@example("\\\\.a.bc")
def test_a_title_is_escaped_sign_by_sign(title: str) -> None:
    parts = signs(title)
    assert "".join(parts) == escaped(title)
    assert [part[-1] for part in parts] == list(title)
    assert unlinked(link(title, "https://ask.example/v1/clicks/t")) == title


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("www.lumo.example", r"www\.lumo\.example"),
        ("https://lumo.example/cup", r"https\://lumo\.example/cup"),
        ("lumo.example", r"lumo\.example"),
        ("Lumo 2.0 (5 l.)", "Lumo 2.0 (5 l.)"),
        ("# Cup", r"\# Cup"),
        ("- Cup", r"\- Cup"),
        ("+ Cup", r"\+ Cup"),
        ("1. Cup", r"1\. Cup"),
        ("12) Cup", r"12\) Cup"),
        ("1.5 l", "1.5 l"),
    ],
)
def test_a_title_that_is_named_again_is_no_address_heading_or_list(title: str, shown: str) -> None:
    assert escaped(title) == shown
    (token, *_) = READER.parse(escaped(title))
    assert token.type == "paragraph_open"
    assert "".join(content for _, content in read(escaped(title))) == title


def test_brackets_would_be_escaped_too() -> None:
    assert link("a] [b", "https://x.example/t") == r"[a\] \[b](https://x.example/t)"


def test_a_url_cannot_end_its_link() -> None:
    assert link("Cup", "https://x.example/) <b> \\") == "[Cup](https://x.example/%29%20%3Cb%3E%20%5C)"


def test_the_text_of_the_record_stays_without_links() -> None:
    raw = f"Try {markup(KETTLE)} or {markup(KETTLE)}."
    one = Repair(CANDIDATES, "Sponsored", Linked())
    shown = one.feed(raw) + one.finish()
    found, plain = one.repaired(CATALOGUE), repair(raw, CANDIDATES, "Sponsored", CATALOGUE)
    assert (found.text, found.spans, found.parsed) == (plain.text, plain.spans, plain.parsed)
    assert shown == found.shown == f"Try [Lumo Kettle]({url_of(KETTLE)}){LABEL} or Lumo Kettle."
    (span,) = found.shown_spans
    assert shown[span.start : span.end] == linked(KETTLE)


def test_a_title_that_is_named_again_is_escaped_and_no_link() -> None:
    ad = Ad("5", "<https://evil.example> *Cup*", "mugs", "home")
    raw = f"Try {markup(ad)}, yes, {markup(ad)} ."
    one = Repair([ad], "Sponsored", Linked())
    shown = one.feed(raw) + one.finish()
    assert shown == f"Try {linked(ad)}{LABEL}, yes, \\<https\\://evil\\.example\\> \\*Cup\\* ."
    assert [kind for kind, _ in read(shown)].count("link_open") == 1
    assert one.repaired().text == f"Try {ad.title}{LABEL}, yes, {ad.title} ."


@pytest.mark.parametrize("before", ["!", "\\", "Look!", "^", "!!"])
def test_what_stands_before_a_link_makes_nothing_else_of_it(before: str) -> None:
    one = Repair(CANDIDATES, "Sponsored", Linked())
    shown = one.feed(before) + one.feed(markup(KETTLE)) + one.finish()
    assert shown == f"{before} {linked(KETTLE)}{LABEL}"
    assert [kind for kind, _ in read(shown)].count("link_open") == 1
    assert "image" not in [kind for kind, _ in read(shown)]


def test_a_cut_before_a_link_leaves_nothing_of_it() -> None:
    one = Repair(CANDIDATES, "Sponsored", Linked())
    one.feed(f"Look!{markup(KETTLE)} now")
    one.finish()
    cut, whole = one.repaired(end=5), one.repaired()
    assert (cut.text, cut.shown, cut.spans, cut.shown_spans) == ("Look!", "Look!", (), ())
    assert whole.shown == f"Look! {linked(KETTLE)}{LABEL} now"
    assert one.shown(5, len(whole.text)) == whole.shown[5:]


def test_a_cut_within_a_title_named_again_leaves_its_beginning_escaped() -> None:
    ad = Ad("5", "A *B* C", "mugs", "home")
    one = Repair([ad], "Sponsored", Linked())
    one.feed(f"{markup(ad)}, {markup(ad)}.")
    one.finish()
    end = len(f"{ad.title}{LABEL}, A *B")
    assert one.repaired(end=end).shown == f"{linked(ad)}{LABEL}, A \\*B"
    assert one.shown(end) == "\\* C."


@settings(max_examples=500, deadline=None)
@given(chunked())
def test_no_cut_of_a_stream_parts_a_link_or_moves_one(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    whole = Repair(CANDIDATES, "Sponsored", Linked())
    shown = whole.feed(text) + whole.finish()
    cut = Repair(CANDIDATES, "Sponsored", Linked())
    chunks = [*(cut.feed(piece) for piece in pieces), cut.finish()]
    found = cut.repaired(CATALOGUE)
    assert found == whole.repaired(CATALOGUE)
    assert "".join(chunks) == shown == found.shown
    ends = {sum(map(len, chunks[:place])) for place in range(len(chunks))}
    for span in found.shown_spans:
        assert not ends & set(range(span.start + 1, span.end + len(LABEL)))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_spans_cover_whole_links(text: str) -> None:
    one = Repair(CANDIDATES, "Sponsored", Linked())
    shown = one.feed(text) + one.finish()
    found = one.repaired(CATALOGUE)
    by_id = {ad.id: ad for ad in CANDIDATES}
    assert [span.ad_id for span in found.shown_spans] == [span.ad_id for span in found.spans]
    for span in found.shown_spans:
        assert shown[span.start : span.end] == linked(by_id[span.ad_id])
        assert shown[span.end :].startswith(LABEL)
