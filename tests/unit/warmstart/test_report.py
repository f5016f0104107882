"""What the report of a warm start counts."""

from __future__ import annotations

import numpy as np
import pytest

from raylla.auction.markup import markup
from raylla.engines.protocol import Completion, Generated
from raylla.errors import RunError
from raylla.records import Ad, Profile, Query
from raylla.warmstart.report import figures
from raylla.warmstart.rows import AnsweredAuction

ADS = tuple(
    Ad(str(1000 + n), f"Brand {n}", topic, topic) for n, topic in enumerate(("tea", "tea", "car", "car"))
)
NOTHING = np.zeros((2, 2))
"""What two rows leave to be read where their answers are ads alone."""
USER = Profile("u", "40 nurse Porto", ("tea",))


def row(*bids: float) -> AnsweredAuction:
    return AnsweredAuction(Query("q", "u", "which tea", "tea", "tea", "train"), USER, ADS, bids, "")


def answered(*texts: str, finished: bool = True) -> Generated:
    return Generated("0", (1,), tuple(Completion(text, (2,), finished) for text in texts))


def test_shares_are_of_attempts_and_answers() -> None:
    tea, car = markup(ADS[0]), markup(ADS[2])
    found = figures(
        [row(1, 2, 3, 4), row(4, 3, 2, 1)],
        [
            answered(f"Take {tea}.", f"{car} or {car}."),
            answered("None.", "@Brand 9@[Ad-1001]", finished=False),
        ],
        np.array([[3 * np.log(2), 3], [np.log(2), 1]]),
        50,
        0,
    )
    assert found["perplexity"] == pytest.approx({"mean": 2, "low": 2, "high": 2})
    assert (found["rows"], found["answers"]) == (2, 4)
    assert found["placing"]["mean"] == 0.5
    assert found["valid"]["mean"] == 0.5
    assert found["violations"] == {"altered_title": 1, "duplicate": 1}
    assert found["relevance"]["mean"] == 0.5
    assert found["chance"]["mean"] == 0.5
    assert found["ends"]["mean"] == 0.5


def test_the_trend_is_in_the_bid() -> None:
    up = [row(10, 20, 30, 40), row(40, 30, 20, 10)]
    texts = [answered(markup(ADS[3])), answered(markup(ADS[0]))]
    assert figures(up, texts, NOTHING, 50, 0)["trend"]["mean"] > 0.7
    assert figures(up[::-1], texts, NOTHING, 50, 0)["trend"]["mean"] < -0.7
    assert figures(up, [answered("None.")] * 2, NOTHING, 50, 0)["trend"]["mean"] == 0
    assert figures(up, texts, NOTHING, 50, 0)["perplexity"] is None


def test_no_rows_are_refused() -> None:
    with pytest.raises(RunError, match=r"warmstart\.held_out"):
        figures([], [], NOTHING[:0], 50, 0)
