"""Libraries are loaded without garbage collection, which is as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from raylla.models.libraries import uncollected


@pytest.mark.parametrize("before", [True, False])
def test_collection_is_as_it_was_after_a_load_and_after_one_that_fails(before: bool) -> None:
    collecting = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == before
        with pytest.raises(ImportError), uncollected():
            raise ImportError
        assert gc.isenabled() == before
    finally:
        (gc.enable if collecting else gc.disable)()
