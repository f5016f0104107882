"""Counts by hour and by day, from which reports are served."""

from raylla.serving.store.tallies.keeping import Tallies, of_auctions
from raylla.serving.store.tallies.model import COUNTS, LOSSES, StoredTally
from raylla.serving.store.tallies.reading import Group, Line, Report, Wanted, report_lines
from raylla.serving.store.tallies.recount import recount

__all__ = [
    "COUNTS",
    "LOSSES",
    "Group",
    "Line",
    "Report",
    "StoredTally",
    "Tallies",
    "Wanted",
    "of_auctions",
    "recount",
    "report_lines",
]
