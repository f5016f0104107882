"""Processes and nodes killed, stopped and cut off at random moments of real runs, which have to end as if
nothing had happened: `python -m tests.chaos --kills N --seed S`.

The ordinary tests kill workers, the driver and a node too, at moments that are not drawn: tests/e2e.
"""
