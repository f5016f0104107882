"""Several bidders' language models as one: the token auction (Duetting et al., arXiv 2310.10826), pure.

n bidders with bids b [n] and next-token distributions p [n, m] over one list of m tokens.  ``race`` [n]
is Exp(1) noise for each bidder and ``noise`` [m] Gumbel noise for each token, fresh for each token of a
text, so that every outcome is a function of its arguments.  Sampling is stable, the paper's condition for
a second price: while one bid rises and the noise stays, the drawn token changes only for one that its
bidder finds likelier, beside what its rivals find, than the last; so there is a least bid for what it has.
The paper shows that stable sampling exists; these two ways to do it, by Gumbel noise, are ours.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction.checks import Array, ending, numbers

Aggregation = Literal["linear", "log-linear"]
AGGREGATIONS: tuple[Aggregation, ...] = ("linear", "log-linear")
_LEAST_NOISE = float(np.finfo(np.float64).tiny)


def log_linear(log_p: ArrayLike, bids: ArrayLike) -> Array:
    """log q [m] of q ∝ prod_i p_i^(b_i / B), from log p [n, m]; bidders of bid 0 have no part in it.

    Raises:
        ValueError: nobody bids above 0, a bid is negative, the shapes do not fit, or no token is possible
            for all.
    """
    log_p, shares = _bidders(log_p, bids)
    logits: Array = shares[shares > 0] @ log_p[shares > 0]
    if not (logits > -np.inf).any():
        raise ValueError("log_p: no token is possible for all bidders; give every token a chance")
    logits -= np.logaddexp.reduce(logits)
    return logits


def race_winner(bids: ArrayLike, qualities: ArrayLike, race: ArrayLike) -> tuple[int, float]:
    """The bidder drawn with probability in proportion to b_i quality_i, and the least bid at which it would
    still be: the best of the others', per its own quality and noise, at most its bid.

    It is who has the highest b_i quality_i / race_i; all three are [n].  With qualities of 1, a token of
    the winner's model is one of the linear aggregate, q = sum_i b_i p_i / B.

    Raises:
        ValueError: no bid times quality is above 0, a number is negative, or the shapes do not fit.
    """
    bids = numbers("bids", bids, 0)
    worth = ending("qualities", numbers("qualities", qualities, 0), *bids.shape)
    worth = worth / ending("race", numbers("race", race, _LEAST_NOISE), *bids.shape)
    scores = bids * worth
    if not scores.any():
        raise ValueError(f"bids={bids.tolist()}: give one above 0 to who has a quality above 0")
    winner = int(scores.argmax())
    rival = np.delete(scores, winner).max(initial=0.0)
    return winner, float(min(rival / worth[winner], bids[winner]))


def log_linear_token(log_p: ArrayLike, bids: ArrayLike, noise: ArrayLike) -> int:
    """The place of the token drawn from `log_linear` of log p [n, m] (Gumbel-max).

    Raises:
        ValueError: as `log_linear`.
    """
    log_q = log_linear(log_p, bids)
    return int((log_q + ending("noise", numbers("noise", noise), *log_q.shape)).argmax())


def keeping_bid(log_p: ArrayLike, bids: ArrayLike, noise: ArrayLike, bidder: int) -> float:
    """The least bid of ``bidder`` at which `log_linear_token` still draws what it draws, at most its bid.

    Derivation: with w = b_i / B every token's score (1 - w) a_t + w s_t is a line in w, where a is the
    others' aggregate and s the bidder's own log p, both with the noise.  The drawn token is on the upper
    envelope of these lines from where it crosses the last one of lower slope: w = a / (a + d), where it
    trails by a at w = 0 and leads by d at w = 1.  So the slope of what is drawn, log p_i - log p_-i, rises
    with the bid.

    Raises:
        ValueError: as `log_linear`, or a log-probability is infinite.
    """
    log_p, shares = _bidders(numbers("log_p", log_p), bids)
    token, share, bid = log_linear_token(log_p, bids, noise), shares[bidder], np.asarray(bids)[bidder]
    rest = np.delete(shares, bidder)
    if share == 0 or not rest.any():
        return 0.0
    others = rest @ np.delete(log_p, bidder, axis=0) / rest.sum() + np.asarray(noise)
    own = log_p[bidder] + np.asarray(noise)
    trails, leads = others - others[token], own[token] - own
    first = np.divide(trails, trails + leads, out=np.zeros_like(trails), where=trails > 0).max()
    if first >= share:  # an equal score, but for rounding
        return float(bid)
    return float(min(first / (1 - first) * (1 - share) / share * bid, bid))


def _bidders(log_p: ArrayLike, bids: ArrayLike) -> tuple[Array, Array]:
    bids = numbers("bids", bids, 0)
    log_p = np.asarray(log_p, dtype=np.float64)
    if log_p.ndim != 2 or bids.shape != log_p.shape[:1] or not (log_p <= 1e-9).all():
        raise ValueError(f"log_p has shape {log_p.shape}; give a row of logs of probabilities for each bid")
    if not bids.any():
        raise ValueError(f"bids={bids.tolist()}: give one above 0, or there is nobody to aggregate")
    shares: Array = bids / bids.sum()
    return log_p, shares
