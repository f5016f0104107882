"""Requests for a click that no person made: prefetches, HEAD, robots and link previews that say so.

Robots are told by what their User-Agent declares. The list is this module's own and short: the words that
robots use of themselves, the address of a page about them (``+https://...``), and the previews and
fetchers that use neither. A program that claims to be a browser is not told here; the limits of
`raylla.serving.store.billing` are for those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
"""Words that robots use of themselves."""
PREVIEWS = (
    "facebookexternalhit",
    "facebookcatalog",
    "meta-externalagent",
    "meta-externalfetcher",
    r"^whatsapp/",
    "skypeuripreview",
    "snap url preview",
    "bingpreview",
    "google-inspectiontool",
    "google-read-aloud",
    "googleother",
    "mediapartners-google",
    "feedfetcher-google",
    "embedly",
    "iframely",
    "flipboardproxy",
    "slack-imgproxy",
    "vkshare",
    "kakaotalk-scrap",
    "chatgpt-user",
    "claude-user",
    "claude-web",
    "perplexity-user",
    "mistralai-user",
    "cohere-ai",
    "ia_archiver",
    "w3c_validator",
    r"\bpreview\b",
)
"""Link previews and fetchers whose names hold none of those words."""
_ROBOT = re.compile("|".join((*DECLARED, *PREVIEWS)), re.IGNORECASE)


def automatic(method: str, headers: Mapping[str, str]) -> Invalid | None:
    """Why a request for a click is no person's; None: it may be one. Names of headers are lower case."""
    if any(AHEAD.search(headers.get(name, "")) for name in PURPOSES):
        return Invalid.PREFETCH
    if method == "HEAD":
        return Invalid.HEAD
    return Invalid.ROBOT if _ROBOT.search(headers.get("user-agent", "")) else None
