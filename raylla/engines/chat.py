"""Chat messages as a tokenizer's own template shapes them, and their token ids."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, proxy

from raylla.errors import ConfigError
from raylla.literal import Literal
from raylla.world.prompts import Messages

_SIGN = re.compile(r"[^\w\s]")


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
        self._literal: Literal | None = None
        self._own: dict[tuple[str, ...], list[int]] = {}
        self._takes_rules = self._says("system", "user")
        if not self._takes_rules and not self._says("user"):
            raise ConfigError(
                f"the chat template of {name!r} leaves out or refuses what a user says; give a model whose "
                "template takes one turn of the role user"
            )

    def shaped(self, messages: Messages) -> Messages:
        """``messages`` as the template takes them: where it knows no rules, the user's turn begins with
        them."""
        if self._takes_rules or messages[0]["role"] != "system":
            return messages
        rules, first, *rest = messages
        return [{**first, "content": f"{rules['content']}\n\n{first['content']}"}, *rest]

    def ids(self, messages: Messages) -> list[int]:
        """Token ids of a prompt, up to where the answer begins.

        No content becomes a control token, whatever it holds; where none spells one, the ids are those of
        the rendered chat as it is.
        """
        shaped = self.shaped(messages)
        ids: list[int] = self._applied(shaped, tokenize=True)
        if self._controls(ids) == self._own_controls(tuple(one["role"] for one in shaped)):
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
        except TemplateError:
            return False
        return all(mark in text for mark in marks)

    def _controls(self, ids: Sequence[int]) -> list[int]:
        control = self._control
        return [id for id in ids if id in control]

    def _own_controls(self, roles: tuple[str, ...]) -> list[int]:
        """The control tokens that the template itself writes around contents of these roles."""
        if roles not in self._own:
            mark = secrets.token_hex(16)
            text = self._applied(_turns(roles, [mark] * len(roles)), tokenize=False).replace(mark, "")
            self._own[roles] = self._controls(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._own[roles]

    def _literally(self, messages: Messages) -> list[int]:
        """The ids, with contents put into the rendered template behind its back and read literally."""
        literal = self.literal()
        marks = [secrets.token_hex(16) for _ in messages]
        turns = _turns([one["role"] for one in messages], [f" {mark} " for mark in marks])
        text = literal.meant(self._applied(turns, tokenize=False))
        for mark, one in zip(marks, messages, strict=True):
            # A template that strips its contents has stripped the mark.
            text = text.replace(f" {mark} ", one["content"]).replace(mark, one["content"].strip())
        ids: list[int] = literal.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def chat_format(tokenizer: Any) -> ChatFormat:
    """The `ChatFormat` of ``tokenizer``, made once; it goes with the tokenizer."""
    template, found = _formats.get(tokenizer, (None, None))
    if found is None or template != tokenizer.chat_template:
        found = ChatFormat(tokenizer)
        _formats[tokenizer] = tokenizer.chat_template, found
    return found


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a prompt, up to where the answer begins; see `ChatFormat.ids`."""
    return chat_format(tokenizer).ids(messages)


def _turns(roles: Sequence[str], contents: Sequence[str]) -> Messages:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _control_tokens(tokenizer: Any, template: str) -> dict[int, str]:
    """Ids and strings of the control tokens: those that the tokenizer calls special, and others that its
    template writes (``<think>``); runs of spaces and words are none, wherever they stand."""
    return {
        id: token.content
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in template and _SIGN.search(token.content))
    }


_formats: WeakKeyDictionary[Any, tuple[Any, ChatFormat]] = WeakKeyDictionary()
