"""The audit's walk along the ledger's chain: a line that was changed or taken away is named.

A changed line's seal is no longer that of what it says; a missing one is the predecessor that the line
behind it names, or that the books name as the last. Whoever can write to the database could seal all of it
anew from the change on: hold a seal that was noted elsewhere against it (``known``).
"""

from __future__ import annotations

from collections.abc import Mapping

from raylla.serving.billing.findings import Audit
from raylla.serving.store import models
from raylla.serving.store.ledger import accounts, legs, sealed

MISSING_NAMED = 1000
"""Most missing lines of one gap that are named."""


class Chain:
    """Takes the ledger's lines in order.

    Args:
        known: seals by line, as they were noted before.
    """

    def __init__(self, found: Audit, books: models.StoredBooks, known: Mapping[int, str]) -> None:
        self._found = found
        self._books = books
        self._known = dict(known)
        self._whole = True

    def take(self, line: models.StoredEntry) -> None:
        """Check one line's place, seal, accounts and currency, and add its legs up."""
        found, subject = self._found, f"ledger {line.id}"
        if self._follows(line.previous):
            found.expect(subject, "previous", line.previous, found.last)
            found.expect(subject, "seal", line.seal, sealed(found.seal, line))
        try:
            wanted = accounts(line.kind, line.price_rule)
        except KeyError:
            wanted = None
        found.expect(subject, "accounts", (line.debit, line.credit), wanted)
        if wanted is not None and (line.debit, line.credit) == wanted:
            for account, amount in legs(line):
                found.accounts[account] += amount
        found.expect(subject, "currency", line.currency, self._books.currency)
        known = self._known.pop(line.id, line.seal)
        if known != line.seal:
            found.expect(subject, "seal", line.seal, f"{known}, as it was noted")
        found.last, found.seal = line.id, line.seal

    def end(self) -> None:
        """Check that nothing is missing behind the last line."""
        found = self._found
        if self._follows(self._books.last):
            found.expect("books", "last line", self._books.last, found.last)
            found.expect("books", "seal", self._books.seal, found.seal)
        for id, known in self._known.items():
            found.expect(f"ledger {id}", "line", "missing", f"sealed {known}, as it was noted")

    def _follows(self, previous: int) -> bool:
        """Whether nothing is missing before what names ``previous`` as the line before it."""
        last = self._found.last
        for id in range(last + 1, min(previous, last + MISSING_NAMED) + 1):
            self._found.expect(f"ledger {id}", "line", "missing", f"between {last} and what follows it")
        return previous <= last
