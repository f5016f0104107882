"""Logged auctions as another version would have held them, in a process that ends with its work.

    job ──▶ [engine: the log's version reads its answers, the other reads them and writes its own] ──▶ parts

How probable each of two versions makes a logged answer is asked of both, at the same engine: the token ids
that were sampled are in the auction's record, whatever was repaired of their text.  Auctions come in parts,
so that what is done by a deadline is whole.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from raylla import models
from raylla.auction import Parsed, parse, penalty
from raylla.config import Config
from raylla.engines import Engine, Given, Request, Scored, open_engine
from raylla.errors import RayllaError
from raylla.models import read_weights
from raylla.records import Prediction
from raylla.reward.rows import ClickRow, click_rows
from raylla.runs.versions import Version
from raylla.serving.money import pricing
from raylla.serving.money.money import to_units
from raylla.serving.money.records import Candidate, PriceRule, ServedAuction, question_of
from raylla.world.bids import seed_of

TOGETHER = 32
"""Auctions that are rewritten together."""
CUT_SHORT = "cut short by their requests"
TOO_LONG = "too long to be written again"
EMPTY = "without an answer"
REFUSED = "refused by the engine"
_DEAF = (BrokenPipeError, ConnectionResetError)
"""What sending meets where nobody waits any longer."""


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What is asked: the version that wrote ``auctions``, the one that shall write them anew, and where the
    pCTR model is that rates its answers."""

    config: Config
    old: Version
    new: Version
    pctr: str
    auctions: tuple[ServedAuction, ...]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """One auction: log-probability of its answer under both versions as sampled (-inf: the new one cannot
    write it); whether rounding pushed a token of it over the edge of the cuts; and what the new version's
    own answer earns, `outcome`."""

    auction_id: str
    old_logprob: float
    new_logprob: float
    on_the_edge: bool
    gains: list[list[float]]
    known: list[float]


@dataclass(frozen=True, slots=True)
class RewrittenPart:
    """Some of the auctions, and how many were left out, by reason."""

    rewritten: tuple[Rewritten, ...]
    left_out: dict[str, int]


def outcome(
    rule: PriceRule,
    share: float,
    unit: int,
    shown: Iterable[tuple[Candidate, Prediction]],
    punished: float,
    broken: int,
) -> tuple[list[list[float]], list[float]]:
    """An answer's gains as predicted, mean, low and high of each of `deploy.MEASURES`, and what of these is
    known without clicks, in bid units.

    Args:
        share: mu of the rule `resampled`.
        unit: what a unit of bids is worth, in micros.
        shown: its placed ads, and how probable a click on each is.
        punished: its penalty, lambda s_resp.
        broken: its broken placements.
    """
    gains = np.zeros((3, 5))
    offered = entered = 0.0
    for candidate, rate in shown:
        bid, resampled = candidate.listing.bid_micros, candidate.resampled
        # Under `reserve` who competes makes the price, whatever the answer says.
        quoted = candidate.price_micros
        micros = pricing.price(rule, bid, pctr=rate.mean, resampled=resampled, mu=share, quoted=quoted)
        price = to_units(micros, unit)
        worth = to_units(candidate.bid_micros, unit)
        chances = np.array([rate.mean, rate.low, rate.high])
        at_once = pricing.charged_at(rule) == "impression"  # a gain even so: budgets may not hold it
        paid = price * (np.ones(3) if at_once else chances)
        gains[:, 0] += paid if price >= 0 else paid[[0, 2, 1]]  # the low end of a rebate is its largest
        gains[:, 3] += worth * chances
        offered += to_units(bid, unit) * rate.mean
        entered += worth * rate.mean
    return gains.tolist(), [0.0, offered, entered - punished, -punished, float(broken)]


def rewrite(pipe: Connection, job: Rewriting) -> None:
    """What the process does: parts through ``pipe``, then None; an error of raylla's own in their place."""
    try:
        engine = open_engine(
            models.resolve(job.config.ad_llm.path, "ad_llm.path"), job.config.engine, job.config.seed
        )
        for part in rewritten_parts(engine, job):
            pipe.send(part)
        pipe.send(None)
    except RayllaError as error:
        with contextlib.suppress(*_DEAF):
            pipe.send(error)
    except _DEAF:
        return


