"""Text from outside as token ids, none of which is a control token, whatever the text holds.

A tokenizer finds its control tokens in any text that spells them: as added tokens, as entries of its own
vocabulary (SentencePiece's ``</s>``), or after normalization (full-width signs, another case).  Lists and
escapes miss some of these ways.  So text is read by a copy of the tokenizer in which each control token has
a name that nobody can guess: no text spells it, and everything else is tokenized as before.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer


class Literal:
    """A copy of ``backend`` that reads text literally; it neither truncates nor pads.

    Args:
        backend: of a fast tokenizer.
        more: added tokens that are control tokens although the tokenizer does not call them special.
    """

    def __init__(self, backend: Tokenizer, more: Collection[str] = ()) -> None:
        made = json.loads(backend.to_str())
        self._names = {
            token["content"]: f"\ue000{secrets.token_hex(16)}\ue001"
            for token in made["added_tokens"]
            if token["special"] or token["content"] in more
        }
        _rename(made, self._names)
        self.tokenizer = Tokenizer.from_str(json.dumps(made))
        for name, other in self._names.items():
            assert self.tokenizer.token_to_id(other) == backend.token_to_id(name), name
        longest_first = sorted(self._names, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def meant(self, text: str) -> str:
        """``text``, of a template, such that its control tokens are read as what they are."""
        return self._written.sub(lambda match: self._names[match.group()], text)


def _rename(made: dict[str, Any], names: dict[str, str]) -> None:
    """Give control tokens other names everywhere in a tokenizer's JSON; ids stay."""
    made["truncation"] = made["padding"] = None
    for token in made["added_tokens"]:
        if token["content"] in names:
            # Looked for in the text as it comes, before any normalization, and at any place.
            token |= {"content": names[token["content"]], "normalized": False, "single_word": False}
    model = made["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in vocabulary.items()}
    else:  # Unigram: pieces with their scores, by id
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if names.keys().isdisjoint((*pair, "".join(pair)))
        ]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
