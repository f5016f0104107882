"""Token ids in four bytes each."""

from __future__ import annotations

import pickle
import sys

import pytest

from raylla.records import Ids


def test_ids_are_a_sequence_that_equals_any_of_the_same_ids() -> None:
    ids = Ids([70_000, 3, 70_000])
    assert list(ids) == [70_000, 3, 70_000]
    assert len(ids) == 3
    assert ids[-1] == 70_000
    assert ids == (70_000, 3, 70_000) == ids
    assert ids == Ids(iter(ids))
    assert hash(ids) == hash((70_000, 3, 70_000))
    assert ids != (70_000, 3)
    assert ids != "ids"
    assert not Ids()
    with pytest.raises(IndexError):
        ids[3]
    with pytest.raises(OverflowError):
        Ids([2**31])


def test_a_part_of_ids_is_ids() -> None:
    assert isinstance(Ids(range(5))[1:3], Ids)
    assert Ids(range(5))[1:3] == (1, 2)
    assert Ids(range(5))[:None] == (0, 1, 2, 3, 4)


def test_ids_travel_and_stay_small() -> None:
    ids = Ids(range(100_000, 104_000))
    assert pickle.loads(pickle.dumps(ids)) == ids
    assert len(pickle.dumps(ids)) < 4 * 4000 + 200
    assert ids.raw.nbytes == 4 * 4000
    assert sys.getsizeof(ids) < 100
