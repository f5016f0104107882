"""The same tests of money and eligibility on PostgreSQL, where its programs are installed."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from raylla.errors import StoreError
from raylla.serving.billing.audit import audit
from raylla.serving.store import Store, models, open_store
from tests.unit.serving.market import Market
from tests.unit.serving.test_billing import *  # noqa: F403
from tests.unit.serving.test_doors import test_the_store_takes_it_from_nobody  # noqa: F401
from tests.unit.serving.test_eligibility import *  # noqa: F403
from tests.unit.serving.test_invalid_clicks import (  # noqa: F401
    test_a_click_sooner_than_the_least_time_after_its_ad_was_seen,
    test_a_users_clicks_beyond_the_most_within_an_hour,
    test_many_clicks_of_a_user_at_once_do_not_pass_the_most,
    test_the_true_click_after_an_invalid_one_is_charged_once,
)
from tests.unit.serving.test_ledger import upgrade
from tests.unit.serving.test_market_machine import trade
from tests.unit.serving.test_odd_requests import (  # noqa: F401
    test_a_balance_keeps_within_64_bits,
    test_a_day_has_one_line_also_where_a_part_of_it_is_wanted,
    test_conversions_beyond_64_bits_are_refused_and_their_sums_are_exact,
    test_rebates_add_up_below_zero,
    test_the_calendar_has_a_last_day,
)
from tests.unit.serving.test_responses import (  # noqa: F401
    test_a_conversation_longer_than_a_body_is_not_gone_on_from,
    test_a_response_is_gone_on_from,
)
from tests.unit.serving.test_tallies import (  # noqa: F401
    test_a_click_whose_charge_is_taken_back_is_an_invalid_one_of_its_own_day,
    test_a_report_says_what_happened,
    test_every_grouping_adds_up_to_the_ledger,
)

pytestmark = pytest.mark.postgres
USER = "postgres"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a server of our own, behind a socket in a directory of its own; {} is the database."""
    # Debian keeps them off the path.
    places = os.pathsep.join([os.environ.get("PATH", ""), *glob.glob("/usr/lib/postgresql/*/bin")])
    programs = {name: shutil.which(name, path=places) for name in ("initdb", "pg_ctl")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(
            f"PostgreSQL is not installed: no {' and no '.join(missing)}; apt-get install postgresql"
        )
    user = None
    if os.geteuid() == 0:  # the server does not run as root
        try:
            user = pwd.getpwnam(USER).pw_name
        except KeyError:
            pytest.skip(f"PostgreSQL does not run as root, and there is no user {USER}")
    with tempfile.TemporaryDirectory(prefix="raylla-pg-") as path:
        if user is not None:
            shutil.chown(path, user)
        data = f"{path}/data"

        def run(name: str, *arguments: str) -> None:
            command = [str(programs[name]), "-D", data, *arguments]
            subprocess.run(command, check=True, user=user, cwd=path, timeout=120, stdout=subprocess.DEVNULL)

        run("initdb", "-A", "trust", "-U", USER, "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{path}' -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{path}/log", "-o", options, "start")
        try:
            url = f"postgresql+psycopg://{USER}@/{{}}?host={path}"
            open_store(url.format("postgres")).close()
            yield url
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture
def fresh(server: str, numbers: count[int]) -> Callable[[], AbstractContextManager[Store]]:
    @contextmanager
    def opened() -> Iterator[Store]:
        name = f"test{next(numbers)}"
        admin = create_engine(server.format("template1"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE postgres"))
        store = open_store(server.format(name))
        yield store
        store.close()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()

    return opened


@pytest.fixture(scope="session")
def numbers() -> count[int]:
    return count()


def test_trade_on_postgresql(fresh: Callable[[], AbstractContextManager[Store]]) -> None:
    trade(fresh, examples=6)


@pytest.mark.parametrize("table", models.APPEND_ONLY)
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_the_books_are_append_only_here_too(store: Store, market: Market, table: str, change: str) -> None:
    store.click(market.claims(market.served(market.listing(market.seat()))), market.now)
    with pytest.raises(DBAPIError, match="append-only"), store.database.writing() as session:
        session.execute(text(change.format(table)))
    assert audit(store).discrepancies == []


def test_a_store_of_before_gets_accounts_and_a_chain_here_too(server: str, numbers: count[int]) -> None:
    name = f"old{next(numbers)}"
    admin = create_engine(server.format("template1"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    engine = create_engine(server.format(name))
    upgrade(engine, "0001")
    at = "'2026-11-25 12:00:00+01'"
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO advertisers VALUES ('adv_1', 'a', 'a.example', {at}, 12, 0)"))
        for id, amount in ((3, 5), (9, 7)):  # a transaction that failed has left a gap
            values = f"{id}, {at}, 'payment', {amount}, 'USD', 'adv_1', 'INV-{id}'"
            columns = "id, at, kind, amount_micros, currency, advertiser_id, reference"
            connection.execute(text(f"INSERT INTO ledger ({columns}) VALUES ({values})"))
    engine.dispose()
    store = open_store(server.format(name))
    found = audit(store)
    assert (found.discrepancies, found.counts["ledger"], found.last) == ([], 2, 9)
    with pytest.raises(DBAPIError, match="append-only"), store.database.writing() as session:
        session.execute(text("UPDATE ledger SET kind = 'charge'"))
    store.close()


def test_another_password_is_not_shown(server: str) -> None:
    url = server.format("nothing").replace(f"{USER}@", f"{USER}:secret@")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
