"""Libraries are loaded without garbage collection, which is as it was afterwards and leaves them alone."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

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


def test_what_is_loaded_is_walked_by_no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    with uncollected():
        pass
    assert gc.get_freeze_count() == frozen  # nothing was loaded
    try:
        with uncollected():
            loaded = [[number] for number in range(1000)]
            monkeypatch.setitem(sys.modules, "a_library", ModuleType("a_library"))
        assert gc.get_freeze_count() >= frozen + len(loaded)
    finally:
        gc.unfreeze()
