"""The pCTR network: the paper's MLP over encodings and embeddings, and beside it the cues."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raylla import config
from raylla.reward.cues import Cues, Words

TEXT_DIM = 64
"""Width of each text encoding inside the network."""
UNSEEN = 0
"""Row of the user and ad tables for ids that training has not met."""


class PctrNetwork(nn.Module):
    """p = sigmoid(MLP([texts, query * ad text, user, ad]) + cues).

    Each text encoding [N, dim] (standardized) is projected to `TEXT_DIM`; ``texts`` names them in
    order, "query" first.  The MLP starts at zero, so that it adds to what the cues cannot say.
    """

    def __init__(
        self, texts: tuple[str, ...], dim: int, users: int, ads: int, settings: config.Pctr
    ) -> None:
        """Random weights; ``users`` and ``ads`` count table rows, the shared row 0 included."""
        super().__init__()
        self._texts = texts
        self.project = nn.ModuleDict({name: nn.Linear(dim, TEXT_DIM) for name in texts})
        self.users = _table(users, settings.user_dim)
        self.ads = _table(ads, settings.ad_dim)
        chosen = [group in settings.features for group in ("structure", "match", "sentence")]
        self.cues = Cues(*chosen) if any(chosen) else None
        width = TEXT_DIM * (len(texts) + ("ad_text" in texts)) + settings.user_dim + settings.ad_dim
        layers: list[nn.Module] = [nn.Dropout(settings.dropout)]
        for units in settings.hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.mlp = nn.Sequential(*layers)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, texts: dict[str, Tensor], user: Tensor, ad: Tensor, structure: Tensor, words: Words
    ) -> Tensor:
        """Logits [N] from encodings [N, dim] by name, table rows [N], and what `Cues` reads."""
        projected = {name: self.project[name](texts[name]) for name in self._texts}
        parts = [*projected.values(), self.users(user), self.ads(ad)]
        if "ad_text" in projected:
            parts.append(projected["query"] * projected["ad_text"])
        logits: Tensor = self.out(self.mlp(torch.cat(parts, dim=1))).squeeze(1)
        return logits if self.cues is None else logits + self.cues(structure, words)

    def grow(self, users: int, ads: int) -> None:
        """Enlarge the tables; new rows start as the shared row, which is what they were so far."""
        self.users = _grown(self.users, users)
        self.ads = _grown(self.ads, ads)


def _table(rows: int, dim: int) -> nn.Embedding:
    """A table whose rows all start alike: an id means nothing before its first click."""
    table = nn.Embedding(rows, dim)
    with torch.no_grad():
        table.weight.copy_(torch.randn(dim).mul(0.05).expand_as(table.weight))
    return table


def _grown(table: nn.Embedding, rows: int) -> nn.Embedding:
    if rows <= table.num_embeddings:
        return table
    larger = nn.Embedding(rows, table.embedding_dim)
    with torch.no_grad():
        larger.weight.copy_(table.weight[UNSEEN].expand_as(larger.weight))
        larger.weight[: table.num_embeddings] = table.weight
    return larger
