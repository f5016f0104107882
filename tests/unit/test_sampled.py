"""How probable sampling makes a token, against the whole vocabulary's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.config import Sampling
from raylla.engines.sampled import MOST_TOP_K, likeliest, sampling_logprobs
from raylla.errors import ConfigError


def drawn_from(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What vLLM draws a token from: temperature, then top-k, then top-p, over all tokens."""
    scaled = logits / sampling.temperature
    order = np.argsort(-scaled)[: sampling.top_k or None]
    shares = np.exp(scaled[order] - scaled[order[0]])
    shares /= shares.sum()
    ascending = np.cumsum(shares[::-1])[::-1]  # of a token and all that are less likely
    kept = ascending > 1 - sampling.top_p
    kept[0] = True
    found = np.zeros(len(logits))
    found[order[kept]] = shares[kept] / shares[kept].sum()
    return found


@given(
    st.integers(0, 10**6),
    st.floats(0.2, 2.0),
    st.sampled_from([1.0, 0.95, 0.8, 0.5]),
    st.integers(1, 12),
)
def test_sampled_tokens_have_the_probability_that_they_were_drawn_with(
    seed: int, temperature: float, top_p: float, top_k: int
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    logits = 3 * np.random.default_rng(seed).normal(size=12)
    told = logits - np.log(np.exp(logits).sum())
    expected = drawn_from(logits, sampling)
    best = np.tile(np.sort(told)[-likeliest(sampling) :], (12, 1))
    for token in range(12):
        (found,), outside = sampling_logprobs(told[[token]], best[[token]], sampling)
        assert bool(outside) == (expected[token] == 0)
        if not outside:
            assert np.exp(found) == pytest.approx(expected[token], rel=1e-9)
    assert expected.sum() == pytest.approx(1)


def test_a_token_over_the_edge_is_counted_and_stands_beside_the_others() -> None:
    own, best = np.log([0.05]), np.log([[0.5, 0.3]])
    (found,), outside = sampling_logprobs(own, best, Sampling(temperature=1, top_k=2))
    assert (np.exp(found), outside) == (pytest.approx(0.05 / 0.85), 1)


def test_a_top_p_of_one_leaves_what_top_k_has_left_however_unlikely() -> None:
    best = np.array([[0.0, -38.0]])
    (found,), outside = sampling_logprobs([-38.0], best, Sampling(temperature=1, top_k=2))
    assert (found, outside) == (pytest.approx(-38.0), 0)


def test_without_cuts_the_models_own_probability_stands() -> None:
    sampling = Sampling()
    assert likeliest(sampling) == 0
    found, outside = sampling_logprobs([-1.5, -0.1], [], sampling)
    assert (found.tolist(), outside) == ([-1.5, -0.1], 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": 0, "top_k": 5}, "temperature=0"),
        ({"temperature": 0.7}, "top_k=0"),
        ({"top_p": 0.9}, "top_k=0"),
        ({"top_k": MOST_TOP_K + 1}, f"1 to {MOST_TOP_K}"),
    ],
)
def test_what_cannot_be_told_is_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        likeliest(Sampling.model_validate(settings))