def rewritten_parts(engine: Engine, job: Rewriting) -> Iterator[RewrittenPart]:
    """The auctions of ``job``, `TOGETHER` at a time in their order.

    Raises:
        ConfigError: sampling's probabilities cannot be told, or the encoder is not there.
        WeightError: a version cannot be loaded, or does not reproduce its probe.
        RunError: the pCTR model cannot be read.
    """
    from raylla.reward.trainer import RewardTrainer

    config = job.config
    engine.load(read_weights(job.old[0].path), job.old[1])
    why = {auction.id: _unfit(auction, config) for auction in job.auctions}
    fit = [auction for auction in job.auctions if why[auction.id] is None]
    before = {scored.id: scored for scored in engine.score([_given(auction, config) for auction in fit])}
    whole = [
        auction
        for auction in fit
        if before[auction.id].ended or before[auction.id].tokens == config.ad_llm.sampling.max_tokens
    ]
    left_out = Counter(reason for reason in why.values() if reason is not None)
    left_out[CUT_SHORT] = len(fit) - len(whole)
    yield RewrittenPart((), dict(+left_out))
    engine.load(read_weights(job.new[0].path), job.new[1])
    predictor = RewardTrainer(models.resolve(config.pctr.encoder, "pctr.encoder"), config.pctr, config.seed)
    predictor.load(job.pctr)
    for start in range(0, len(whole), TOGETHER):
        some = whole[start : start + TOGETHER]
        after = {
            scored.id: scored for scored in engine.score([_given(auction, config) for auction in some])
        }
        texts = _answers(engine, some, config)
        refused = sum(auction.id not in texts for auction in some)
        some = [auction for auction in some if auction.id in texts]
        read = {auction.id: _read(auction, texts[auction.id]) for auction in some}
        rows = {auction.id: _rows(auction, texts[auction.id], read[auction.id]) for auction in some}
        rates = iter(predictor.predict_intervals([row for auction in some for row in rows[auction.id]]))
        chances = {auction.id: [next(rates) for _ in rows[auction.id]] for auction in some}
        yield RewrittenPart(
            tuple(
                _rewritten(
                    auction,
                    before[auction.id],
                    after[auction.id],
                    read[auction.id],
                    chances[auction.id],
                    config,
                )
                for auction in some
            ),
            {REFUSED: refused} if refused else {},
        )


def _unfit(auction: ServedAuction, config: Config) -> str | None:
    """Why the answer cannot be read, or no whole one be written in its place: a request may have had more
    room for its prompt, by asking for a shorter one.  How long the answer became decides nothing."""
    if not auction.token_ids:
        return EMPTY
    longest = max(len(auction.token_ids), config.ad_llm.sampling.max_tokens)
    fits = len(auction.prompt_token_ids) + longest < config.engine.max_model_len
    return None if fits else TOO_LONG


def _given(auction: ServedAuction, config: Config) -> Given:
    return Given(
        auction.id,
        [],
        auction.token_ids,
        prompt_token_ids=auction.prompt_token_ids,
        sampling=config.ad_llm.sampling,
    )


def _answers(engine: Engine, auctions: Sequence[ServedAuction], config: Config) -> dict[str, str]:
    """Auction id -> what the engine's version writes in its place; without those that it refuses."""
    requests = [
        Request(
            auction.id,
            [],
            1,
            seed_of(config.seed, f"estimate/{auction.id}"),
            prompt_token_ids=auction.prompt_token_ids,
        )
        for auction in auctions
    ]
    return {
        generated.request_id: "".join(draw.text for draw in generated.completions)
        for generated in engine.generate(requests, config.ad_llm.sampling)
        if generated.completions
    }


def _read(auction: ServedAuction, text: str) -> Parsed:
    """What another answer to an auction's question places."""
    return parse(text, [candidate.listing.ad for candidate in auction.candidates])


def _rows(auction: ServedAuction, text: str, parsed: Parsed) -> list[ClickRow]:
    """What the pCTR model reads of another answer to an auction's question."""
    ads = {candidate.listing.ad.id: candidate.listing.ad for candidate in auction.candidates}
    query, profile = question_of(auction)
    return click_rows("", query, profile, text, parsed.placements, ads, None)


def _rewritten(
    auction: ServedAuction,
    before: Scored,
    after: Scored,
    parsed: Parsed,
    chances: Sequence[Prediction],
    config: Config,
) -> Rewritten:
    candidates = {candidate.listing.ad.id: candidate for candidate in auction.candidates}
    gains, known = outcome(
        auction.price_rule,
        auction.resample_share or 0.0,
        config.serving.micros_per_unit,
        [(candidates[ad], rate) for ad, rate in zip(parsed.ad_ids, chances, strict=True)],
        config.penalty.weight * penalty(parsed, config.penalty),
        len(parsed.violations),
    )
    written = -math.inf if after.outside else after.logprob
    return Rewritten(auction.id, before.logprob, written, before.outside > 0, gains, known)
