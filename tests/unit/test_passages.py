"""What is kept of an answer about one product, by hand."""

from __future__ import annotations

import pytest

from raylla.world.passages import LONGEST_PASSAGE, passage, plain, shortened

ANSWER = """# Trips

1. **Fly** early. Book with [Lumo Air](https://lumo.example/a_b?c=1 "t"): it is cheap. Pack light!

- Then visit https://sea.example/x. Rest a day. Go home.
"""


def test_reads_through_markdown_links_and_addresses() -> None:
    assert plain(ANSWER) == (
        "Trips\nFly early. Book with Lumo Air: it is cheap. Pack light!\nThen visit. Rest a day. Go home."
    )
    assert plain("| --- | --- |\n---\n> `a` ~~b~~ ![pic](x.png)\n") == "a b pic"


def test_keeps_the_sentences_beside_the_name() -> None:
    found = passage(ANSWER, "Lumo Air")
    assert found.text == "Fly early. Book with Lumo Air: it is cheap. Pack light!"
    assert found.found == "name"


def test_reads_the_markup_of_a_run_like_a_published_answer() -> None:
    placed = "Fly early. Book with @Lumo Air@[Ad-1234]: it is cheap. Pack light! See @Sea Inn@[Ad-7] too."
    assert passage(placed, "Lumo Air") == passage(
        placed.replace("@[Ad-1234]", "").replace("@Lumo", "Lumo"), "Lumo Air"
    )
    assert passage(placed, "Lumo Air").text == "Fly early. Book with Lumo Air: it is cheap. Pack light!"
    assert passage(placed, "Sea Inn").text == "Pack light! See Sea Inn too."
    assert "Ad-" not in plain("a broken @Lumo Air[Ad-12] and [Ad-3]")


@pytest.mark.parametrize("name", ["St. Ives Tea", "st. ives tea", "**St. Ives** Tea"])
def test_a_name_may_hold_the_end_of_a_sentence(name: str) -> None:
    found = passage("One. Two. Try St. Ives Tea today. Three. Four.", name)
    assert (found.text, found.found) == ("Two. Try St. Ives Tea today. Three.", "name")


def test_a_name_is_a_whole_word() -> None:
    assert passage("A segasaga here. B one. C two. Play Sega now.", "Sega").text == "C two. Play Sega now."


def test_words_stand_in_for_a_name_that_is_not_there() -> None:
    text = "Some say oak is best. I like pine. The Landon console is a fine oak table. Really. Bye now."
    found = passage(text, "Landon Media Console Table, Oak")
    assert (found.text, found.found) == (
        "I like pine. The Landon console is a fine oak table. Really.",
        "words",
    )


def test_the_beginning_stands_in_for_nothing() -> None:
    assert passage("First here. Second. Third.", "Zed").text == "First here. Second."
    assert passage("First here. Second. Third.", "Zed").found == "nothing"
    assert passage("", "Zed").text == ""
    assert passage("First here.", "").found == "nothing"


def test_the_first_mention_comes_in_before_the_others() -> None:
    filler = "word " * 60
    text = f"{filler}one. Lumo is here. {filler}two. Lumo again. Lumo is cited."
    kept = passage(text, "Lumo").text
    assert len(kept) <= LONGEST_PASSAGE
    assert kept == f"{filler}one. Lumo is here. Lumo again. Lumo is cited."


def test_a_sentence_beyond_the_limit_is_cut_about_the_name() -> None:
    text = "before " * 200 + "Lumo " + "after " * 200
    kept = passage(text, "Lumo").text
    assert LONGEST_PASSAGE - 10 < len(kept) <= LONGEST_PASSAGE
    assert kept.startswith("before ")
    assert kept.endswith(" after")
    assert " Lumo " in kept


def test_shortened() -> None:
    assert shortened(" a  b\nc ", 5) == "a b c"
    assert shortened("abc def", 3) == "abc"
    assert shortened("abc def", 6) == "abc"
    assert shortened("abcdef", 4) == "abcd"
