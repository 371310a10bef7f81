"""The SQL sink on sqlite3 and on PostgreSQL: the contract, and what a database adds to it."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millstream_coordinator.errors import BadName
from millstream_coordinator.sinks.contract import (
    BadEffect,
    SinkCounters,
    SinkUnavailable,
    SinkUnfit,
    StaleEpoch,
)
from millstream_coordinator.sinks.dbapi import PARAMSTYLES, Statements
from millstream_coordinator.sinks.mark import Fenced, Verdict
from millstream_coordinator.sinks.sql import SqlSink, table_of
from millstream_coordinator.sinks.testing import Delivery, EffectFailed, SinkContract, Trial
from tests.helpers import require
from tests.helpers.postgres import Postgres

POLLS = 400
POLL_S = 0.025


def proxied(module: Any, paramstyle: str) -> types.SimpleNamespace:
    """The module under another of the paramstyles that it takes."""
    names = ("apilevel", "Error", "IntegrityError", "OperationalError")
    return types.SimpleNamespace(
        paramstyle=paramstyle, **{name: getattr(module, name) for name in names}
    )


class Database:
    """A database for one test: how to connect, and its table of effects."""

    def __init__(self, module: Any, connect: Callable[[], Any], serial: str) -> None:
        self.module = module
        self.connect = connect
        self.statements = Statements(module.paramstyle)
        with self.cursor() as cursor:
            cursor.execute(f"CREATE TABLE effects (id {serial}, entry TEXT, text TEXT)")

    @contextlib.contextmanager
    def cursor(self) -> Iterator[Any]:
        """A transaction of the test's own."""
        connection = self.connect()
        try:
            yield connection.cursor()
            connection.commit()
        finally:
            connection.close()

    def insert(self, cursor: Any, key: bytes | None, text: str) -> None:
        """The effect ``text``."""
        entry = "none" if key is None else key.hex()
        statement = "INSERT INTO effects (entry, text) VALUES (:entry, :text)"
        self.statements.run(cursor, statement, {"entry": entry, "text": text})

    def texts(self, key: bytes = b"N14228") -> list[str]:
        """The effects of a key in order."""
        with self.cursor() as cursor:
            statement = "SELECT text FROM effects WHERE entry = :entry ORDER BY id"
            self.statements.run(cursor, statement, {"entry": key.hex()})
            return [text for (text,) in cursor.fetchall()]

    async def sink(self, **options: Any) -> SqlSink:
        """The group's sink once more."""
        connect = options.pop("connect", self.connect)
        module = options.pop("module", self.module)
        return await SqlSink.open(module, connect, group="orders", **options)


class SqlTrial:
    """The contract's trial."""

    def __init__(self, sink: SqlSink, database: Database) -> None:
        self.sink, self.database = sink, database

    @property
    def counters(self) -> SinkCounters:
        return self.sink.counters

    async def apply(self, message: Fenced, text: str, *, fails: bool = False) -> Verdict:
        def effect(cursor: Any) -> None:
            self.database.insert(cursor, message.key, text)
            if fails:
                raise EffectFailed

        return await self.sink.apply(message, effect)

    async def texts(self, key: bytes) -> list[str]:
        return await asyncio.to_thread(self.database.texts, key)

    async def close(self) -> None:
        await self.sink.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    require.need("postgres")
    with Postgres() as opened:
        yield opened


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    path = tmp_path / "orders.db"
    return Database(
        sqlite3, lambda: sqlite3.connect(path, timeout=30), "INTEGER PRIMARY KEY AUTOINCREMENT"
    )


@pytest.fixture
def postgres(server: Postgres, name: str) -> Database:
    import psycopg

    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    dsn = server.dsn.replace("dbname=postgres", f"dbname={name}")
    return Database(psycopg, lambda: psycopg.connect(dsn), "SERIAL PRIMARY KEY")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(str(request.param))
    return found


class SqlContract(SinkContract):
    """The contract with a fence for each partition."""

    fences_partitions = True
    database: Database

    async def open(self) -> Trial:
        return SqlTrial(await self.database.sink(), self.database)


