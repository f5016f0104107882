"""Loading the model libraries, which make a million objects that stay."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection in here, nor later of what is loaded in here.

    To walk through the objects of vLLM or DeepSpeed again and again is a fifth of the time that they take
    to load, and as much once more while an engine or a trainer starts.
    """
    collecting, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
        if len(sys.modules) > known:
            gc.freeze()
    finally:
        if collecting:
            gc.enable()
