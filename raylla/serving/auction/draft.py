"""Who competes in one auction, and the answer while it is being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raylla.records import Ad, Query
from raylla.serving.auction.eligibility import Selection
from raylla.serving.auction.exchange import Answered, Asked, Clock, Shown
from raylla.serving.auction.repair import Repair, Repaired, Titles
from raylla.serving.auction.spelling import Spelling
from raylla.serving.engine.wire import Piece
from raylla.serving.money.records import Candidate, Reason, ServedAuction


@dataclass(frozen=True, slots=True)
class Field:
    """Candidates in the order of the prompt, what the query was taken to be about, who was left out."""

    auction_id: str
    created: datetime
    query: Query
    candidates: tuple[Candidate, ...]
    selection: Selection | None
    left_out: Counter[Reason]

    @classmethod
    def empty(cls, asked: Asked) -> Field:
        """Nobody competes: the request wants no ads."""
        query = Query(asked.request_id, asked.profile.id, asked.query, "", "", "test")
        return cls("", datetime.now(UTC), query, (), None, Counter())

    @property
    def ads(self) -> list[Ad]:
        """The candidates' ads."""
        return [one.listing.ad for one in self.candidates]


class Draft:
    """An answer that grows by the engine's pieces and is shown as far as it is final.

    Args:
        prompt: its token ids.
        label: of disclosure.
        titles: what users are shown in the place of ads' titles.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        field: Field,
        label: str,
        tokenizer: Any,
        titles: Titles,
    ) -> None:
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.finish: str = ""
        self.version: str = ""
        self.raw = ""
        self._field = field
        self._repair = Repair(field.ads, label, titles)
        self._spelling = Spelling(tokenizer.backend_tokenizer)

    def add(self, piece: Piece) -> str:
        """Take a piece; the text that may be shown because of it."""
        words = "".join(map(self._spelling.add, piece.token_ids))
        if piece.finish:
            words += self._spelling.end()
        self.token_ids += piece.token_ids
        self.raw += words
        self.version, self.finish = piece.version, piece.finish or ""
        return self._repair.feed(words)

    def end(self) -> str:
        """The last text, after the last piece."""
        return self._repair.finish()

    def repaired(self) -> Repaired:
        """The whole answer, after `end`; an ad of the catalogue is told from one that does not exist."""
        selection = self._field.selection
        return self._repair.repaired(selection.catalogue.row_by_id if selection else ())

    def answered(
        self, clock: Clock, auction: ServedAuction | None = None, shown: tuple[Shown, ...] = ()
    ) -> Answered:
        """The end of the response."""
        return Answered(
            self._repair.shown,
            self.finish,
            self.version,
            len(self.prompt),
            len(self.token_ids),
            clock.total(),
            auction,
            shown,
        )
