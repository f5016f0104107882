"""MOSAIC (Soumalias et al., arXiv 2405.05905): one of M sampled answers, at truthful prices.

The candidates come from a generator that does not see the bids.  ``rewards`` [n, M] are
r_i(y_j) = b_i pctr_i 1(a_i in y_j), ``log_ratio`` [M] is log pi_ref(y_j) - log pi_gen(y_j) with -inf
for an answer that cannot be returned, ``costs`` [M] is lambda s_resp(y_j), which belongs to the
weights w_j = (pi_ref / pi_gen) exp(-cost / tau); money and ``tau`` are in bid units.  ``tau`` = 0 is
the best answer of M at Clarke's prices.  `raylla.auction.optimum.effective_sample_size` says how
many candidates the log ratios, or the returned log-probabilities, are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction import ReadAnswer, optimum
from raylla.auction.checks import Array, ending, logs, numbers
from raylla.engines.protocol import Generated
from raylla.mechanisms.protocol import BASE, Backend, Choice, Offer, Prompt, Ran, ran
from raylla.records import Planned

CANDIDATES = 20
TAUS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
_GENERATOR, _ORGANIC = "generator", "organic"
REFERENCES = (_GENERATOR, _ORGANIC)
"""What the returned answer is kept close to: the generator, or the model that lists no ads."""


def log_probabilities(rewards: ArrayLike, log_ratio: ArrayLike, costs: ArrayLike, tau: float) -> Array:
    """log p [M] of returning each candidate, p_j ∝ w_j exp(sum_i r_i(y_j) / tau) (section 4).

    With ``tau`` = 0 all of it is on the largest sum of rewards less costs, and where several are
    equal it is shared in proportion to pi_ref / pi_gen.

    Raises:
        ValueError: ``tau`` is negative, no candidate can be returned, or the shapes do not fit.
    """
    rewards, log_ratio, costs, tau = _auction(rewards, log_ratio, costs, tau)
    welfare = rewards.sum(axis=0) - costs
    if tau > 0:
        return optimum.policy(log_ratio, welfare, tau)
    possible = np.where(log_ratio > -np.inf, welfare, -np.inf)
    return optimum.policy(np.where(possible == possible.max(), log_ratio, -np.inf), 0.0, 1.0)


def payments(rewards: ArrayLike, log_ratio: ArrayLike, costs: ArrayLike, tau: float) -> Array:
    """Expected payments t [n], each in [0, E_p[r_i]] for rewards of at least 0.

    t_i = E_p[r_i] - tau log Z + h_i with h_i = tau log Z_-i, which does not read r_i.
    Derivation: then t_i = tau KL(p || p_-i), and utility is tau log(Z / Z_-i) >= E_{p_-i}[r_i].
    With ``tau`` = 0 it is Clarke's: the others' best welfare less their welfare at what is returned.

    Raises:
        ValueError: as `log_probabilities`.
    """
    log_p = log_probabilities(rewards, log_ratio, costs, tau)
    rewards, log_ratio, costs, tau = _auction(rewards, log_ratio, costs, tau)
    if tau > 0:
        return optimum.truthful_prices(log_p, rewards, tau)
    others = rewards.sum(axis=0) - rewards - costs
    best = np.where(log_ratio > -np.inf, others, -np.inf).max(axis=1)
    result: Array = np.maximum(best - others @ np.exp(log_p), 0)
    return result


def price_per_click(payments: ArrayLike, rates: ArrayLike, log_p: ArrayLike) -> Array:
    """Price of each click [n], t_i / E_p[pctr_i 1(a_i in y)], at most b_i; 0 for who gets no clicks.

    ``payments`` [n] and ``log_p`` [M] are those of one auction, ``rates`` [n, M] its
    pctr_i 1(a_i in y_j).

    Raises:
        ValueError: a rate is outside [0, 1], or the shapes do not fit.
    """
    clicks = optimum.itctr(log_p, rates)
    payments = ending("payments", numbers("payments", payments, 0), *clicks.shape)
    result: Array = np.divide(payments, clicks, out=np.zeros_like(clicks), where=clicks > 0)
    return result


def _auction(
    rewards: ArrayLike, log_ratio: ArrayLike, costs: ArrayLike, tau: float
) -> tuple[Array, Array, Array, float]:
    log_ratio = logs("log_ratio", log_ratio)
    rewards = ending("rewards", numbers("rewards", rewards), len(log_ratio))
    costs = ending("costs", numbers("costs", costs), len(log_ratio))
    return np.atleast_2d(rewards), log_ratio, costs, float(numbers("tau", tau, 0))


class Mosaic:
    """MOSAIC with the base Ad-LLM as generator, its prompt listing the ads without bids.

    The reference is the generator itself, so that all ratios are 1, or the base Ad-LLM that was told
    of no ads; then an answer with ads is returned for what they are worth against how unlikely the
    organic model finds it.  Log-probabilities are the models' own, before temperature and cuts.
    Reading answers for them counts in the time, not among the generations.
    """

    name = "mosaic"

    def choices(self, epochs: int) -> Sequence[Choice]:
        """The temperature, which of the run's pCTR models scores, and the reference."""
        return tuple(
            {"tau": tau, "pctr_epoch": epoch, "reference": reference}
            for reference in REFERENCES
            for tau in TAUS
            for epoch in sorted({1, epochs})
            if tau > 0 or reference == _GENERATOR  # the best of all needs no reference
        )

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """`CANDIDATES` generations for each auction; offers are draws among them."""
        asked = [
            Prompt(auction, auction.ads, (None,) * len(auction.ads), CANDIDATES, "mosaic")
            for auction in auctions
        ]
        written = backend.write(BASE, asked)
        answers = [
            ReadAnswer.of(planned, draw.text)
            for planned, generated in zip(auctions, written, strict=True)
            for draw in generated.completions
        ]
        predicted = iter(backend.predict(answers, int(choice["pctr_epoch"])))
        spent = iter(backend.costs(answers))
        ratios = iter(_log_ratios(backend, asked, written, str(choice["reference"])))
        done = []
        for planned, generated in zip(auctions, written, strict=True):
            texts = [draw.text for draw in generated.completions]
            if not texts:
                done.append(ran((), [], 0))
                continue
            shown = [next(predicted) for _ in texts]
            costs = [next(spent) for _ in texts]
            ratio = [next(ratios) for _ in texts]
            log_p, prices = priced(planned, shown, costs, ratio, float(choice["tau"]))
            drawn = backend.generator(planned, self.name).choice(len(texts), planned.n, p=np.exp(log_p))
            notes = {
                "effective_sample_size": float(optimum.effective_sample_size(log_p)),
                "effective_sample_size_of_ratios": float(optimum.effective_sample_size(ratio)),
            }
            offers = [Offer(texts[j], prices) for j in drawn]
            done.append(ran(offers, [generated], 1, notes))
        return done


