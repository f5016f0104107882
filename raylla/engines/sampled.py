"""How probable sampling itself made each token: after temperature, top-k and top-p, not before.

A ratio of two policies' probabilities is of what was really drawn only if both are of the distributions
that were drawn from.  Engines tell a token's log-probability before all of that, and those of the likeliest
tokens beside it; under top-k these are all that the distribution rests on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylla.auction.checks import Array
from raylla.config import Sampling
from raylla.errors import ConfigError

MOST_TOP_K = 100
"""Likeliest tokens that an engine tells at each place, at most."""


def likeliest(sampling: Sampling) -> int:
    """How many of the likeliest tokens' log-probabilities `sampling_logprobs` needs at each place.

    Raises:
        ConfigError: nothing is sampled, or the whole vocabulary's would be needed.
    """
    if sampling.temperature == 0:
        raise ConfigError(
            "ad_llm.sampling.temperature=0: nothing is sampled, and two versions' answers have no ratio of "
            "probabilities; sample at a temperature above 0"
        )
    if sampling.top_k == 0 and sampling.temperature == 1 and sampling.top_p == 1:
        return 0
    if not 1 <= sampling.top_k <= MOST_TOP_K:
        raise ConfigError(
            f"ad_llm.sampling.top_k={sampling.top_k}: the probability of a sampled token rests on that "
            f"many others; give 1 to {MOST_TOP_K}, or 0 at temperature 1 and top_p 1"
        )
    return sampling.top_k


def left_by_top_p(logits: Array, top_p: float) -> NDArray[np.bool_]:
    """Which tokens top-p leaves of those that top-k has left, the likeliest always; ``logits`` [..., k] at
    the sampling's temperature, falling."""
    shares = np.exp(logits - logits[..., :1])
    before = np.cumsum(shares, axis=-1) - shares
    kept: NDArray[np.bool_] = before < top_p * shares.sum(axis=-1, keepdims=True)
    kept |= top_p == 1  # however unlikely: a sum of shares may swallow the last of them
    kept[..., 0] = True
    return kept


def sampling_logprobs(own: ArrayLike, best: ArrayLike, sampling: Sampling) -> tuple[Array, int]:
    """Log-probability [t] with which sampling draws each of t tokens, in nats, and how many of them the
    cuts (top-k, then top-p, as vLLM applies them) leave out.

    ``own`` [t] are the tokens' log-probabilities at temperature 1 without cuts, ``best`` [t, k] those of
    the k = `likeliest` tokens at each place, in any order.  A token that is left out is given what it would
    have, were it alone added to those that are not: rounding may push what was drawn over the edge.
    """
    own = np.asarray(own, np.float64)
    if not likeliest(sampling):
        return own, 0
    own = own / sampling.temperature
    best = -np.sort(-np.asarray(best, np.float64), axis=1) / sampling.temperature
    peak = best[:, :1]
    kept = left_by_top_p(best, sampling.top_p)
    least = np.where(kept, best, np.inf).min(axis=1)
    outside = own < least
    total = np.where(kept, np.exp(best - peak), 0).sum(axis=1)
    total += np.where(outside, np.exp(own - peak[:, 0]), 0)
    return own - peak[:, 0] - np.log(total), int(outside.sum())
