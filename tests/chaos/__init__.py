"""Workers and drivers killed at random moments of a real run, which has to end as if nothing happened.

`python -m tests.chaos --kills N --seed S` is the campaign; `test_kills.py` has a short one.
"""
