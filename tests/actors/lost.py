"""An object that is gone with whoever owned it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ObjectLostError


def _sleep() -> None:
    time.sleep(3600)


class _Owner:
    """Owns what a task returns that never ends."""

    def own(self) -> list[Any]:
        return [ray.remote(num_cpus=0)(_sleep).remote()]


def _ask_on(owner: Any) -> None:
    """Until it is gone: what is called as it is killed may still be done."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        ray.get(owner.__ray_ready__.remote(), timeout=60)


def lost() -> Any:
    """A reference to what nobody will ever have."""
    owner = ray.remote(num_cpus=0)(_Owner).remote()
    (found,) = ray.get(owner.own.remote(), timeout=60)
    ray.kill(owner)
    with pytest.raises(ActorDiedError):
        _ask_on(owner)
    with pytest.raises(ObjectLostError):
        ray.get(found, timeout=60)
    return found