def priced(
    planned: Planned,
    shown: Sequence[Mapping[str, float]],
    costs: ArrayLike,
    log_ratio: ArrayLike,
    tau: float,
) -> tuple[Array, dict[str, float]]:
    """log p [M] of returning each candidate, of which ``shown`` are the click probabilities by ad id, and
    each ad's price per click, at most its bid; ``costs`` and ``log_ratio`` are [M]."""
    ids, bids = planned.auction.ad_ids, np.array(planned.auction.bids)
    rates = np.array([[rate.get(ad, 0.0) for rate in shown] for ad in ids])
    rewards = bids[:, None] * rates
    log_p = log_probabilities(rewards, log_ratio, costs, tau)
    owed = price_per_click(payments(rewards, log_ratio, costs, tau), rates, log_p)
    owed = np.minimum(owed, bids)  # rounding, where next to no clicks are to be paid for
    return log_p, dict(zip(ids, owed.tolist(), strict=True))


def _log_ratios(
    backend: Backend, asked: Sequence[Prompt], written: Sequence[Generated], reference: str
) -> list[float]:
    """log pi_ref(y) - log pi_gen(y) of every answer, in order."""
    draws = [
        (prompt, draw.token_ids)
        for prompt, generated in zip(asked, written, strict=True)
        for draw in generated.completions
    ]
    if reference == _GENERATOR:
        return [0.0] * len(draws)
    organic = [(replace(prompt, ads=(), bids=()), tokens) for prompt, tokens in draws]
    pairs = zip(backend.score(BASE, organic), backend.score(BASE, draws), strict=True)
    return [ours - theirs for ours, theirs in pairs]
