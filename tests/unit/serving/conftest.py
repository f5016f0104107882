"""A store of its own for each test, and small worlds to put into it."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from raylla.config import Serving
from raylla.serving import campaigns, clicks, web
from raylla.serving.keys import Access
from raylla.serving.store import Store, open_store
from raylla.serving.tokens import TokenKeys
from tests.unit.serving.market import ADMIN_KEY, KEYS, Market

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: commits wait for no disk."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="raylla-test-") as path:
        yield Path(path)


@pytest.fixture
def store(memory: Path, empty: Path) -> Iterator[Store]:
    shutil.copy(empty, memory / "store.db")
    opened = open_store(f"sqlite:///{memory}/store.db")
    yield opened
    opened.close()


@pytest.fixture
def market(store: Store) -> Market:
    return Market(store, dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC))


@pytest.fixture
def services(store: Store) -> web.Services:
    return web.Services(store, TokenKeys(KEYS), Access(store.parties, ADMIN_KEY), Serving(), max_bid=100)


@pytest.fixture
def app(services: web.Services) -> FastAPI:
    made = FastAPI(title="raylla")
    made.include_router(campaigns.router)
    made.include_router(clicks.router)
    web.install(made, services)
    return made


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, follow_redirects=False)
