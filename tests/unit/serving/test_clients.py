"""The clients that people use, by the snippets of docs/clients.md: they ask, stream, go on, are refused."""

from __future__ import annotations

import pytest

from tests.unit.serving import clients
from tests.unit.serving.clients import CASES, CLIENTS, COLUMNS, PAGE, Outcome

needs = pytest.mark.skipif(clients.missing() is not None, reason=str(clients.missing()))


def outcome(name: str) -> Outcome:
    return clients.outcome(name)


def test_the_page_has_a_snippet_of_every_client() -> None:
    for name in CLIENTS:
        source = clients.snippet(name)
        assert set(CASES) <= source.keys(), name
        assert clients.ASKED in "\n".join(source.values())
    assert "new OpenAI({" in PAGE.read_text()
    assert "createOpenAICompatible({" in PAGE.read_text()


@needs
@pytest.mark.slow
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_does_what_it_did_before(name: str, column: str) -> None:
    found = outcome(name)
    assert column in found.done, found.wrong


@needs
@pytest.mark.slow
def test_objects_come_without_ads() -> None:
    assert outcome("instructor").more["object"] == "Lumo 12\n"


@needs
@pytest.mark.slow
def test_the_page_shows_what_was_found() -> None:
    assert clients.table() in PAGE.read_text()