class TestSqlite(SqlContract):
    """The contract on sqlite3 (qmark)."""

    @pytest.fixture(autouse=True)
    def _database(self, sqlite: Database) -> None:
        self.database = sqlite


class TestSqliteByName(SqlContract):
    """The contract on sqlite3, by the other of its paramstyles (named)."""

    @pytest.fixture(autouse=True)
    def _database(self, sqlite: Database) -> None:
        self.database = sqlite
        self.database.module = proxied(sqlite3, "named")


class TestPostgres(SqlContract):
    """The contract on PostgreSQL with psycopg (pyformat)."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres: Database) -> None:
        self.database = postgres


class TestPostgresByPlace(SqlContract):
    """The contract on PostgreSQL, by the other of psycopg's paramstyles (format)."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres: Database) -> None:
        self.database = postgres
        self.database.module = proxied(postgres.module, "format")


class TestPostgresWithoutShareLocks(TestPostgres):
    """The contract as it runs on a database that has no FOR SHARE."""

    async def open(self) -> Trial:
        trial = await super().open()
        assert isinstance(trial, SqlTrial)
        trial.sink._has_share_locks = False
        return trial


@pytest.fixture
async def two(database: Database) -> AsyncIterator[tuple[SqlSink, SqlSink]]:
    """An old owner's sink and a new one's."""
    async with await database.sink() as old, await database.sink() as new:
        yield old, new


@pytest.mark.parametrize(
    ("style", "text", "parameters"),
    [
        ("qmark", "a = ? AND b = ? OR a = ?", (1, "x", 1)),
        ("numeric", "a = :1 AND b = :2 OR a = :3", (1, "x", 1)),
        ("named", "a = :one AND b = :two OR a = :one", {"one": 1, "two": "x"}),
        ("format", "a = %s AND b = %s OR a = %s", (1, "x", 1)),
        ("pyformat", "a = %(one)s AND b = %(two)s OR a = %(one)s", {"one": 1, "two": "x"}),
    ],
)
def test_statements_are_written_in_each_paramstyle(
    style: str, text: str, parameters: object
) -> None:
    seen: list[object] = []
    cursor: Any = types.SimpleNamespace(execute=lambda *given: seen.extend(given))

    values: dict[str, str | int] = {"one": 1, "two": "x", "unused": 3}
    Statements(style).run(cursor, "a = :one AND b = :two OR a = :one", values)

    assert style in PARAMSTYLES
    assert seen == [text, parameters]


def test_groups_have_tables_of_their_own_with_names_every_database_takes() -> None:
    groups = ["a", "A", "a-b", "a_b", "a_2db", "x" * 64, "x" * 63 + "X", "-" * 64]

    tables = [table_of(group) for group in groups]

    assert len(set(tables)) == len(groups)
    assert all(table.islower() and len(table) <= 63 for table in tables)
    assert tables[0] == "millstream_marks_a"


