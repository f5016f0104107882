"""Chat messages as a tokenizer's own template shapes them, and their token ids."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, proxy

from raylla.errors import ConfigError
from raylla.literal import Literal
from raylla.world.prompts import Messages

_SIGN = re.compile(r"[^\w\s]")
_BYTE = re.compile(r"<(0x[0-9A-Fa-f]{2}>)")
_KEPT = 64
"""Sequences of roles whose control tokens are remembered."""
LONGEST_TOKEN = 16
"""Characters that a token has at most, on average over a text."""


class ChatFormat:
    """How one tokenizer writes chats.

    Args:
        tokenizer: a fast tokenizer of transformers; whoever asks for a prompt holds it.

    Raises:
        ConfigError: it has no chat template, or one that leaves the user's words out; or it is not fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = proxy(tokenizer)
        name = tokenizer.name_or_path
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"the tokenizer of {name!r} is not a fast one; give one with tokenizer.json")
        try:
            template = tokenizer.get_chat_template()
        except ValueError:  # there is none, or several of which none is the default
            raise ConfigError(
                f"the tokenizer of {name!r} has no chat template; give a model that was taught to chat, "
                "or put its chat_template.jinja beside the tokenizer"
            ) from None
        self._control = _control_tokens(tokenizer, template)
        self._spells_bytes = _spells_bytes(tokenizer)
        self._literal: Literal | None = None
        self._own: dict[tuple[str, ...], list[int]] = {}
        self._takes_rules = self._says("system", "user")
        self._takes_answers = self._says("user", "assistant", "user")
        self._takes_openings = self._says("assistant", "user")
        self._takes_repeats = self._says("user", "user")
        if not self._takes_rules and not self._says("user"):
            raise ConfigError(
                f"the chat template of {name!r} leaves out or refuses what a user says; give a model whose "
                "template takes one turn of the role user"
            )

    def shaped(self, messages: Messages) -> Messages:
        """``messages`` as the template takes them.

        All rules stand first, as one message; where it knows no rules, the user's turn begins with them.
        Where it knows no answers, the user tells them; where it wants roles to alternate, neighbours of one
        role are one message, and before an answer that comes first there is a turn that says nothing.
        """
        rules = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        said = [message for message in messages if message["role"] != "system"]
        if not self._takes_answers:
            said = [
                _message("user", f"You said: {turn['content']}") if turn["role"] == "assistant" else turn
                for turn in said
            ]
        opened = self._takes_openings and (self._takes_rules or not rules)
        if said[0]["role"] == "assistant" and not opened:
            said = [_message("user", ""), *said]
        if rules and not self._takes_rules:
            first, *rest = said
            said = [{**first, "content": f"{rules}\n\n{first['content']}".rstrip()}, *rest]
        if not self._takes_repeats:
            said = _joined(said)
        return [_message("system", rules), *said] if rules and self._takes_rules else said

    def fitted(self, messages: Messages, turns: int, room: int) -> tuple[list[int], list[int]]:
        """Token ids of a prompt that ends with ``turns`` earlier turns and a question, and the places of
        those turns that it holds: as many as fit ``room`` tokens. The oldest are cut first, an answer goes
        with its question, and the application's turns go after all others.

        A prompt that does not fit without any turn is longer than ``room``.
        """
        head, earlier, last = messages[: len(messages) - 1 - turns], messages[-1 - turns : -1], messages[-1]
        order = self._cut_order(earlier, room)

        def kept(cut: int) -> list[int]:
            while 0 < cut < turns and earlier[order[cut]]["role"] == "assistant":
                cut += 1
            return sorted(order[cut:])

        def ids(cut: int) -> list[int]:
            return self.ids([*head, *(earlier[place] for place in kept(cut)), last])

        low, high = self._too_many([earlier[place]["content"] for place in order], room), turns
        fitting = ids(low)
        if len(fitting) <= room or low == turns:
            return fitting, kept(low)
        while high - low > 1:  # with ``low`` cut it is too long; with ``high``, it fits or nothing does
            middle = (low + high) // 2
            low, high = (low, middle) if len(ids(middle)) <= room else (middle, high)
        return ids(high), kept(high)

    def _cut_order(self, turns: Messages, room: int) -> list[int]:
        """Places of turns, those first that are cut first; what the application says is, where it alone is
        longer than ``room``."""

        def rank(place: int) -> tuple[int, int]:
            turn = turns[place]
            if turn["role"] != "system":
                return 1, place
            return (0 if self._length(turn["content"], room) > room else 2), place

        return sorted(range(len(turns)), key=rank)

    def _too_many(self, texts: Sequence[str], room: int) -> int:
        """How many of ``texts``, from the first, have to go in any case for the others to fit."""
        left = room
        for place in reversed(range(len(texts))):
            left -= self._length(texts[place], left)
            if left < 0:
                return place + 1
        return 0

    def _length(self, text: str, most: int) -> int:
        """Tokens of ``text``; it is not read much further than ``most`` tokens reach."""
        beginning = text[: LONGEST_TOKEN * max(most, 0)]
        for part in dict.fromkeys((beginning, text)):
            read = len(self._tokenizer.backend_tokenizer.encode(part, add_special_tokens=False).ids)
            if read > most:
                break
        return read

    def ids(self, messages: Messages) -> list[int]:
        """Token ids of a prompt, up to where the answer begins.

        No content becomes a control token, whatever it holds; where none spells one, the ids are those of
        the rendered chat as it is.
        """
        if self._spells_bytes:
            messages = [
                _message(message["role"], _without_bytes(message["content"])) for message in messages
            ]
        shaped = self.shaped(messages)
        ids: list[int] = self._applied(shaped, tokenize=True)
        if self._controls(ids) == self._own_controls(tuple(message["role"] for message in shaped)):
            return ids
        return self._literally(shaped)

    def literal(self) -> Literal:
        """The reader of contents that spell control tokens; made once, within seconds."""
        if self._literal is None:
            self._literal = Literal(self._tokenizer.backend_tokenizer, self._control.values())
        return self._literal

    def _applied(self, messages: Messages, tokenize: bool) -> Any:
        # Templates of hybrid models open a chain of thought unless told not to; others ignore it.
        return self._tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=tokenize,
            return_dict=False,
            enable_thinking=False,
        )

    def _says(self, *roles: str) -> bool:
        """Whether the template writes what each of these roles says."""
        from jinja2 import TemplateError

        marks = [secrets.token_hex(8) for _ in roles]
        try:
            text = self._applied(_turns(roles, marks), tokenize=False)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            return False  # a template is a program, which may refuse in its own way
        return all(mark in text for mark in marks)

    def _controls(self, ids: Sequence[int]) -> list[int]:
        control = self._control
        return [id for id in ids if id in control]

    def _own_controls(self, roles: tuple[str, ...]) -> list[int]:
        """The control tokens that the template itself writes around contents of these roles."""
        if roles not in self._own:
            if len(self._own) >= _KEPT:
                self._own.clear()
            mark = secrets.token_hex(16)
            text = self._applied(_turns(roles, [mark] * len(roles)), tokenize=False).replace(mark, "")
            self._own[roles] = self._controls(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._own[roles]

    def _literally(self, messages: Messages) -> list[int]:
        """The ids, with contents put into the rendered template behind its back and read literally."""
        literal = self.literal()
        marks = [secrets.token_hex(16) for _ in messages]
        turns = _turns([message["role"] for message in messages], [f" {mark} " for mark in marks])
        text = literal.meant(self._applied(turns, tokenize=False))
        for mark, message in zip(marks, messages, strict=True):
            # A template that strips its contents has stripped the mark.
            text = text.replace(f" {mark} ", message["content"]).replace(mark, message["content"].strip())
        ids: list[int] = literal.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def chat_format(tokenizer: Any) -> ChatFormat:
    """The `ChatFormat` of ``tokenizer``, made once; it goes with the tokenizer."""
    template, found = _formats.get(tokenizer, (None, None))
    if found is None or template != tokenizer.chat_template:
        found = ChatFormat(tokenizer)
        _formats[tokenizer] = tokenizer.chat_template, found
    return found


def prompt_ids(tokenizer: Any, messages: Messages, turns: int = 0, room: int = 0) -> list[int]:
    """Token ids of a prompt, up to where the answer begins; see `ChatFormat.ids`, and where there are
    ``turns`` that may be cut, `ChatFormat.fitted`."""
    chat = chat_format(tokenizer)
    return chat.fitted(messages, turns, room)[0] if turns else chat.ids(messages)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _turns(roles: Sequence[str], contents: Sequence[str]) -> Messages:
    return [_message(role, content) for role, content in zip(roles, contents, strict=True)]


def _joined(messages: Messages) -> Messages:
    """With neighbours of one role as one message."""
    joined: Messages = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}".strip()}
        else:
            joined.append(message)
    return joined


def _without_bytes(text: str) -> str:
    """``text`` in which no piece for a byte is spelled, in full-width signs neither."""
    plain = unicodedata.normalize("NFKC", text)
    return _BYTE.sub(r"< \1", plain) if _BYTE.search(plain) else text


def _spells_bytes(tokenizer: Any) -> bool:
    """Whether a text that spells a piece for one byte (``<0x0A>``) becomes that byte: a Unigram model takes
    its pieces wherever they stand, and these have to stay, for signs that have none."""
    backend = tokenizer.backend_tokenizer
    return type(backend.model).__name__ == "Unigram" and backend.token_to_id("<0x0A>") is not None


def _control_tokens(tokenizer: Any, template: str) -> dict[int, str]:
    """Ids and strings of the control tokens: those that the tokenizer calls special, and others that its
    template writes (``<think>``); runs of spaces and words are none, wherever they stand."""
    return {
        id: token.content
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in template and _SIGN.search(token.content))
    }


_formats: WeakKeyDictionary[Any, tuple[Any, ChatFormat]] = WeakKeyDictionary()
