"""Answers read as their reader would: against the untouched model, the pCTR's encoder and the detector.

The untouched model (`runs.versions.untouched`), asked the question alone, writes the organic answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raylla.auction import ReadAnswer
from raylla.auction.prose import stripped, undisclosed, without_ads
from raylla.engines.protocol import Given
from raylla.evaluation.backend import EvaluationBackend
from raylla.figures.quality import Read, Reads, Table, reads_per_query
from raylla.records import Planned
from raylla.terms.descriptions import Descriptions
from raylla.terms.native import Detector
from raylla.world import prompts
from raylla.world.retrieval import Vectors

_ORGANIC = "organic"


def read_tables(
    backend: EvaluationBackend,
    answers: Mapping[str, Mapping[str, Sequence[ReadAnswer]]],
    detector: Detector | None,
) -> Reads:
    """The tables of ``answers``, by kind and name, and of the organic answers to the same queries."""
    label = backend.config.serving.disclosure
    answers = {
        kind: {
            name: [ReadAnswer.of(answer.planned, undisclosed(answer.text, label)) for answer in some]
            for name, some in tables.items()
        }
        for kind, tables in answers.items()
    }
    flat = [answer for tables in answers.values() for some in tables.values() for answer in some]
    organic = _organic(backend, [answer.planned for answer in flat])
    reader = _Reader(backend, organic, detector)
    reader.prepare([*flat, *organic])
    kinds: dict[str, dict[str, Table]] = {
        kind: {
            name: reads_per_query([reader.read(answer) for answer in some]) for name, some in tables.items()
        }
        for kind, tables in answers.items()
    }
    kinds[_ORGANIC] = {
        _ORGANIC: reads_per_query([reader.read(answer, place) for place, answer in enumerate(organic)])
    }
    return kinds


class _Reader:
    """Reads answers one by one, from what was computed for all of them together."""

    def __init__(
        self, backend: EvaluationBackend, organic: Sequence[ReadAnswer], detector: Detector | None
    ) -> None:
        self._backend = backend
        self._organic: dict[str, list[int]] = {}
        for place, answer in enumerate(organic):
            self._organic.setdefault(answer.planned.query.id, []).append(place)
        self._own = [_bare(answer) for answer in organic]
        self._detector = detector
        self._descriptions = Descriptions(backend.world.ads)
        self._nll: dict[tuple[str, str], tuple[float, int]] = {}
        self._vectors: dict[str, Vectors] = {}
        self._suspected: dict[str, bool] = {}

    def prepare(self, answers: Sequence[ReadAnswer]) -> None:
        """Encode, score and suspect all of ``answers``, each distinct text once."""
        bare = list(dict.fromkeys(map(_bare, answers)))
        vectors = self._backend.encode(bare)
        place = {text: at for at, text in enumerate(bare)}
        own = vectors[[place[text] for text in self._own]]
        vectors = vectors - (own.mean(axis=0) if len(own) else 0)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        self._vectors = dict(zip(bare, vectors, strict=True))
        if self._detector is not None:
            self._suspected = dict(zip(bare, self._detector.suspects(bare).tolist(), strict=True))
        left = {
            (answer.planned.query.id, text): answer.planned
            for answer in answers
            if (text := without_ads(answer.text, answer.planned.ads))
        }
        given = [
            Given(
                str(at),
                _question(self._backend, planned),
                text=text,
                turns=len(planned.query.turns),
                room=self._backend.config.prompt_room,
            )
            for at, ((_, text), planned) in enumerate(left.items())
        ]
        for key, scored in zip(left, self._backend.untouched_scores(given), strict=True):
            self._nll[key] = -scored.logprob, scored.tokens

    def read(self, answer: ReadAnswer, own: int | None = None) -> Read:
        """One answer; ``own`` is its place among the organic ones, if it is one, so that it is compared
        with the others."""
        planned, bare = answer.planned, _bare(answer)
        others = [place for place in self._organic.get(planned.query.id, ()) if place != own]
        similar = [float(self._vectors[self._own[place]] @ self._vectors[bare]) for place in others]
        nll, tokens = self._nll.get((planned.query.id, without_ads(answer.text, planned.ads)), (0.0, 0))
        return Read(
            planned.query.id,
            len(bare.split()),
            float(np.mean(similar)) if similar else None,
            nll,
            tokens,
            self._suspected.get(bare, False),
            self._descriptions.borne_out(answer),
        )


def _organic(backend: EvaluationBackend, asked: Sequence[Planned]) -> list[ReadAnswer]:
    """Answers of the untouched model to each distinct query, told of no ads."""
    count = backend.config.evaluation.organic_answers
    planned = [
        replace(planned, n=count)
        for planned in {question.query.id: question for question in asked}.values()
    ]
    written = backend.organic(planned, _ORGANIC)
    answers = [
        ReadAnswer.of(question, draw.text)
        for question, generated in zip(planned, written, strict=True)
        for draw in generated.completions
    ]
    backend.bound("organic answers", count * len(planned) - len(answers), count * len(planned))
    return answers


def _question(backend: EvaluationBackend, planned: Planned) -> prompts.Messages:
    return prompts.organic(backend.config.ad_llm.prompt, planned.query, planned.profile)


def _bare(answer: ReadAnswer) -> str:
    return stripped(answer.text, answer.planned.ads)
