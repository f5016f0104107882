"""A store of its own for each test, and small worlds to put into it."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from raylla.config import Serving
from raylla.serving.http import advertisers, campaigns, clicks, web
from raylla.serving.money.records import Listing
from raylla.serving.security.keys import Access
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store, open_store
from tests.unit.serving.hooks import Hook
from tests.unit.serving.market import ADMIN_KEY, KEYS, Market

MEMORY = Path("/dev/shm")
Fresh = Callable[[], AbstractContextManager[Store]]


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def fresh(empty: Path) -> Fresh:
    """Opens an empty store, in memory where there is such a directory: commits wait for no disk."""

    @contextmanager
    def opened() -> Iterator[Store]:
        where = MEMORY if MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(dir=where, prefix="raylla-test-") as path:
            shutil.copy(empty, f"{path}/store.db")
            store = open_store(f"sqlite:///{path}/store.db")
            yield store
            store.close()

    return opened


@pytest.fixture
def store(fresh: Fresh) -> Iterator[Store]:
    with fresh() as opened:
        yield opened


@pytest.fixture
def market(store: Store) -> Market:
    return Market(store, dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC))


@pytest.fixture
def services(store: Store) -> web.Services:
    return web.Services(store, TokenKeys(KEYS), Access(store.parties, ADMIN_KEY), Serving(), max_bid=100)


@pytest.fixture(scope="session")
def routes() -> list[BaseRoute]:
    """Those of the advertisers' API: making them takes longer than most tests."""
    made = APIRouter()
    for router in (campaigns.router, clicks.router, *advertisers.ROUTERS):
        made.include_router(router)
    return made.routes


@pytest.fixture
def app(services: web.Services, routes: list[BaseRoute]) -> FastAPI:
    made = FastAPI(title="raylla")
    made.router.routes += routes
    web.install(made, services)
    return made


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, follow_redirects=False)


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def cup(market: Market) -> Listing:
    """An ad that bids 64."""
    return market.listing(market.seat(), bid=64, title="Lumo Floral Cup")
