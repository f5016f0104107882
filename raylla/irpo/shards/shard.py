"""A shard: it owns a slice of the rollout and judge workers and of an epoch's auctions, and their records.

What it has sampled of a chunk is written and forgotten; what is asked of it later is read again.  So it
holds no more than what is in hand, and another can take its place.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raylla.actors.pool import Pool, gather
from raylla.config import Config
from raylla.engines.protocol import Generated, Probe, Request
from raylla.irpo import results
from raylla.irpo.dispatch import dealt
from raylla.irpo.sampling import Chunked, Sampled, Stream
from raylla.irpo.schedule import Chunk, plan_chunk
from raylla.irpo.scoring import (
    Valuer,
    asked_rows,
    groups_of,
    judged_rates,
    predicted_rates,
    rows_of,
    score,
)
from raylla.irpo.served import served_answers
from raylla.irpo.shards import parts
from raylla.irpo.shards.grouping import group_part
from raylla.irpo.shards.notes import News, Notes, Whole
from raylla.irpo.shards.squad import MakeSquad, Squad, Witness
from raylla.policy.groups import token_group
from raylla.records import Prediction, PreferenceGroup, WeightVersion
from raylla.world import World, bids
from raylla.world.retrieval import Vectors


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """What scoring a chunk came to: ``members`` of its groups, each by its auction's place in the chunk and
    its draw; ``totals`` of its answers' rewards, and the values of reward ``terms`` by name, answer after
    answer."""

    groups: int
    pairs: int
    members: array[int]
    totals: Sequence[float] = ()
    terms: tuple[tuple[str, Sequence[float]], ...] = ()

    def sample_ids(self, chunk: Chunk) -> Iterator[str]:
        """Ids of the members of the groups of ``chunk``, which this is of."""
        auctions, numbers = chunk.auction_ids, iter(self.members)
        for place, draw in zip(numbers, numbers, strict=True):
            yield bids.sample_id(auctions[place], draw)


class Shard:
    """A worker of a `Pool`, on Ray or in the driver's process.

    Args:
        first: the weights that its engines begin with.
        make: what makes its engines.
        watch: who hears of its workers; none: what it notes goes to the driver with the news.
    """

    def __init__(
        self, config: Config, first: WeightVersion, make: MakeSquad, watch: Witness | None = None
    ) -> None:
        self._config = config
        self._first = first
        self._make = make
        self._notes = Notes()
        self._watch: Witness = watch or self._notes
        self._squad: Squad | None = None
        self._whole: list[Whole] = []
        self._lock = threading.Lock()

    def ready(self) -> None:
        """At once: its engines are started by `open`."""

    def open(self, number: int, of: int) -> News:
        """Be shard ``number`` of ``of``: start the engines, and wait for them."""
        if self._squad is None:
            squad = self._make(self._config, self._first, self._watch, number, of)
            squad.start()
            self._squad = squad
        return self._notes.take()

    def refresh(self, version: WeightVersion, probe: Probe | None) -> News:
        """`Squad.refresh`."""
        self.squad.refresh(version, probe)
        return self._notes.take()

    def ask(self, requests: list[Request]) -> Iterator[Generated]:
        """The User-LLM's own words, from this shard's judges."""
        yield from self._dealt(self.squad.judges, "ask", requests)

    def answer(self, requests: list[Request], version: str) -> Iterator[Generated]:
        """The Ad-LLM's answers, which are not judged."""
        yield from self._dealt(self.squad.rollouts, "generate", requests, version)

    def begin(self, world: World, place: str) -> News:
        """Begin an epoch of the run at ``place`` with the live weights."""
        self._world, self._place = world, place
        self._valuer: Valuer | None = None
        self._stream = Stream(self._config, world, self.squad, self._watch, self._keep)
        return self._notes.take()

    def sample(self, chunks: list[Chunk], last: bool, hold: float) -> Iterator[News]:
        """Sample these chunks and write them; what is new every ``hold`` seconds.

        After the ``last`` chunks of an epoch engines that have nothing to do are ended at once.
        """
        served = [name for chunk in chunks if not chunk.n for name in chunk.auction_ids]
        self._stream.add(chunks, served_answers(self._place, set(served)) if served else {})
        more = True
        while more:
            self._stream.work(hold)
            more = self._stream.busy
            if last and not more:
                self._stream.close()
            news = self._notes.take()
            news.whole, self._whole = self._whole, []
            yield news

    def rows(self, chunk: Chunk) -> Iterator[Any]:
        """How many judged answers a chunk has, and how many of them place an ad; then its rows, for the
        reward trainer."""
        sampled = self._read(chunk, tokens=False)
        if chunk.phase == "preference":
            rows = asked_rows(self._world, sampled)
        else:
            rows = rows_of(self._world, sampled, chunk.phase)
        read = sum(1 for _ in sampled.judged(chunk.phase))
        yield read, len({row.sample_id for row in rows})
        yield rows

    def score(
        self, chunk: Chunk, predictions: list[Prediction] | None, encoder: Pool | None
    ) -> Iterator[Any]:
        """`ScoredChunk`, once the rewards and groups of a phase-2 chunk are written; then its groups.

        Without ``predictions`` the judge's word is what counts.

        Raises:
            RunError: a group is malformed, or a reward term fails.
        """
        with self._lock:
            config, sampled = self._config, self._read(chunk)
            if predictions is None:
                rates = judged_rates(config, sampled)
            else:
                rates = predicted_rates(sampled, predictions, config.irpo.risk)
            terms = self._values(sampled, chunk, encoder)
            rewards = score(config, sampled, rates, terms)
            groups = groups_of(config, sampled, rewards)
            for group in groups:
                token_group(group)
            parts.keep_learned(self._place, chunk, list(rewards.values()), groups)
            totals = array("d", (reward_of.total for reward_of in rewards.values()))
            valued = tuple(
                (name, array("d", (values[name] for values in terms.values())))
                for name in config.term_weights
            )
            scored = _counted(chunk, groups, totals, valued)
            part = group_part(self._config, groups, sampled)
        yield scored
        yield part

    def groups(self, chunk: Chunk) -> Iterator[Any]:
        """`ScoredChunk` and the groups of a chunk that was scored before, from its records."""
        sampled = self._read(chunk)
        groups = parts.read_groups(self._place, chunk, sampled)
        yield _counted(chunk, groups)
        yield group_part(self._config, groups, sampled)

    def tested(self, chunk: Chunk, encoder: Pool | None) -> Iterator[Any]:
        """The figures of a test chunk's queries, once the values of its reward terms are written; then its
        rows, for the reward trainer."""
        with self._lock:
            sampled = self._read(chunk, tokens=False)
            sampled.terms = self._values(sampled, chunk, encoder)
            if sampled.terms:
                parts.keep_terms(self._place, chunk, sampled.terms)
            table = results.tested(self._config, self._world, sampled)
            rows = rows_of(self._world, sampled, "test")
        yield table
        yield rows

    def stop(self) -> None:
        """End the engines; safe to call twice."""
        if self._squad is not None:
            self._squad.stop()

    @property
    def squad(self) -> Squad:
        """The engines."""
        assert self._squad is not None, "a shard is opened before it is asked"
        return self._squad

    def _keep(self, chunked: Chunked, sampled: Sampled) -> None:
        chunk = chunked.chunk
        parts.keep_sampled(self._place, chunk, sampled)
        self._whole.append(
            Whole(
                chunk.number,
                chunk.phase,
                len(sampled.answers),
                tuple(chunked.refused),
                len(sampled.clicks),
                chunked.judged,
                (chunked.dropped["answer"], chunked.dropped["judgement"]),
            )
        )

    def _read(self, chunk: Chunk, tokens: bool = True) -> Sampled:
        return parts.read_chunk(self._place, chunk, plan_chunk(self._config, self._world, chunk), tokens)

    def _values(self, sampled: Sampled, chunk: Chunk, encoder: Pool | None) -> dict[str, dict[str, float]]:
        if encoder is None:
            return {}
        if self._valuer is None:
            self._valuer = Valuer(self._config, self._world, self._place)

        def encode(texts: list[str]) -> Vectors:
            call = encoder.call(encoder.members[0], "encode", texts)
            what = "the reward trainer's encode"
            vectors: Vectors = gather([call], self._config.deadlines.reward, what)[0]
            return vectors

        return self._valuer.values(sampled, chunk.phase, encode)

    def _dealt(self, pool: Pool, method: str, requests: list[Request], *args: Any) -> Iterator[Generated]:
        deadline = self._config.deadlines.sample
        squad = self.squad
        yield from dealt(pool, method, requests, *args, restart=squad.restart, deadline=deadline)


def _counted(
    chunk: Chunk,
    groups: Sequence[PreferenceGroup],
    totals: Sequence[float] = (),
    terms: tuple[tuple[str, Sequence[float]], ...] = (),
) -> ScoredChunk:
    places = {name: place for place, name in enumerate(chunk.auction_ids)}
    members = array("I")
    for group in groups:
        for answer in (group.winner, *group.losers):
            members.extend((places[group.auction_id], answer.draw))
    return ScoredChunk(len(groups), sum(len(group.losers) for group in groups), members, totals, terms)
