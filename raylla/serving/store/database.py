"""The database behind the store: how it is opened, migrated and written to.

SQLite runs in WAL mode, with foreign keys on, every commit on disk before it is answered, and each
writing transaction taking the write lock at its start, so that no transaction fails halfway for a
lock. PostgreSQL runs as it comes (READ COMMITTED); the store locks the advertiser's row instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as Alembic
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from raylla.errors import StoreError

BUSY_SECONDS = 30
"""How long a transaction waits for SQLite's write lock."""
_MIGRATION_LOCK = 0x5261796C6C61
SETTING = "serving.database"
"""Where a URL is given, where nobody says otherwise; errors name it."""
_WAY_OUT = "give sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"


class Database:
    """An engine and its two kinds of session."""

    def __init__(self, url: str, must_exist: bool = False, field: str = SETTING) -> None:
        """Connect to ``url``, which ``field`` gave, and bring its tables up to date.

        Raises:
            StoreError: no such database, not reachable, or of a newer raylla.
        """
        self.url = _checked(url, must_exist, field)
        self.currency: str | None = None
        """The store's, once somebody has asked (`ledger.denominate`): it never changes."""
        self.engine = _engine(self.url, field)
        self._writer = self.engine.execution_options(writes=True)
        try:
            self._migrate()
        except CommandError as error:
            self.close()
            raise StoreError(f"{field}: {self}: {error}; it is of another version of raylla") from None
        except (SQLAlchemyError, OSError) as error:
            self.close()
            cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
            raise StoreError(f"{field}: {self} cannot be opened: {cause}; {_WAY_OUT}") from None

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose work is committed whole, or not at all where it raises."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Alembic()
        place = str(Path(__file__).parent / "migrations")
        config.set_main_option("script_location", place.replace("%", "%%"))  # it is read as a format
        head = ScriptDirectory.from_config(config).get_current_head()
        with self.engine.connect() as connection:  # most often there is nothing to do, and nothing to lock
            if _revision(connection) == head:
                return
        with self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            if _revision(connection) != head:  # nobody else was faster
                config.attributes["connection"] = connection
                command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _checked(url: str, must_exist: bool, field: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # the whole of it may be a URL with a password and a slip
        raise StoreError(f"{field} is no database URL; {_WAY_OUT}") from None
    except ValueError:  # the error's words may hold a part of the password
        raise StoreError(f"{field}: its port is no number; {_WAY_OUT}") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"{field}: {backend} is not supported; {_WAY_OUT}")
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise StoreError(f"{field}: a database in memory has one connection; give sqlite:///PATH")
        if must_exist and not Path(str(parsed.database)).is_file():
            raise StoreError(f"{field}: {parsed.database} does not exist; {_WAY_OUT}")
        try:
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise StoreError(f"{field}: {parsed.database!r}: {why}; {_WAY_OUT}") from None
    return parsed


def _engine(url: URL, field: str) -> Engine:
    options: dict[str, Any] = {"pool_size": 8, "max_overflow": 32, "pool_timeout": BUSY_SECONDS}
    if url.get_backend_name() == "postgresql":
        options |= {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
    else:
        options["connect_args"] = {"timeout": BUSY_SECONDS}
    try:
        engine = create_engine(url, **options)
        engine.dialect.create_connect_args(url)
    except (ValueError, ArgumentError) as error:  # of one of its parameters
        raise StoreError(f"{field}: {error}; {_WAY_OUT}") from None
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise StoreError(f"{field}: {error}; install the driver that the URL names") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions late; `_begin_sqlite` does it
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
