"""What the code and the documents name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import house, reference

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"(?<![\w/:.-])((?:\.\./|[\w-]+/)*[\w-]+\.md)\b")
CITED = re.compile(r"\b[A-Z]{4,}(?:\.md)?,? (?:section|sections|fact|facts|§) ?\d")


def sources() -> Iterator[Path]:
    """Every text of the project in which a reader may be sent elsewhere."""
    for kind in (
        "raylla/**/*.py",
        "jobs/*.py",
        "docs/*.md",
        "*.md",
        "configs/*.yaml",
        "cluster/**/*",
        "*.sh",
    ):
        yield from (path for path in ROOT.glob(kind) if path.is_file())


def test_named_documents_are_there() -> None:
    missing: dict[str, list[str]] = {}
    for path in sources():
        text, places = path.read_text(), (ROOT, ROOT / "docs", path.parent)
        found = [name for name in NAMED.findall(text) if not any((one / name).exists() for one in places)]
        found += CITED.findall(text)
        if found:
            missing[str(path.relative_to(ROOT))] = found
    assert not missing


def test_named_adapters_are_there() -> None:
    there = {
        place.parent.name for place in (ROOT / "raylla/models/adapters").glob("*/adapter_model.safetensors")
    }
    named = {name for path in sources() for name in re.findall(r"adapter:([\w-]+)", _text(path))}
    assert named - {"NAME"} == there


def test_contributors_are_sent_to_files_that_are_there() -> None:
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) >= 8
    assert not [one for one in named if not (ROOT / one).exists() and not (ROOT / "raylla" / one).exists()]


@pytest.mark.parametrize("package", house.PACKAGES)
def test_components_are_imported_by_whom_the_architecture_names(package: str) -> None:
    tables = (ROOT / "docs" / "architecture.md").read_text().split("Of `raylla/serving`:")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\w, ]+) \|$", tables[house.PACKAGES.index(package)], re.M)
    said, graph = {name: set(callers.split(", ")) for name, callers in rows}, house.rooms(package)
    importers = {
        name: {user.rpartition(".")[2] for user, used in graph.items() if f"{package}.{name}" in used}
        for name in said
    }
    unnamed = {name: users - said[name] for name, users in importers.items() if said[name] != {"any"}}
    assert {name: users for name, users in unnamed.items() if users} == {}
    folders = {path.name for path in (ROOT / package.replace(".", "/")).iterdir() if any(path.glob("*.py"))}
    assert folders - {"__pycache__"} - said.keys() == set()


@pytest.mark.parametrize("page", ["config.md", "cli.md"])
def test_reference_pages_are_those_of_the_code(page: str) -> None:
    made, kept = reference.pages()[page], (reference.HOME / page).read_text()
    assert kept == made, f"docs/reference/{page} is not what the code says: run `python -m tests.reference`"


def test_every_setting_and_option_says_what_it_is() -> None:
    pages = "\n".join(reference.pages().values()).splitlines()
    assert len(pages) > 700
    assert [row for row in pages if row.startswith("| `") and row.endswith("|  |")] == []


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


TOLD = re.compile(
    r"\b(formerly|previously|used to (?!\w+ing)|in the past|from now on|has been (?:changed|replaced)|"
    r"what was done about it|we (?:found|tried|changed|now))\b",
    re.I,
)
"""How pages tell of what has been: what is, is for them; what changed is for `CHANGELOG.md`."""
LONGEST = 55
"""Words of a sentence, or of its part before a colon."""


def pages() -> Iterator[tuple[str, str]]:
    """Name and prose of each page: no code, tables or headings."""
    for path in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        yield path.name, re.sub(r"^(?:    |\||#|<).*$", "", path.read_text(), flags=re.M)


def test_pages_say_what_is_in_short_sentences() -> None:
    for name, text in pages():
        assert not TOLD.findall(text), name
        for part in re.split(r"\n\s*\n|\n- |\n\d\. ", text):
            sentences = re.split(r"(?<=[.!?:])\s+", part)
            assert [words for words in sentences if len(words.split()) > LONGEST] == [], name
