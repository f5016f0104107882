"""Counts by hour and by day, from which reports are served."""

from raylla.serving.store.tallies.keeping import Tallies, of_auctions
from raylla.serving.store.tallies.model import COUNTS, LOSSES, Tally
from raylla.serving.store.tallies.reading import Group, Line, Report, Wanted, report
from raylla.serving.store.tallies.recount import recount

__all__ = [
    "COUNTS",
    "LOSSES",
    "Group",
    "Line",
    "Report",
    "Tallies",
    "Tally",
    "Wanted",
    "of_auctions",
    "recount",
    "report",
]
