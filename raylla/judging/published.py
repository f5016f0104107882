"""Published judgements: answers with one ad each, and which language models said that they would click it.

One JSON object a line, gzipped or not, as GEM-Bench's judged answers are: ``question``, ``response``,
``product`` (name, and desc or description) and ``judgements``, judge -> ``{"click": ...}``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raylla.errors import DataError
from raylla.strictjson import objects, strange
from raylla.world.passages import Passage, passage

CLICKED = "NOTICEABLE_CLICKED"
DECISIONS = (CLICKED, "NOTICEABLE_NOT_CLICKED", "BARELY_NOTICEABLE", "NOT_NOTICEABLE")
"""What a judge may have said; all but the first are no click."""


@dataclass(frozen=True)
class JudgedImpression:
    """One ad in one answer, and by judge whether that judge would click it."""

    question: str
    name: str
    description: str
    answer: str
    clicks: Mapping[str, bool]

    @cached_property
    def passage(self) -> Passage:
        """What the answer says about the ad."""
        return passage(self.answer, self.name)

    def share(self, judges: Sequence[str]) -> float:
        """Share of ``judges`` that click, in [0, 1]."""
        return sum(self.clicks[judge] for judge in judges) / len(judges)


@dataclass(frozen=True)
class Published:
    """All judged impressions of a file, its judges, and what was counted while it was read.

    ``notes``: rows, rows without a product, and how the passages were found (see
    `raylla.world.passages.passage`).
    """

    impressions: tuple[JudgedImpression, ...]
    judges: tuple[str, ...]
    notes: Mapping[str, int]

    def chosen(self, names: Sequence[str]) -> tuple[str, ...]:
        """The judges of these names, in the file's order; of none, all.

        Raises:
            DataError: a name is no judge of the file, or occurs twice.
        """
        unknown = [name for name in names if name not in self.judges]
        if unknown or len(set(names)) != len(names):
            raise DataError(
                f"judging.judges={list(names)}: {', '.join(unknown) or 'a judge'} is "
                f"{'not among' if unknown else 'named twice of'} the judges of judging.data; "
                f"there are {', '.join(self.judges)}"
            )
        return tuple(judge for judge in self.judges if judge in (names or self.judges))


def read_impressions(path: Path) -> Published:
    """The judged impressions of ``path``.

    Rows whose product has no name (nothing was placed) are left out and counted.

    Raises:
        DataError: the file is missing, damaged or holds nothing, a row is malformed, or its judges are not
            the first row's; names the file and the line.
    """
    notes: Counter[str] = Counter()
    judges: tuple[str, ...] = ()
    impressions: list[JudgedImpression] = []
    for where, row in objects(path, _unusable):
        notes["rows"] += 1
        impression = _impression(row, where)
        judges = judges or tuple(_clicks(row, where))
        if set(_clicks(row, where)) != set(judges):
            raise DataError(f"{where}: its judges are not {', '.join(judges)}, as in the rows before it")
        if impression is None:
            notes["without_product"] += 1
        else:
            notes[f"found_by_{impression.passage.found}"] += 1
            impressions.append(impression)
    if not impressions:
        raise DataError(f"{path} holds no judged ad; give a file of judged answers in judging.data")
    return Published(tuple(impressions), judges, dict(notes))


def split_impressions(
    impressions: Sequence[JudgedImpression], held_out: float, seed: int
) -> tuple[list[JudgedImpression], list[JudgedImpression]]:
    """Impressions to learn from, and those of the ``held_out`` share of questions, drawn by ``seed``.

    Raises:
        DataError: one of the two would hold no question.
    """
    questions = sorted({impression.question for impression in impressions})
    count = round(held_out * len(questions))
    if not 0 < count < len(questions):
        raise DataError(
            f"judging.held_out={held_out:g} keeps {count} of {len(questions)} questions apart; "
            "give a share that leaves some on both sides"
        )
    random.Random(seed).shuffle(questions)
    apart = set(questions[:count])
    return (
        [impression for impression in impressions if impression.question not in apart],
        [impression for impression in impressions if impression.question in apart],
    )


def _unusable(why: str) -> DataError:
    return DataError(f"{why}; give a file of judged answers in judging.data")


def _impression(row: dict[str, Any], where: str) -> JudgedImpression | None:
    product = row.get("product")
    if product is not None and not isinstance(product, dict):
        raise DataError(f"{where}: product={product!r} is no object; give one with a name, or null")
    name = (product or {}).get("name")
    if name is None:
        return None
    description = (product or {}).get("desc") or (product or {}).get("description") or ""
    values = {
        "question": row.get("question"),
        "response": row.get("response"),
        "product.name": name,
        "product.desc": description,
    }
    wrong = strange(values, tuple(values))
    empty = [field for field, value in values.items() if field != "product.desc" and not str(value).strip()]
    if wrong or empty:
        raise DataError(f"{where}: {wrong or f'{empty[0]} is empty'}; fill or drop the row")
    return JudgedImpression(row["question"], name, description, row["response"], _clicks(row, where))


def _clicks(row: dict[str, Any], where: str) -> dict[str, bool]:
    judgements = row.get("judgements")
    if not isinstance(judgements, dict) or not judgements:
        raise DataError(f"{where}: judgements={judgements!r} names no judge; fill or drop the row")
    clicks: dict[str, bool] = {}
    for judge, said in judgements.items():
        decision = said.get("click") if isinstance(said, dict) else None
        if decision not in DECISIONS:
            raise DataError(
                f"{where}: judgements.{judge}.click={decision!r} is none of {', '.join(DECISIONS)}"
            )
        clicks[judge] = decision == CLICKED
    return clicks
