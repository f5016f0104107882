"""Records in parts: each chunk's in a directory of its own, whole once it can be seen.

    records/epoch-1/sample/part-00003/   auctions, answers, clicks (parquet), judged.json, terms.json
    records/epoch-1/learn/part-00007/    rewards (parquet), groups.json

`raylla.runs.state.parts_of` lists them in the order of the plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raylla.irpo.sampling import Sampled
from raylla.irpo.schedule import Chunk
from raylla.records import Answer, Auction, Click, Planned, PreferenceGroup, Reward
from raylla.runs.state import load_records, save_records, write_text
from raylla.storage import exists, here, making, within, write_whole
from raylla.strictjson import dumps

TERMS = "terms.json"
GROUPS = "groups.json"
SAMPLE_FILE = "answers.parquet"
ORGANIC = "organic"
ORGANIC_FILE = "answers.json"


def keep_sampled(place: str, chunk: Chunk, sampled: Sampled) -> None:
    """Write what came in of a chunk, in the run at ``place``."""
    with making(_part(place, chunk.stage, chunk)) as directory:
        held = [planned.auction for planned in sampled.plan.values()]
        save_records(directory / "auctions.parquet", held, Auction)
        save_records(directory / SAMPLE_FILE, sampled.answers, Answer)
        save_records(directory / "clicks.parquet", sampled.click_records(), Click)
        write_text(directory / "judged.json", dumps(sorted(sampled.clicks)))


def keep_terms(place: str, chunk: Chunk, values: dict[str, dict[str, float]]) -> None:
    """Write the values of the reward terms beside the answers that they are of."""
    write_whole(within(_part(place, chunk.stage, chunk), TERMS), dumps(values))


def keep_learned(
    place: str, chunk: Chunk, rewards: Sequence[Reward], groups: Sequence[PreferenceGroup]
) -> None:
    """Write a chunk's rewards and its groups, which name their answers by sample id."""
    with making(_part(place, _learn(chunk), chunk)) as directory:
        save_records(directory / "rewards.parquet", rewards, Reward)
        write_text(directory / GROUPS, dumps([_flat(group) for group in groups]))


def read_chunk(place: str, chunk: Chunk, plan: Sequence[Planned], tokens: bool = True) -> Sampled:
    """What `keep_sampled` wrote of a chunk, whose auctions are ``plan``."""
    with here(_kept(place, chunk.stage, chunk, SAMPLE_FILE)) as directory:
        return read_part(directory, {planned.auction.id: planned for planned in plan}, tokens)


def read_groups(place: str, chunk: Chunk, sampled: Sampled) -> list[PreferenceGroup]:
    """What `keep_learned` wrote of a chunk's groups, with their answers from ``sampled``."""
    by_id = {answer.sample_id: answer for answer in sampled.answers}
    with here(_kept(place, _learn(chunk), chunk, GROUPS)) as directory:
        flat: list[dict[str, Any]] = json.loads((directory / GROUPS).read_text())
    return [
        PreferenceGroup(
            group["auction_id"],
            by_id[group["winner"]],
            tuple(by_id[name] for name in group["losers"]),
            group["winner_reward"],
            tuple(group["loser_rewards"]),
        )
        for group in flat
        if group["auction_id"] in sampled.plan
    ]


def read_part(directory: Path, plan: dict[str, Planned], tokens: bool = True) -> Sampled:
    """What one part holds of the auctions of ``plan``."""
    every = load_records(directory / SAMPLE_FILE, Answer, tokens)
    answers = [answer for answer in every if answer.auction_id in plan]
    own = {name: plan[name] for name in dict.fromkeys(answer.auction_id for answer in answers)}
    sampled = Sampled(own, answers[0].weight_version if answers else "", answers)
    sampled.clicks = {name: {} for name in json.loads((directory / "judged.json").read_text())}
    for click in load_records(directory / "clicks.parquet", Click):
        sampled.clicks[click.sample_id][click.ad_id] = click.clicked
        if click.probability is not None:
            sampled.probabilities.setdefault(click.sample_id, {})[click.ad_id] = click.probability
    if (directory / TERMS).is_file():
        sampled.terms = json.loads((directory / TERMS).read_text())
    return sampled


class OrganicAnswers:
    """What the organic stage kept of the run at ``place``, read when it is first asked for."""

    def __init__(self, place: str) -> None:
        self._place = within(place, "records", ORGANIC)
        self._texts: Mapping[str, Sequence[str]] | None = None

    def __call__(self, asked: Sequence[Planned]) -> list[tuple[str, ...]]:
        """The answers to each auction's question."""
        if self._texts is None:
            with here(self._place) as directory:
                self._texts = json.loads((directory / ORGANIC_FILE).read_text())
        return [tuple(self._texts[planned.query.id]) for planned in asked]


def _flat(group: PreferenceGroup) -> dict[str, Any]:
    return {
        "auction_id": group.auction_id,
        "winner": group.winner.sample_id,
        "losers": [answer.sample_id for answer in group.losers],
        "winner_reward": group.winner_reward,
        "loser_rewards": list(group.loser_rewards),
    }


def _learn(chunk: Chunk) -> str:
    return f"epoch-{chunk.epoch}/learn"


def _kept(place: str, stage: str, chunk: Chunk, name: str) -> str:
    """Where a chunk's records are: in its part, or in a stage's directory that has file ``name`` itself,
    for all of its chunks."""
    whole = within(place, "records", stage)
    return whole if exists(within(whole, name)) else _part(place, stage, chunk)


def _part(place: str, stage: str, chunk: Chunk) -> str:
    return within(place, "records", stage, chunk.part)
