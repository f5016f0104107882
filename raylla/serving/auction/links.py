"""Placed ads as Markdown links in the text, for clients that drop annotations.

    ``try Lumo Cup (Sponsored)``  ->  ``try [Lumo Cup](https://.../v1/clicks/...) (Sponsored)``

A title is advertisers' text: each of its characters that Markdown could read is escaped, so that it neither
ends its link nor begins anything else: no heading or list at the start of a line, and no link of its own,
for readers make links of bare addresses.  A link is put into the text in one piece.  Clients send answers
back as earlier turns: the model reads those without links.
"""

from __future__ import annotations

import re
from urllib.parse import quote

CLICKS = "/v1/clicks/"
_READ = re.compile(r"[\\`*_\[\]<>&~|$]|^[#+=-]|(?<=[^\W_])\.(?=[^\W\d_]{2})|:(?=//)")
_NUMBER = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
"""The first of a list."""
_LINK = re.compile(
    rf"\[((?:\\.|[^\\\[\]\n]){{1,1000}})\]\([^()\s]{{0,500}}{CLICKS}[A-Za-z0-9._~-]{{1,2000}}\)"
)
_ESCAPED = re.compile(r"\\([\\`*_\[\]<>&~|$#+=.:)-])")
_SIGN = re.compile(r"\\?.", re.DOTALL)
_IN_URL = ":/?#[]@!$&'*+,;=%"
BINDING = frozenset("!\\^")
"""What makes another thing of a link behind it: an image, which clients load unasked, plain brackets, a
footnote."""


def click_url(base: str, token: str) -> str:
    """Where a click goes."""
    return f"{base}{CLICKS}{token}"


def escaped(title: str) -> str:
    """``title`` as Markdown that shows it and nothing else."""
    return _NUMBER.sub(r"\1\\\2", _READ.sub(r"\\\g<0>", title))


def signs(title: str) -> list[str]:
    """`escaped`, by the characters of ``title``."""
    return _SIGN.findall(escaped(title))


def link(title: str, url: str) -> str:
    """A Markdown link; ``url`` without the signs that would end it."""
    return f"[{escaped(title)}]({quote(url, safe=_IN_URL)})"


def unlinked(text: str) -> str:
    """``text`` with the titles alone where links to clicks stand."""
    return _LINK.sub(lambda match: _ESCAPED.sub(r"\1", match[1]), text)
