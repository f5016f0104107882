"""Who competes in one auction, and the answer while it is being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raylla.records import Ad, Query, Turn
from raylla.serving.auction.eligibility import Selection
from raylla.serving.auction.exchange import Answered, Asked, Shown, Stopwatch
from raylla.serving.auction.repair import Repair, Repaired, Titles, Verbatim
from raylla.serving.auction.spelling import Spelling
from raylla.serving.auction.stops import Stops
from raylla.serving.engine.wire import Piece
from raylla.serving.money.records import Candidate, Filtered, Reason, ServedAuction


@dataclass(frozen=True, slots=True)
class Field:
    """Candidates in the order of the prompt, what the query was taken to be about, who was left out;
    ``below`` names those whose bid a floor or reserve kept out."""

    auction_id: str
    created: datetime
    query: Query
    candidates: tuple[Candidate, ...]
    selection: Selection | None
    left_out: Counter[Reason]
    below: tuple[Filtered, ...] = ()

    @classmethod
    def empty(cls, asked: Asked) -> Field:
        """Nobody competes: the request wants no ads."""
        return cls("", datetime.now(UTC), asked.about(), (), None, Counter())

    @property
    def ads(self) -> list[Ad]:
        """The candidates' ads."""
        return [candidate.listing.ad for candidate in self.candidates]

    def filtered(self, limit: int) -> tuple[Filtered, ...]:
        """``limit`` of the ads kept out, those nearest to competing first."""
        others = self.selection.filtered(limit) if self.selection is not None else ()
        return (*self.below, *others)[:limit]


class Draft:
    """An answer that grows by the engine's pieces and is shown as far as it is final.

    Args:
        prompt: its token ids.
        label: of disclosure.
        titles: what users are shown in the place of ads' titles; None: those.
        turns: the earlier ones that the prompt holds.
        stop: words before which the answer ends.
        verbatim: the answer is no prose, and nothing in it is taken for an ad.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        field: Field,
        label: str,
        tokenizer: Any,
        titles: Titles | None = None,
        turns: Sequence[Turn] = (),
        stop: Sequence[str] = (),
        verbatim: bool = False,
    ) -> None:
        self.prompt = prompt
        self.turns = tuple(turns)
        self.turns_cut = len(field.query.turns) - len(self.turns)
        self.token_ids: list[int] = []
        self.finish: str = ""
        self.version: str = ""
        self._field = field
        self._repair: Repair | Verbatim = Verbatim() if verbatim else Repair(field.ads, label, titles)
        self._spelling = Spelling(tokenizer.backend_tokenizer)
        self._stops = Stops(stop)
        self._looked = 0
        self._shown = 0
        """Characters of the clean text in which stops were looked for, and that are shown."""

    @property
    def raw(self) -> str:
        """What the model wrote, up to where the answer stops."""
        return self._repair.raw(self._stops.end)

    def add(self, piece: Piece) -> str:
        """Take a piece; the text that may be shown because of it."""
        words = "".join(map(self._spelling.add, piece.token_ids))
        if piece.finish:
            words += self._spelling.end()
        self.token_ids += piece.token_ids
        self.version, self.finish = piece.version, piece.finish or ""
        self._repair.feed(words)
        return self._released()

    def end(self) -> str:
        """The last text, after the last piece."""
        self._repair.finish(self.finish == "length")
        return self._released(final=True)

    def _released(self, final: bool = False) -> str:
        """What may be shown and was not yet."""
        fresh, start = self._repair.clean(self._looked), self._shown
        self._looked += len(fresh)
        self._shown += len(self._stops.take(fresh, self._repair.disclosed, final))
        if self._stops.end is not None:
            self.finish = "stop"
        return self._repair.shown(start, self._shown)

    def repaired(self) -> Repaired:
        """The whole answer, after `end`; an ad of the catalogue is told from one that does not exist."""
        selection = self._field.selection
        return self._repair.repaired(selection.catalogue.row_by_id if selection else (), self._stops.end)

    def answered(
        self, clock: Stopwatch, auction: ServedAuction | None = None, shown: tuple[Shown, ...] = ()
    ) -> Answered:
        """The end of the response."""
        return Answered(
            self._repair.shown(end=self._stops.end),
            self.finish,
            self.version,
            len(self.prompt),
            len(self.token_ids),
            clock.total(),
            auction,
            shown,
            self.turns_cut,
        )
