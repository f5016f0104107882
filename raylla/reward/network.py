"""The pCTR network: the paper's MLP over encodings and embeddings, and beside it the cues."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raylla import config
from raylla.reward.cues import Cues, CuesEnsemble, Dense, Words, linears

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
        self.texts = texts
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
        projected = {name: self.project[name](texts[name]) for name in self.texts}
        parts = [*projected.values(), self.users(user), self.ads(ad)]
        if "ad_text" in projected:
            parts.append(projected["query"] * projected["ad_text"])
        logits: Tensor = self.out(self.mlp(torch.cat(parts, dim=1))).squeeze(1)
        return logits if self.cues is None else logits + self.cues(structure, words)

    def grow(self, users: int, ads: int) -> None:
        """Enlarge the tables; new rows start as the shared row, which is what they were so far."""
        self.users = _grown(self.users, users)
        self.ads = _grown(self.ads, ads)


class Ensemble:
    """Networks of one shape at once, to predict with; they must not change meanwhile.

    One network over an answer's few rows is all overhead, one small operation after the other; a
    batched one over all members costs little more than a single network.
    """

    @torch.no_grad()
    def __init__(self, members: Sequence[PctrNetwork]) -> None:
        """``members`` share their texts, table sizes and settings."""
        first = members[0]
        self._texts = first.texts
        by_text = list(zip(*(linears(member.project.values()) for member in members), strict=True))
        self._project = torch.stack([torch.cat([linear.weight for linear in text]).T for text in by_text])
        self._bias = torch.stack([torch.cat([linear.bias for linear in text]) for text in by_text])[:, None]
        self._members = len(members)
        self._users = torch.stack([member.users.weight for member in members])
        self._ads = torch.stack([member.ads.weight for member in members])
        layers = zip(*(linears(member.mlp) for member in members), strict=True)
        self._hidden = [Dense(layer) for layer in layers]
        self._out = Dense([member.out for member in members])
        cues = [member.cues for member in members if member.cues is not None]
        self._cues = CuesEnsemble(cues) if cues else None

    @torch.inference_mode()
    def __call__(
        self, texts: dict[str, Tensor], user: Tensor, ad: Tensor, structure: Tensor, words: Words
    ) -> Tensor:
        """Logits [M, N]; see `PctrNetwork.forward`."""
        encoded = torch.stack([texts[name] for name in self._texts])
        # [texts, N, M x TEXT_DIM] to [M, texts, N, TEXT_DIM]
        projected = torch.baddbmm(self._bias, encoded, self._project)
        projected = projected.unflatten(2, (self._members, TEXT_DIM)).permute(2, 0, 1, 3)
        by_name = dict(zip(self._texts, projected.unbind(dim=1), strict=True))
        parts = [*by_name.values(), self._users[:, user], self._ads[:, ad]]
        if "ad_text" in by_name:
            parts.append(by_name["query"] * by_name["ad_text"])
        values = torch.cat(parts, dim=2)
        for layer in self._hidden:
            values = torch.relu(layer(values))
        logits: Tensor = self._out(values).squeeze(2)
        return logits if self._cues is None else logits + self._cues(structure, words)


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
