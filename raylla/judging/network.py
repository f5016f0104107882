"""A pCTR network that learned published decisions: what a judge is held against, and what a run's can
start from (`pctr.start`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raylla.config import Pctr
from raylla.judging.published import JudgedImpression
from raylla.records import Ad
from raylla.reward.rows import ClickRow
from raylla.world.passages import plain
from raylla.world.texts import ad_text

if TYPE_CHECKING:
    from raylla.reward.trainer import RewardTrainer

ANYONE = "user"
"""The data knows no users: all are one."""


def learn_network(
    encoder: str, settings: Pctr, learned: Sequence[JudgedImpression], judges: Sequence[str], seed: int
) -> RewardTrainer:
    """A network over ``encoder`` (as `pctr.encoder` names one) after the decisions of ``judges``.

    Raises:
        ConfigError: the encoder cannot be found or loaded.
    """
    from raylla.reward.trainer import RewardTrainer

    trainer = RewardTrainer(encoder, settings, seed)
    rows = [row(impression) for impression in learned]
    for judge in judges:
        said = [impression.clicks[judge] for impression in learned]
        trainer.take([replace(row, clicked=click) for row, click in zip(rows, said, strict=True)])
    trainer.update()
    return trainer


def row(impression: JudgedImpression) -> ClickRow:
    """An impression as the pCTR network reads one: the only ad of its answer, seen by anyone."""
    name = impression.name
    return ClickRow(
        sample_id=impression.question,
        query_text=impression.question,
        profile_id=ANYONE,
        ad_id=name,
        ad_text=ad_text(Ad(name, name, "", "", impression.description)),
        ad_category="",
        answer_text=" ".join(plain(impression.answer).split()),
        sentence=impression.passage.text,
        rank=0,
        placed=1,
        earlier_same_category=0,
        clicked=None,
    )
