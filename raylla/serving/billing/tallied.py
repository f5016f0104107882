"""The audit of tallies: each must be what the rows that it counts add up to."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from raylla.serving.billing.findings import Audit
from raylla.serving.store.tallies import COUNTS, StoredTally, recount

_BATCH = 5_000


def tallied(session: Session, findings: Audit) -> None:
    """Count everything anew and compare."""
    try:
        wanted = recount(session.connection()).rows
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__}: {error}"
        findings.expect("tallies", "what they count", said, "records as they were served")
        return
    columns = [getattr(StoredTally, name) for name in ("span", "start", "ad_id", "weight_version", *COUNTS)]
    query = select(*columns).order_by(*columns[:4])
    for span, start, ad_id, version, *counts in session.execute(query.execution_options(yield_per=_BATCH)):
        findings.counts["tallies"] += 1
        due = wanted.pop((span, start, ad_id, version), {})  # type: ignore[call-overload]
        subject = _subject(span, start, ad_id, version)
        for name, count in zip(COUNTS, counts, strict=True):
            findings.expect(subject, name, count, due.get(name, 0))
    for (span, start, ad_id, version), due in sorted(wanted.items()):
        for name, count in due.items():
            findings.expect(_subject(span, start, ad_id, version), name, 0, count)


def _subject(span: str, start: object, ad_id: str, version: str) -> str:
    return f"tally of ad {ad_id} under {version}, {span} of {start:%Y-%m-%d %H:%M}"
