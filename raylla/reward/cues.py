"""What of an impression generalizes from few clicks: shared words, tone, place in the answer.

An epoch has a few thousand impressions of a few hundred queries.  A deep network over text
encodings learns those by heart; these few numbers carry over to queries that it never saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

BUCKETS = 8192
"""Token ids are taken modulo this; bucket 0 is padding."""
STRUCTURE_DIM = 14
"""Entries of `features.structure`."""
MATCH_DIM, TONE_DIM, KINDRED_DIM, HIDDEN = 4, 4, 16, 16


@dataclass(frozen=True)
class Words:
    """Word buckets of N rows, each [N, T] with 0 for padding.

    ``ad`` is title and category, ``tone`` the ad's sentence and ``answer`` the whole answer, both
    without markup.
    """

    query: Tensor
    ad: Tensor
    category: Tensor
    tone: Tensor
    answer: Tensor

    def at(self, index: Tensor) -> Words:
        """The rows of ``index``."""
        return Words(*(getattr(self, field.name)[index] for field in fields(self)))


class Cues(nn.Module):
    """A linear layer and one small hidden layer over the cues of the chosen groups."""

    documents: Tensor
    total: Tensor

    def __init__(self, structure: bool, match: bool, tone: bool) -> None:
        """No texts counted; the tables start random and small."""
        super().__init__()
        self.groups = structure, match, tone
        width = STRUCTURE_DIM * structure + (MATCH_DIM + 1) * match + TONE_DIM * tone
        self.tone = _table(TONE_DIM, 0.05)
        self.kindred_query = _table(KINDRED_DIM, 0.3)
        self.kindred_category = _table(KINDRED_DIM, 0.3)
        self.linear = nn.Linear(width, 1)
        self.mlp = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.register_buffer("documents", torch.zeros(BUCKETS))
        self.register_buffer("total", torch.zeros(()))

    def count(self, texts: Tensor) -> None:
        """Count the words of distinct texts [U, T] in, each once a text: what is rare tells more."""
        for row in texts:
            self.documents[row.unique()] += 1
        self.total += len(texts)

    def forward(self, structure: Tensor, words: Words) -> Tensor:
        """Logits [N] from structure [N, STRUCTURE_DIM] and words."""
        parts = []
        with_structure, with_match, with_tone = self.groups
        if with_structure:
            parts.append(structure)
        if with_match:
            parts.append(self._matches(words))
        if with_tone:
            parts.append((self.tone(words.tone) * (words.tone > 0)[:, :, None]).sum(dim=1))
        cues = torch.cat(parts, dim=1)
        logits: Tensor = (self.linear(cues) + self.mlp(cues)).squeeze(1)
        return logits

    def rarity(self) -> Tensor:
        """How rare each bucket's word is [BUCKETS], in [0, 1]; 0 for padding."""
        rarity = torch.log((self.total + 1) / (self.documents + 1)) / torch.log(self.total + 2)
        rarity = rarity.clamp(0, 1)
        return torch.cat([rarity.new_zeros(1), rarity[1:]])

    def _matches(self, words: Words) -> Tensor:
        """[N, 5]: rarest shared word and shared part, of query and ad, then of answer and ad;
        and how the query's words go with the category's, as learned."""
        rarity = self.rarity()
        matches = [
            value
            for text in (words.query, words.answer)
            for value in _shared(text, words.ad, rarity[words.ad])
        ]
        asked = (self.kindred_query(words.query) * rarity[words.query][:, :, None]).sum(dim=1)
        offered = self.kindred_category(words.category) * rarity[words.category][:, :, None]
        kindred = (asked * offered.sum(dim=1)).sum(dim=1)
        return torch.stack([*(2 * value for value in matches), kindred], dim=1)


class CuesEnsemble:
    """Several `Cues` of the same groups at once, to predict with: [M, N] where each gives [N].

    What depends on the weights alone is computed here: rarities, and tables multiplied by them.
    """

    def __init__(self, members: Sequence[Cues]) -> None:
        first = members[0]
        self._structure, self._match, self._tone = first.groups
        rarity = torch.stack([member.rarity() for member in members])
        self._rarity = rarity
        self._kindred_query = (
            torch.stack([member.kindred_query.weight for member in members]) * rarity[..., None]
        )
        self._kindred_category = (
            torch.stack([member.kindred_category.weight for member in members]) * rarity[..., None]
        )
        self._tones = torch.stack([member.tone.weight for member in members])
        self._tones[:, 0] = 0  # padding
        self._linear = Dense([member.linear for member in members])
        hidden, out = zip(*(linears(member.mlp) for member in members), strict=True)
        self._hidden, self._out = Dense(hidden), Dense(out)

    def __call__(self, structure: Tensor, words: Words) -> Tensor:
        """Logits [M, N]; see `Cues.forward`."""
        parts = []
        if self._structure:
            parts.append(structure.expand(len(self._rarity), *structure.shape))
        if self._match:
            parts.append(self._matches(words))
        if self._tone:
            parts.append(self._tones[:, words.tone].sum(dim=2))
        cues = torch.cat(parts, dim=2)
        return (self._linear(cues) + self._out(torch.relu(self._hidden(cues)))).squeeze(2)

    def _matches(self, words: Words) -> Tensor:
        rarity = self._rarity[:, words.ad]
        matches = [
            value for text in (words.query, words.answer) for value in _shared(text, words.ad, rarity)
        ]
        asked = self._kindred_query[:, words.query].sum(dim=2)
        offered = self._kindred_category[:, words.category].sum(dim=2)
        return torch.stack([*(2 * value for value in matches), (asked * offered).sum(dim=2)], dim=2)


class Dense:
    """Linear layers of one shape at once: [M, N, in] to [M, N, out], each member by its own weights."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weight = torch.stack([layer.weight.T for layer in layers])
        self._bias = torch.stack([layer.bias for layer in layers])[:, None]

    def __call__(self, values: Tensor) -> Tensor:
        """``values`` through each member's layer."""
        return torch.baddbmm(self._bias, values, self._weight)


def linears(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """Those of ``modules`` that have weights, in order."""
    return [module for module in modules if isinstance(module, nn.Linear)]


def _shared(text: Tensor, ad: Tensor, rarity: Tensor) -> tuple[Tensor, Tensor]:
    """Rarest word of ``ad`` [N, Ta] that ``text`` [N, T] holds, and the share of ``rarity``
    [..., N, Ta] held."""
    held = (text[:, :, None] == ad[:, None, :]).any(dim=1) * rarity
    return held.amax(dim=-1), held.sum(dim=-1) / rarity.sum(dim=-1).clamp(min=1e-3)


def _table(dim: int, std: float) -> nn.Embedding:
    table = nn.Embedding(BUCKETS, dim)
    nn.init.normal_(table.weight, std=std)
    return table
