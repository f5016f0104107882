"""Networks evaluated together: each gives what it gives alone, whatever it is made to read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raylla import config
from raylla.reward import features
from raylla.reward.cues import BUCKETS, STRUCTURE_DIM, Words
from raylla.reward.network import Ensemble, PctrNetwork

DIM, USERS, ADS = 12, 5, 7


def member(groups: tuple[str, ...]) -> PctrNetwork:
    settings = config.Pctr.model_validate({"features": groups, "hidden": (16, 8)})
    made = PctrNetwork(features.texts(groups), DIM, USERS, ADS, settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)  # some begin at zero, and would agree by themselves
    if made.cues is not None:
        made.cues.count(words(40).query)
    return made.eval()


def words(rows: int) -> Words:
    """Padded on the right, as `features.buckets` does."""

    def buckets(longest: int) -> torch.Tensor:
        found = torch.randint(1, min(60, BUCKETS), (rows, longest))
        return found * (torch.arange(longest) < torch.randint(1, longest + 1, (rows, 1)))

    return Words(buckets(9), buckets(5), buckets(2), buckets(11), buckets(20))


@pytest.mark.parametrize(
    "groups",
    [("answer", "sentence", "ad_text", "structure", "match"), ("ad_text", "match"), ("sentence",), ()],
)
@pytest.mark.parametrize("rows", [1, 13])
def test_each_member_predicts_what_it_does_alone(groups: tuple[str, ...], rows: int) -> None:
    torch.manual_seed(len(groups) + rows)
    members = [member(groups) for _ in range(4)]
    texts = {name: torch.randn(rows, DIM) for name in features.texts(groups)}
    inputs = (
        texts,
        torch.randint(USERS, (rows,)),
        torch.randint(ADS, (rows,)),
        torch.randn(rows, STRUCTURE_DIM),
        words(rows),
    )
    with torch.no_grad():
        alone = torch.stack([one(*inputs) for one in members])
    assert alone.std(dim=0).min() > 0.01
    torch.testing.assert_close(Ensemble(members)(*inputs), alone, rtol=1e-4, atol=1e-5)