async def test_two_owners_at_once_on_one_key_are_judged_by_the_database(
    postgres: Database,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(cursor: Any) -> None:
        postgres.insert(cursor, b"N14228", "5 by old")
        entered.set()
        go_on.wait(20)

    async with await postgres.sink() as old, await postgres.sink() as new:
        await old.apply(Delivery(seq=4), lambda cursor: postgres.insert(cursor, b"N14228", "4"))
        late = asyncio.create_task(old.apply(Delivery(seq=5, epoch=1), slow))
        await asyncio.to_thread(entered.wait, 20)
        rival = asyncio.create_task(
            new.apply(Delivery(seq=5, epoch=1), lambda cursor: postgres.insert(cursor, b"", "5"))
        )
        await until_somebody_waits(postgres)
        go_on.set()

        assert await late is Verdict.APPLY
        assert await rival is Verdict.REPEAT
    assert postgres.texts() == ["4", "5 by old"]


async def until_somebody_waits(database: Database) -> None:
    """Until a statement waits for another transaction's lock."""
    for _ in range(POLLS):
        with database.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
        await asyncio.sleep(POLL_S)
    raise TimeoutError("nobody waits for a lock")


async def test_an_effect_under_way_when_the_partition_is_fenced_is_taken_back(
    postgres: Database,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(cursor: Any) -> None:
        postgres.insert(cursor, b"N14228", "5 by old")
        entered.set()
        go_on.wait(20)

    async with await postgres.sink() as old, await postgres.sink() as new:
        late = asyncio.create_task(old.apply(Delivery(seq=5, epoch=1), slow))
        await asyncio.to_thread(entered.wait, 20)
        await new.fence(3, 2)
        go_on.set()

        with pytest.raises(StaleEpoch) as refused:
            await late
    assert refused.value.seen_epoch == 2
    assert postgres.texts() == []


async def test_a_fence_refuses_keys_nobody_has_touched(
    database: Database, two: tuple[SqlSink, SqlSink]
) -> None:
    old, new = two
    await new.fence(3, 5)

    with pytest.raises(StaleEpoch):
        await old.apply(Delivery(seq=1, epoch=4), lambda cursor: None)
    with pytest.raises(StaleEpoch):
        await old.fence(3, 4)

    other = await old.apply(Delivery(seq=1, epoch=4, partition=4), lambda cursor: None)
    assert other is Verdict.APPLY
    assert old.counters.refused_stale == 1


async def test_keys_of_a_partition_do_not_wait_for_each_other(postgres: Database) -> None:
    meeting = threading.Barrier(3)

    async with await postgres.sink(connections_max=3) as sink:
        await sink.fence(3, 1)
        effects = [
            sink.apply(Delivery(key=key), lambda cursor: meeting.wait(20))
            for key in (b"a", b"b", b"c")
        ]

        assert await asyncio.gather(*effects) == [Verdict.APPLY] * 3


async def test_there_are_no_more_connections_than_allowed(sqlite: Database) -> None:
    opened = 0

    def connect() -> Any:
        nonlocal opened
        opened += 1
        return sqlite.connect()

    async with await sqlite.sink(connect=connect, connections_max=2) as sink:
        deliveries = [Delivery(key=f"{number}".encode()) for number in range(12)]
        await asyncio.gather(*(sink.apply(it, lambda cursor: None) for it in deliveries))

    assert opened == 2


async def test_a_connection_that_is_cut_in_the_middle_is_replaced(postgres: Database) -> None:
    cut = 0

    def effect(cursor: Any) -> None:
        nonlocal cut
        postgres.insert(cursor, b"N14228", "1")
        cut += 1
        if cut == 1:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async with await postgres.sink() as sink:
        verdict = await sink.apply(Delivery(), effect)

    assert (cut, verdict) == (2, Verdict.APPLY)
    assert postgres.texts() == ["1"]


async def test_an_idle_connection_that_was_cut_is_replaced(postgres: Database) -> None:
    async with await postgres.sink(connections_max=1) as sink:
        with postgres.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        verdict = await sink.apply(Delivery(), lambda it: postgres.insert(it, b"N14228", "1"))

    assert verdict is Verdict.APPLY
    assert postgres.texts() == ["1"]


class Cut:
    """A connection that breaks at a commit: before it arrives, or before its answer does."""

    def __init__(self, connection: Any, error: Exception, *, arrives: bool) -> None:
        self._connection, self._error, self._arrives = connection, error, arrives
        self.is_armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        if not self.is_armed:
            self._connection.commit()
            return
        if self._arrives:
            self._connection.commit()
        self._connection.close()
        raise self._error

    def rollback(self) -> None:
        self._connection.rollback()


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_without_an_answer_is_found_or_done_again(
    database: Database, arrives: bool
) -> None:
    connections: list[Cut] = []

    def connect() -> Cut:
        error = database.module.OperationalError("the server closed the connection")
        connections.append(Cut(database.connect(), error, arrives=arrives))
        return connections[-1]

    async with await database.sink(connect=connect, connections_max=1) as sink:
        connections[0].is_armed = True
        verdict = await sink.apply(Delivery(), lambda it: database.insert(it, b"N14228", "1"))
        repeat = await sink.apply(Delivery(), lambda it: database.insert(it, b"N14228", "1"))

    assert (verdict, repeat) == (Verdict.APPLY, Verdict.REPEAT)
    assert database.texts() == ["1"]
    assert (sink.counters.attempts, sink.counters.applied) == (2, 1)


async def test_a_database_that_is_gone_is_unavailable(sqlite: Database) -> None:
    is_gone = False

    def connect() -> Any:
        if is_gone:
            raise sqlite3.OperationalError("connection refused")
        return sqlite.connect()

    async with await sqlite.sink(connect=connect, connections_max=2) as sink:
        is_gone = True
        outcomes = await asyncio.gather(
            *(sink.apply(Delivery(seq=seq), lambda cursor: None) for seq in (1, 2)),
            return_exceptions=True,
        )

    # One had the connection that was there, the other needed a second one.
    assert sorted(str(outcome) for outcome in outcomes) == [
        "apply",
        "sink 'sql:millstream_marks_orders' is unavailable: connection refused",
    ]


async def test_an_effect_that_undoes_the_mark_is_found_out(
    database: Database, two: tuple[SqlSink, SqlSink]
) -> None:
    sink, _ = two

    def effect(cursor: Any) -> None:
        cursor.connection.rollback()
        database.insert(cursor, b"N14228", "1")

    with pytest.raises(BadEffect, match="ended the transaction"):
        await sink.apply(Delivery(), effect)

    assert database.texts() == []


async def test_an_effect_that_goes_on_after_an_error_is_not_taken_for_done(
    postgres: Database,
) -> None:
    def effect(cursor: Any) -> None:
        postgres.insert(cursor, b"N14228", "1")
        with contextlib.suppress(Exception):
            cursor.execute("SELECT something FROM nowhere")

    async with await postgres.sink(attempts_max=2) as sink:
        with pytest.raises(SinkUnavailable, match="transaction is aborted"):
            await sink.apply(Delivery(), effect)

    assert postgres.texts() == []
    assert sink.counters.applied == 0


async def test_an_effects_own_database_error_reaches_the_caller(
    database: Database, two: tuple[SqlSink, SqlSink]
) -> None:
    sink, _ = two

    def effect(cursor: Any) -> None:
        cursor.execute("SELECT something FROM nowhere")

    with pytest.raises(database.module.Error, match="nowhere"):
        await sink.apply(Delivery(), effect)


async def test_an_effect_that_lost_against_another_transaction_is_tried_again(
    database: Database, two: tuple[SqlSink, SqlSink]
) -> None:
    sink, _ = two
    calls = 0

    def effect(cursor: Any) -> None:
        nonlocal calls
        calls += 1
        database.insert(cursor, b"N14228", "1")
        if calls < 3:
            raise database.module.OperationalError("deadlock detected")

    assert await sink.apply(Delivery(), effect) is Verdict.APPLY
    assert calls == 3
    assert database.texts() == ["1"]


async def test_async_effects_are_refused(database: Database, two: tuple[SqlSink, SqlSink]) -> None:
    sink, _ = two

    async def effect(cursor: Any) -> None:
        database.insert(cursor, b"N14228", "1")

    with pytest.raises(BadEffect, match="plain function"):
        await sink.apply(Delivery(), effect)


async def test_members_that_start_together_make_one_table(database: Database) -> None:
    sinks = await asyncio.gather(*(database.sink() for _ in range(6)))

    verdicts = await asyncio.gather(*(it.apply(Delivery(), lambda _: None) for it in sinks))

    assert sorted(verdicts) == [Verdict.APPLY, *[Verdict.REPEAT] * 5]
    for sink in sinks:
        await sink.close()


async def test_connections_in_autocommit_are_refused_and_leave_nothing(postgres: Database) -> None:
    connect = postgres.connect

    def autocommitting() -> Any:
        connection = connect()
        connection.autocommit = True
        return connection

    with pytest.raises(SinkUnfit, match="autocommit"):
        await postgres.sink(connect=autocommitting)

    with postgres.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM millstream_marks_orders")
        assert cursor.fetchone() == (0,)


async def test_autocommit_of_sqlite_is_refused(sqlite: Database, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"

    with pytest.raises(SinkUnfit, match="autocommit"):
        await sqlite.sink(connect=lambda: sqlite3.connect(path, isolation_level=None))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("entry TEXT COLLATE NOCASE, mark INT, epoch INT, seq INT", "binary collation"),
        ("entry TEXT, mark INT, epoch INT", "no such column: seq"),
    ],
)
async def test_a_table_that_cannot_hold_marks_is_refused(
    sqlite: Database, columns: str, reason: str
) -> None:
    with sqlite.cursor() as cursor:
        key = ", PRIMARY KEY (entry, mark)"
        cursor.execute(f"CREATE TABLE marks ({columns}{key})")

    with pytest.raises(SinkUnfit, match=reason):
        await sqlite.sink(table="marks")


async def test_columns_too_small_for_a_sequence_are_refused(postgres: Database) -> None:
    with postgres.cursor() as cursor:
        columns = "entry TEXT, mark INT, epoch INT, seq INT, PRIMARY KEY (entry, mark)"
        cursor.execute(f"CREATE TABLE marks ({columns})")

    with pytest.raises(SinkUnfit, match="out of range"):
        await postgres.sink(table="marks")


async def test_a_table_in_a_schema_may_be_there_already(postgres: Database) -> None:
    with postgres.cursor() as cursor:
        cursor.execute("CREATE SCHEMA shop")

    async with await postgres.sink(table="shop.marks") as sink:
        assert await sink.apply(Delivery(), lambda _: None) is Verdict.APPLY
    async with await postgres.sink(table="shop.marks") as sink:
        assert await sink.apply(Delivery(), lambda _: None) is Verdict.REPEAT


async def test_a_user_who_may_not_make_tables_is_told_so_in_one_line(postgres: Database) -> None:
    with postgres.cursor() as cursor:
        cursor.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        cursor.execute("DROP ROLE IF EXISTS reader")
        cursor.execute("CREATE ROLE reader")

    def connect() -> Any:
        connection = postgres.connect()
        connection.cursor().execute("SET ROLE reader")
        connection.commit()
        return connection

    with pytest.raises(SinkUnfit) as refused:
        await postgres.sink(connect=connect)

    assert "permission denied for schema public" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"table": "marks; DROP TABLE effects"}, "name is not"),
        ({"module": types}, "no DB-API 2.0 module"),
        ({"module": proxied(sqlite3, "dollar")}, "'dollar'"),
        ({"connect": "postgres://user:secret@host/db"}, "but str"),
        ({"connections_max": 0}, "connections_max is 0"),
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_done(
    sqlite: Database, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SinkUnfit, match=reason) as refused:
        await sqlite.sink(**options)

    assert "secret" not in str(refused.value)


async def test_a_wrong_group_is_refused(sqlite: Database) -> None:
    with pytest.raises(BadName):
        await SqlSink.open(sqlite3, sqlite.connect, group="a group")


async def test_async_connections_are_refused(sqlite: Database) -> None:
    async def connect() -> Any:
        return sqlite.connect()

    with pytest.raises(SinkUnfit, match="awaitable"):
        await sqlite.sink(connect=connect)


async def test_a_closed_sink_takes_nothing(sqlite: Database) -> None:
    sink = await sqlite.sink()
    await sink.close()

    with pytest.raises(SinkUnavailable, match="closed"):
        await sink.apply(Delivery(), lambda _: None)


def test_a_test_process_that_is_killed_leaves_no_server_behind() -> None:
    require.need("postgres")
    program = (
        "from tests.helpers.postgres import Postgres\n"
        "server = Postgres().open()\n"
        "print(server._folder, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])

        process.send_signal(signal.SIGKILL)

    for _ in range(POLLS):
        if not folder.exists():
            break
        threading.Event().wait(POLL_S)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
