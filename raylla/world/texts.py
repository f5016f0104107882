"""Texts of ads: what encoders read of them."""

from __future__ import annotations

from raylla.records import Ad

MAX_READ = 300
"""Characters of a description that an encoder reads: a mean over a long text says less of each word."""


def ad_text(ad: Ad) -> str:
    """What an ad says of itself, to every encoder: title, category and the start of its description."""
    return f"{ad.title} {ad.category} {cut(ad.description, MAX_READ)}".rstrip()


def cut(text: str, most: int) -> str:
    """``text``, or what of it fits ``most`` characters, ending with a word where it has several."""
    if len(text) <= most:
        return text
    return text[: most + 1].rpartition(" ")[0].rstrip() or text[:most]
