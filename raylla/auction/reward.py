"""The reward of one answer: expected value of its ads minus what it costs the reader (Eq. 5, 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raylla import config
from raylla.auction.markup import Parsed
from raylla.records import Reward


def penalty(parsed: Parsed, settings: config.Penalty) -> float:
    """s_resp(y) of Eq. 8, in bid units: every ad, every ad beyond the free ones, every violation."""
    placed = len(parsed.placements)
    return (
        settings.per_ad * placed
        + settings.per_excess_ad * max(0, placed - settings.free_ads)
        + settings.per_violation * len(parsed.violations)
    )


def reward(
    parsed: Parsed,
    bids: Mapping[str, float],
    pctr: Mapping[str, float],
    settings: config.Penalty,
    terms: Sequence[float] = (),
    *,
    sample_id: str = "",
) -> Reward:
    """R(y) = sum_i b_i pctr_i 1(a_i in y) - lambda s_resp(y) (Eq. 5), and ``terms``, in bid units.

    ``bids`` (per click) and ``pctr`` (in [0, 1]) are looked up for the placed ads; ``terms`` are weighted
    already.  The record's ``penalty`` is lambda s_resp, so that its total is R(y).

    Raises:
        KeyError: a placed ad has no bid or no predicted rate.
    """
    value = sum(bids[ad_id] * pctr[ad_id] for ad_id in parsed.ad_ids)
    return Reward(sample_id, value, settings.weight * penalty(parsed, settings), tuple(terms))
