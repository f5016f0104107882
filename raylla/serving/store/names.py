"""One form for names that are compared: categories, themes, domains, advertisers.

What people see is kept as it was given. What is compared is the form made here, so that `Tea & Coffee` is
`tea &  coffee`, a composed letter is the decomposed one, a full-width letter the ordinary one, a sign
without width is none, and `Bücher.example.` is `xn--bcher-kva.example`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import idna

_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LONGEST_DOMAIN = 253


@lru_cache(maxsize=10_000)
def name(text: str) -> str:
    """A category or theme as it is compared: NFKC, case folded, without what has no width, spaces drawn
    together."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", folded) if not _unseen(sign))
    return " ".join(seen.split())


def domain(text: str) -> str:
    """A domain as it is compared and kept: ASCII (Punycode), lower case, no dot at its end.

    Raises:
        ValueError: it is no domain.
    """
    ascii_name = _ascii(text)
    if ascii_name is None or len(ascii_name) > LONGEST_DOMAIN or not _DOMAIN.fullmatch(ascii_name):
        raise ValueError("give a domain such as lumo.example")
    return ascii_name


def _unseen(sign: str) -> bool:
    """Whether a sign has no width: a format or control character, no space, or a variation selector."""
    unspaced = unicodedata.category(sign) in ("Cf", "Cc") and not sign.isspace()
    return unspaced or "\ufe00" <= sign <= "\ufe0f"


def party(text: str) -> str:
    """An advertiser's id or domain as it is compared."""
    return _ascii(name(text)) or name(text)


@lru_cache(maxsize=10_000)
def _ascii(text: str) -> str | None:
    """A host's name by the rules of browsers (UTS #46); None where they have none for it."""
    bare = text.strip()
    if not bare.isascii():
        try:
            bare = idna.encode(bare, uts46=True).decode()
        except idna.IDNAError:
            return None
    return bare.removesuffix(".").lower()
