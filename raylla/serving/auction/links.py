"""Placed ads as Markdown links in the text, for clients that drop annotations.

    ``try Lumo Cup (Sponsored)``  ->  ``try [Lumo Cup](https://.../v1/clicks/...) (Sponsored)``

A title is advertisers' text: each of its characters that Markdown could read is escaped, so that it neither
ends its link nor begins anything else.  A link is put into the text in one piece.
"""

from __future__ import annotations

import re
from urllib.parse import quote

CLICKS = "/v1/clicks/"
_READ = re.compile(r"[\\`*_\[\]<>&~|$]")
_IN_URL = ":/?#[]@!$&'*+,;=%"
BINDING = frozenset("!\\^")
"""What makes another thing of a link behind it: an image, which clients load unasked, plain brackets, a
footnote."""


def click_url(base: str, token: str) -> str:
    """Where a click goes."""
    return f"{base}{CLICKS}{token}"


def escaped(title: str) -> str:
    """``title`` as Markdown that shows it and nothing else."""
    return _READ.sub(r"\\\g<0>", title)


def link(title: str, url: str) -> str:
    """A Markdown link; ``url`` without the signs that would end it."""
    return f"[{escaped(title)}]({quote(url, safe=_IN_URL)})"
