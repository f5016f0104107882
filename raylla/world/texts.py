"""Texts of ads: what may stand in a prompt, the one form that all doors bring them into, and what
encoders read of them.

Text is composed (NFC) wherever it comes in: a tokenizer may compose what it reads, and a title that was
not would then never be copied as listed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import Annotated

from pydantic import Field, HttpUrl, TypeAdapter, ValidationError

from raylla.errors import WorldError
from raylla.records import Ad
from raylla.wholetext import visible

MAX_TITLE, MAX_CATEGORY, MAX_DESCRIPTION = 80, 80, 5000
"""Longest texts of an ad, in characters; a theme is as long as a category."""
MAX_ID = 18
"""Longest id, in digits."""
MAX_READ = 300
"""Characters of a description that are read: an encoder's mean over a long text says less of each word."""
MARKS = ("@", "[", "]", "<|", "|>", "\u00a4")
"""What the model reads as markup, as a role of the chat or as a bid; no text of an ad may hold it."""
_FIELD = "|"
"""Parts the fields of an ad's line: a category with one could add a bid."""
_SAID = r"bids?[\W_]*(?:(?:of|is|at|usd|eur|gbp|jpy|cny|inr|chf)[\W_]*)?\d[\d.,]*"
_BID = re.compile(rf"(?<![^\W_]){_SAID}", re.IGNORECASE)
"""What beside a title reads as its bid, as prompts say it."""
_OFFER = re.compile(rf"\|\s*{_SAID}", re.IGNORECASE)
"""What within a title does."""
JOINERS = "\u200c\u200d"
"""What joins or parts letters and emoji; all else without a width is a control character."""
_URL = TypeAdapter(Annotated[HttpUrl, Field(max_length=2000)])


def ad_text(ad: Ad) -> str:
    """What an ad says of itself, to every encoder: category, title and the start of its description."""
    return f"{ad.category} {ad.title} {cut(ad.description, MAX_READ)}".rstrip()


def shown(ad: Ad, characters: int) -> str:
    """What a prompt shows of an ad's description: on one line, without signs, cut to ``characters``."""
    return clean_field(cut(ad.description, MAX_READ), characters) if characters else ""


def cut(text: str, most: int) -> str:
    """``text``, or what of it fits ``most`` characters, ending with a word where it has several."""
    if len(text) <= most:
        return text
    return text[: most + 1].rpartition(" ")[0].rstrip() or text[:most]


def one_line(text: str) -> str:
    """``text`` composed, printable and on one line, as every door takes it."""
    composed = unicodedata.normalize("NFC", text)
    return " ".join("".join(c if printable(c) else " " for c in composed).split())


def clean_title(text: str) -> str:
    """``text`` as a title: on one line, without `MARKS` and offers, cut to size at a word."""
    return cut(_without(text, MARKS, _OFFER), MAX_TITLE)


def clean_field(text: str, most: int) -> str:
    """``text`` as it may stand beside a title: without fields and bids too, cut to ``most`` characters."""
    return cut(_without(text, (*MARKS, _FIELD), _BID), most)


def composed(ad: Ad) -> Ad:
    """``ad`` with its texts in the one form: NFC, every space of Unicode an ordinary one."""
    texts = (ad.title, ad.category, ad.theme, ad.description)
    title, category, theme, description = map(one_form, texts)
    return replace(ad, title=title, category=category, theme=theme, description=description)


def one_form(text: str) -> str:
    """``text`` composed (NFC), every space of Unicode an ordinary one."""
    spaced = (" " if unicodedata.category(c) == "Zs" else c for c in text)
    return unicodedata.normalize("NFC", "".join(spaced))


def landing(url: str) -> str:
    """The URL of a landing page as it is sent to browsers.

    Raises:
        WorldError: it is no URL of the web.
    """
    try:
        return str(_URL.validate_python(url))
    except ValidationError as error:
        raise WorldError(
            f"url={url!r}: {error.errors()[0]['msg']}; give the landing page's https URL"
        ) from None


def check_ad(ad: Ad) -> None:
    """Refuse an ad that a prompt or a placement could not carry.

    Raises:
        WorldError: names the field, the value and the way out.
    """
    where = f"ads: {ad.id}"
    if not (ad.id.isascii() and ad.id.isdigit() and len(ad.id) <= MAX_ID):
        raise WorldError(
            f"ads: id={ad.id!r}: an id is at most {MAX_ID} digits, as in [Ad-1234]; renumber the ad"
        )
    if not visible(ad.title):
        raise WorldError(f"{where}: title={ad.title!r} is empty; give the ad a title or drop it")
    _check_text(where, "title", ad.title, MAX_TITLE, MARKS, _OFFER)
    for field, text in (("category", ad.category), ("theme", ad.theme)):
        if text.strip() and not visible(text):
            raise WorldError(f"{where}: {field}={text!r} shows nothing; give letters, or leave it empty")
    _check_text(where, "category", ad.category, MAX_CATEGORY, (*MARKS, _FIELD), _BID)
    _check_text(where, "theme", ad.theme, MAX_CATEGORY, (*MARKS, _FIELD), _BID)
    # prompts show a part of it, of which `shown` takes the signs
    _check_text(where, "description", ad.description, MAX_DESCRIPTION, ())
    if ad.url:
        landing(ad.url)


def check_line(where: str, field: str, text: str) -> None:
    """Refuse text that could break a line or a role of a prompt.

    Raises:
        WorldError: names the field, the value and the way out.
    """
    _check_text(where, field, text, len(text), ("<|", "|>"))


def printable(text: str) -> bool:
    """Whether ``text`` holds no control character and no space but the ordinary one."""
    return all(sign.isprintable() or sign in JOINERS for sign in text)


def _without(text: str, signs: tuple[str, ...], offer: re.Pattern[str]) -> str:
    for sign in signs:
        text = text.replace(sign, " ")
    line = one_line(text)
    plain = unicodedata.normalize("NFKC", line)
    if plain != line and (any(sign in plain for sign in signs) or offer.search(plain)):
        return _without(plain, signs, offer)  # full-width signs and the like
    while said := offer.search(line):  # what is left may say another
        line = " ".join(f"{line[: said.start()]} {line[said.end() :]}".split())
    return line


def _check_text(
    where: str,
    field: str,
    text: str,
    most: int,
    signs: tuple[str, ...],
    offer: re.Pattern[str] | None = None,
) -> None:
    said = f"{where}: {field}={cut(text, 120)!r}"
    if len(text) > most:
        raise WorldError(f"{said} is over {most} characters; shorten it")
    if not printable(text):
        raise WorldError(f"{said} holds a line break or control character; remove it")
    for form in (text, unicodedata.normalize("NFKC", text)):  # full-width signs, too
        for sign in signs:
            if sign in form:
                raise WorldError(f"{said} holds {sign!r}, {_role(sign)}; remove it")
        if offer is not None and (bid := offer.search(form)):
            raise WorldError(f"{said} holds {bid.group()!r}, which reads as a bid; reword it")
    if not unicodedata.is_normalized("NFC", text):
        raise WorldError(f"{said} is not in composed form; normalize it to NFC")


def _role(sign: str) -> str:
    if sign in "@[]":
        return "a markup sign"
    return {"\u00a4": "the sign of a bid", _FIELD: "which parts the fields of a prompt"}.get(
        sign, "a chat control token"
    )
