"""What terms are told about texts, put together from what a run or an evaluation has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raylla.auction.prose import undisclosed
from raylla.config import Config
from raylla.errors import ConfigError
from raylla.records import Planned
from raylla.terms.native import LEAST_F1, Detector, f1_of, taught
from raylla.terms.protocol import RewardTerm, needs_of
from raylla.world.fit import Fit
from raylla.world.retrieval import Vectors

Organic = Callable[[Sequence[Planned]], list[tuple[str, ...]]]
"""The untouched model's answers to each auction's question."""


class Sources:
    """A `protocol.Texts`.

    Args:
        fit: the encoder's.
        organic: what the untouched model answers.
        detector: of native ads; none: no term here needs it.
        label: what discloses an ad behind its title, which the detector is not to read.
    """

    def __init__(self, fit: Fit, organic: Organic, detector: Detector | None, label: str) -> None:
        self._fit, self.organic = fit, organic
        self._detector, self._label = detector, label

    def encode(self, texts: Sequence[str]) -> Vectors:
        """`protocol.Texts.encode`."""
        return self._fit.encode(texts)

    def directions(self, texts: Sequence[str]) -> Vectors:
        """`protocol.Texts.directions`."""
        return self._fit.directions(texts)

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        """`protocol.Texts.relevance`."""
        return self._fit.relevance(auctions)

    def detected(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """`protocol.Texts.detected`.

        Raises:
            ConfigError: there is no detector.
        """
        if self._detector is None:
            raise ConfigError(
                "a reward term asks the detector of native ads, of which it says in its needs that it does "
                "not; put 'detector' into them"
            )
        return self._detector.chances([undisclosed(text, self._label) for text in texts])


def detector_for(terms: Sequence[RewardTerm], config: Config) -> Detector | None:
    """The detector that one of ``terms`` needs, taught by `evaluation.native_answers`; none: no need.

    Raises:
        ConfigError: it cannot be taught, or is not good enough on what it has not seen.
    """
    path: Path | None = config.evaluation.native_answers
    wanted = [term.name for term in terms if "detector" in needs_of(term)]
    if not wanted or path is None:
        return None
    detector, tested = taught(path)
    if (reached := f1_of(tested)) < LEAST_F1:
        raise ConfigError(
            f"reward_terms: {wanted[0]}: the detector that evaluation.native_answers={str(path)!r} teaches "
            f"has an F1 of {reached:.2f} on answers held out, below {LEAST_F1}; give answers that teach it "
            "more, or leave the term out"
        )
    return detector
