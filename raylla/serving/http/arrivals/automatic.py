"""Requests for a click that no person made: prefetches, HEAD, robots and link previews that say so.

Robots are told by what their User-Agent declares: the list that the package ``crawler-user-agents`` keeps,
and the words that those use of themselves which it does not know yet. Left out of the list are the
libraries that programs are written with, which say nothing of who asked the program for the page, and
browsers that people click in. A program that claims to be a browser is not told here; the limits of
`raylla.serving.store.billing` are for those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from raylla.serving.money.records import Invalid

PURPOSES = ("sec-purpose", "purpose", "x-purpose", "x-moz")
"""Headers by which a browser says that it asks ahead of its user."""
AHEAD = re.compile(r"\b(prefetch|prerender|preview)\b", re.IGNORECASE)
DECLARED = (
    r"(?<!cu)bot(?![a-z])",  # Googlebot, Slackbot-LinkExpanding, GPTBot/1.1; CUBOT makes telephones
    r"crawler",
    r"spider",
    r"slurp",
    r"\+https?://",
)
"""Words that robots use of themselves, in any case."""
LIBRARY = "http-library"
"""The package's tag of what programs are written with."""
BROWSERS = frozenset({"MetaIAB Facebook", "Fluid", r"Code\/1\.", r"Trae\/"})
"""Entries of the package whose User-Agents are of an app's or an editor's own browser."""
LONGEST = 1024
"""Characters of a User-Agent that are looked at."""
_TOGETHER = 25
"""Patterns of one expression: the engine tries many short ones faster than a long one."""


def _expressions() -> list[re.Pattern[str]]:
    listed = [
        each["pattern"]
        for each in CRAWLER_USER_AGENTS_DATA
        if each["pattern"] not in BROWSERS and set(each.get("tags", ())) != {LIBRARY}
    ]
    parts = ["|".join(listed[at : at + _TOGETHER]) for at in range(0, len(listed), _TOGETHER)]
    return [re.compile("|".join(DECLARED), re.IGNORECASE), *map(re.compile, parts)]


_ROBOTS = _expressions()


@lru_cache(maxsize=4096)
def _robot(agent: str) -> bool:
    return any(expression.search(agent) for expression in _ROBOTS)


def automatic(method: str, headers: Mapping[str, str]) -> Invalid | None:
    """Why a request for a click is no person's; None: it may be one. Names of headers are lower case."""
    if any(AHEAD.search(headers.get(name, "")) for name in PURPOSES):
        return Invalid.PREFETCH
    if method == "HEAD":
        return Invalid.HEAD
    return Invalid.ROBOT if _robot(headers.get("user-agent", "")[:LONGEST]) else None
