"""One Ray on this machine for all modules that need no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from tests.e2e.nursery import nursed


def pytest_configure(config: pytest.Config) -> None:
    """Ray's workers are born in a nursery."""
    nursed(config)


@pytest.fixture(scope="package")
def tokenless() -> Iterator[None]:
    """Ray asks for no token; what is left of it ends with the last of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster(tokenless: None) -> None:
    """Four CPUs, so Ray is told: those of the module before, where they are still there."""
    if not ray.is_initialized():
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
