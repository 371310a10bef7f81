"""A sink in a database, through any DB-API 2.0 module: effect and mark are one transaction.

With PostgreSQL and psycopg 3 (the extra ``postgres``)::

    sink = await SqlSink.open(psycopg, lambda: psycopg.connect(dsn), group="orders")

    @group.handler(key="orders.*.{key}")
    async def book(message: Message) -> None:
        def effect(cursor: psycopg.Cursor) -> None:
            cursor.execute("UPDATE account SET … WHERE id = %s", (message.key,))

        await sink.apply(message, effect)

``effect`` is a plain function. It runs in a thread, inside the transaction, and may run again when
the transaction has to be repeated: what it does through its cursor counts once, and it should do
nothing else. It neither commits nor rolls back. What it raises reaches the caller, with everything
taken back; the module's OperationalError (a deadlock, a serialization failure) after some attempts.

**The table.** One for each group (`table_of`), made if it is missing, with a row for each key, each
message without a key, and each partition's fence::

    entry VARCHAR(400), mark INTEGER, epoch BIGINT, seq BIGINT, PRIMARY KEY (entry, mark)

A row of a message without a key (``entry`` like ``=none.%``) may be deleted once the message cannot
come again: below the floor that ``describe`` shows, for one.

**One transaction**, judged by the database and never by what was read before:

1. ``UPDATE … SET epoch, seq WHERE entry, mark AND epoch <= … AND seq < …``. A row that is not
   touched says what refused it; a missing one is inserted, and who inserts second begins anew.
2. The effect.
3. The fence of the partition. Only the first effect under an epoch writes that row; then it is read
   with ``FOR SHARE``, so that keys do not wait for each other, while a new owner that raises it
   waits for the effects that passed it. (Databases without ``FOR SHARE`` get an UPDATE instead.
   SQLite has one writer at a time anyway.) It comes last, so that it is locked for no longer than
   the commit takes. The same query reads the mark back: an effect that ended the transaction, or
   went on after an error that had undone it, is found out.
4. Commit. When its answer does not come the next attempt finds its own mark.

**A worker that is stopped in the middle** holds its transaction's locks until the database notices.
Let it: ``idle_in_transaction_session_timeout`` of some seconds on PostgreSQL, and time limits of
the driver's (``connect_timeout``, TCP keepalives), as a thread can't be interrupted from outside.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ..naming import check_name
from .contract import (
    BadEffect,
    SinkContended,
    SinkCounters,
    SinkUnavailable,
    SinkUnfit,
    StaleEpoch,
    Unconfirmed,
    admits,
    pause_s,
)
from .dbapi import (
    MODULE_NAMES,
    PARAMSTYLES,
    Connection,
    Cursor,
    Module,
    Parameters,
    Statements,
)
from .mark import Fenced, Mark, Verdict, entry_key
from .sessions import ConnectFailed, ConnectionLost, Sessions, is_awaitable

Effect = Callable[[Any], object]
"""Gets a cursor of the module's inside the transaction; what it returns is not looked at."""

TABLE_LETTERS_MAX = 63
"""PostgreSQL's limit for a name; a longer one would be cut off in silence."""
_TABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}")
_FENCE = "=fence"

_CREATE = (
    "CREATE TABLE {table} (entry VARCHAR(400) NOT NULL, mark INTEGER NOT NULL,"
    " epoch BIGINT NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (entry, mark))"
)
_LOOK = "SELECT entry, mark, epoch, seq FROM {table} WHERE 1 = 0"
_INSERT = "INSERT INTO {table} (entry, mark, epoch, seq) VALUES (:entry, :mark, :epoch, :seq)"
_ADVANCE = (
    "UPDATE {table} SET epoch = :epoch, seq = :seq"
    " WHERE entry = :entry AND mark = :mark AND epoch <= :epoch AND seq < :seq"
)
_READ = "SELECT epoch, seq FROM {table} WHERE entry = :entry AND mark = :mark"
_DELETE = "DELETE FROM {table} WHERE entry = :entry AND mark = :mark"
_RAISE = (
    "UPDATE {table} SET epoch = :epoch, seq = seq + 1"
    " WHERE entry = :fence AND mark = :partition AND epoch <= :epoch"
)
_RAISE_FIRST = (
    "INSERT INTO {table} (entry, mark, epoch, seq) VALUES (:fence, :partition, :epoch, 1)"
)
_CHECK = (
    "SELECT entry, epoch, seq FROM {table}"
    " WHERE (entry = :entry AND mark = :mark) OR (entry = :fence AND mark = :partition)"
)


def table_of(group: str) -> str:
    """Name of a group's table of marks: another for each group, legal and the same everywhere.

    Lower-case letters and digits stand for themselves, the rest is ``_`` and two hex digits.
    """
    escaped = re.sub("[^a-z0-9]", lambda it: f"_{ord(it[0]):02x}", check_name("group", group))
    name = f"millstream_marks_{escaped}"
    if len(name) > TABLE_LETTERS_MAX:
        digest = hashlib.blake2b(group.encode(), digest_size=12).hexdigest()
        name = f"millstream_marks__{digest}"
    return name


@dataclass(frozen=True, slots=True)
class _Seen:
    """How one transaction went: applied, or what the database holds instead."""

    is_applied: bool = False
    mark: Mark | None = None
    fence_epoch: int = 0


class _EffectRaised(Exception):
    """The effect's own error, which is the caller's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Contended(Exception):
    """Somebody else was quicker, so that the transaction has to begin anew."""


class SqlSink:
    """Effects are statements; one object serves any number of tasks, a table only one group.

    Made by `open`; ``close``, or ``async with``, gives the connections back.
    """

    def __init__(
        self, module: Module, sessions: Sessions, table: str, *, attempts_max: int = 16
    ) -> None:
        self.name = f"sql:{table}"
        self.table = table
        self.counters = SinkCounters()
        self._module = module
        self._sessions = sessions
        self._statements = Statements(module.paramstyle)
        self._attempts_max = attempts_max
        self._unconfirmed = Unconfirmed()
        self._fenced: dict[int, int] = {}
        """Partition to the epoch that this object has put into its fence."""
        self._has_share_locks = False

    @classmethod
    async def open(
        cls,
        module: Module,
        connect: Callable[[], Any],
        *,
        group: str,
        table: str | None = None,
        connections_max: int = 4,
        attempts_max: int = 16,
    ) -> Self:
        """Make the sink of a group, with its table if that is missing.

        ``connect`` opens one more connection of ``module``'s; it is called in a thread, for at most
        ``connections_max`` connections at a time. ``table`` may name another table, also with its
        schema. Raises BadName, SinkUnfit for anything that could not work, SinkUnavailable.
        """
        table = table_of(group) if table is None else table
        name = f"sql:{table}"
        if not _TABLE.fullmatch(table):
            raise SinkUnfit(name, "the table's name is not [schema.]name of A-Z a-z 0-9 _")
        _check_module(name, module)
        _check_connect(name, connect)
        if connections_max < 1:
            raise SinkUnfit(name, f"connections_max is {connections_max}, not 1 or more")
        sessions = Sessions(connect, connections_max, name)
        sink = cls(module, sessions, table, attempts_max=attempts_max)
        try:
            await sink._prepare()
        except BaseException:
            await sessions.close()
            raise
        return sink

    async def apply(self, message: Fenced, effect: Effect, /) -> Verdict:
        """See `Sink`. Raises StaleEpoch, BadEffect, SinkUnavailable or SinkContended."""
        self.counters.attempts += 1
        where = entry_key(message)
        reason = ""
        for attempt in range(self._attempts_max):
            if attempt:
                await asyncio.sleep(pause_s(attempt))
            try:
                seen = await self._transaction(where, message, effect)
            except _Contended:
                continue
            except _EffectRaised as raised:
                is_last = attempt == self._attempts_max - 1
                if is_last or not isinstance(raised.error, self._module.OperationalError):
                    raise raised.error from None
                continue
            except (ConnectionLost, self._module.Error) as error:
                reason = _reason(error)
                continue
            if seen.is_applied or self._unconfirmed.found(where, message, seen.mark):
                self._unconfirmed.forget(where, message)
                self.counters.applied += 1
                return Verdict.APPLY
            if not admits(message, seen.mark, self.counters, fence_epoch=seen.fence_epoch):
                return Verdict.REPEAT
        if reason:
            raise SinkUnavailable(self.name, reason)
        raise SinkContended(self.name, where, self._attempts_max)

    async def fence(self, partition: int, epoch: int) -> None:
        """Refuse effects of lower epochs in this partition from now on, whatever their key.

        A new owner's first effect does so as well. Waits for effects that have passed the fence
        already. Raises StaleEpoch if a higher epoch was here, SinkUnavailable.
        """
        values: Parameters = {"fence": _FENCE, "partition": partition, "epoch": epoch}

        def raised(connection: Connection) -> int:
            cursor = connection.cursor()
            self._raise(cursor, values)
            self._run(cursor, _READ, {"entry": _FENCE, "mark": partition})
            found = int(cursor.fetchone()[0])
            cursor.close()
            connection.commit()
            return found

        found = await self._repeated(raised)
        if found > epoch:
            raise StaleEpoch(partition, epoch, found)
        self._fenced[partition] = epoch

    async def close(self) -> None:
        """Give the connections back. Nothing may be applied after it."""
        await self._sessions.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _transaction(self, where: str, message: Fenced, effect: Effect) -> _Seen:
        """Carry one transaction through; adds to what is unconfirmed when nothing says how it went.

        Raises _Contended, _EffectRaised, ConnectionLost and the module's errors.
        """
        try:
            return await self._sessions.run(
                lambda connection: self._apply(connection, where, message, effect)
            )
        except ConnectFailed as error:
            raise SinkUnavailable(self.name, _reason(error)) from error
        except (ConnectionLost, asyncio.CancelledError, self._module.Error):
            self._unconfirmed.add(where, message)
            raise

    def _apply(self, connection: Connection, where: str, message: Fenced, effect: Effect) -> _Seen:
        """The transaction, in a thread; who calls rolls back what is not committed here."""
        values: Parameters = {
            "entry": where,
            "mark": message.mark,
            "epoch": message.epoch,
            "seq": message.seq,
            "fence": _FENCE,
            "partition": message.partition,
        }
        cursor = connection.cursor()
        self._run(cursor, _ADVANCE, values)
        if cursor.rowcount == 0:
            self._run(cursor, _READ, values)
            row = cursor.fetchone()
            if row is not None:
                connection.rollback()
                return _Seen(mark=Mark(int(row[0]), int(row[1])))
            self._insert(cursor, _INSERT, values)
        self._do(effect, cursor)
        fence_epoch = self._check(cursor, values)
        if fence_epoch > message.epoch:
            connection.rollback()
            return _Seen(fence_epoch=fence_epoch)
        cursor.close()
        connection.commit()
        self._fenced[message.partition] = message.epoch
        return _Seen(is_applied=True)

    def _do(self, effect: Effect, cursor: Cursor) -> None:
        try:
            result = effect(cursor)
        except Exception as error:
            raise _EffectRaised(error) from error
        if is_awaitable(result):
            raise BadEffect(
                self.name, "it is no plain function: what it returned has to be awaited"
            )

    def _check(self, cursor: Cursor, values: Parameters) -> int:
        """Pass the partition's fence, raising it to our epoch if that is higher; its epoch."""
        partition, epoch = int(values["partition"]), int(values["epoch"])
        if not self._has_share_locks or self._fenced.get(partition) != epoch:
            self._raise(cursor, values)
        self._run(cursor, _CHECK + (" FOR SHARE" if self._has_share_locks else ""), values)
        rows = {row[0]: (int(row[1]), int(row[2])) for row in cursor.fetchall()}
        if rows.get(str(values["entry"])) != (epoch, values["seq"]):
            raise BadEffect(self.name, "it ended the transaction it ran in")
        if _FENCE not in rows:
            # Somebody deleted it since we put it there.
            self._insert(cursor, _RAISE_FIRST, values)
            return epoch
        return rows[_FENCE][0]

    def _raise(self, cursor: Cursor, values: Parameters) -> None:
        """Raise a fence to an epoch, if it is not higher."""
        self._run(cursor, _RAISE, values)
        if cursor.rowcount == 0:
            self._run(cursor, _READ, {"entry": _FENCE, "mark": values["partition"]})
            if cursor.fetchone() is None:
                self._insert(cursor, _RAISE_FIRST, values)

    def _insert(self, cursor: Cursor, statement: str, values: Parameters) -> None:
        try:
            self._run(cursor, statement, values)
        except self._module.IntegrityError as error:
            raise _Contended from error

    def _run(self, cursor: Cursor, statement: str, values: Parameters) -> None:
        self._statements.run(cursor, statement.format(table=self.table), values)

    async def _repeated(self, work: Callable[[Connection], Any]) -> Any:
        """Do work that may be done again. Raises SinkUnavailable."""
        reason = "others were always quicker"
        for _ in range(self._attempts_max):
            try:
                return await self._sessions.run(work)
            except _Contended:
                continue
            except ConnectFailed as error:
                raise SinkUnavailable(self.name, _reason(error)) from error
            except (ConnectionLost, self._module.Error) as error:
                reason = _reason(error)
        raise SinkUnavailable(self.name, reason)

    async def _prepare(self) -> None:
        """Make the table if it is missing, and find out what the database can do."""
        try:
            await self._sessions.run(self._make_table)
            await self._sessions.run(self._probe)
            await self._sessions.run(self._probe_share_locks)
        except ConnectFailed as error:
            if isinstance(error.__cause__, TypeError):
                raise SinkUnfit(self.name, _reason(error)) from error
            raise SinkUnavailable(self.name, _reason(error)) from error
        except ConnectionLost as error:
            raise SinkUnavailable(self.name, _reason(error)) from error
        except self._module.Error as error:
            raise SinkUnfit(self.name, _reason(error)) from error

    def _make_table(self, connection: Connection) -> None:
        cursor = connection.cursor()
        try:
            self._run(cursor, _LOOK, {})
        except self._module.Error:
            connection.rollback()
            try:
                self._run(cursor, _CREATE, {})
                connection.commit()
            except self._module.Error as error:
                # Somebody else may have made it since we looked.
                connection.rollback()
                try:
                    self._run(cursor, _LOOK, {})
                except self._module.Error as still:
                    both = f"{_reason(still)}; {_reason(error)}"
                    raise SinkUnfit(self.name, both) from error
        connection.rollback()
        cursor.close()

    def _probe(self, connection: Connection) -> None:
        """Try what a mark stands on, and take it back. Raises SinkUnfit."""
        probe = f"=probe.{secrets.token_hex(8)}a"
        large = 2**53 + 1
        values: dict[str, str | int] = {"entry": probe, "mark": 0, "epoch": large, "seq": large}
        cursor = connection.cursor()
        self._run(cursor, _INSERT, values)
        try:
            self._run(cursor, _INSERT, {**values, "entry": probe.upper()})
        except self._module.IntegrityError as error:
            raise SinkUnfit(
                self.name, "the column entry does not tell 'a' from 'A': give it a binary collation"
            ) from error
        touched = []
        for seq in (large, large + 1):
            self._run(cursor, _ADVANCE, {**values, "seq": seq})
            touched.append(cursor.rowcount)
        self._run(cursor, _READ, values)
        row = cursor.fetchone()
        if touched != [0, 1] or tuple(row) != (large, large + 1):
            raise SinkUnfit(
                self.name, f"a conditional UPDATE counts {touched} rows and leaves {tuple(row)}"
            )
        connection.rollback()
        self._run(cursor, _READ, values)
        if cursor.fetchone() is not None:
            for entry in (probe, probe.upper()):
                self._run(cursor, _DELETE, {**values, "entry": entry})
            connection.commit()
            raise SinkUnfit(
                self.name, "its connections commit each statement: no autocommit please"
            )
        connection.rollback()
        cursor.close()

    def _probe_share_locks(self, connection: Connection) -> None:
        values: Parameters = {"entry": "", "mark": 0, "fence": _FENCE, "partition": 0}
        cursor = connection.cursor()
        try:
            self._run(cursor, f"{_CHECK} FOR SHARE", values)
            cursor.fetchall()
            self._has_share_locks = True
        except self._module.Error:
            self._has_share_locks = False
        connection.rollback()
        cursor.close()


def _check_module(sink: str, module: Module) -> None:
    missing = [name for name in MODULE_NAMES if not hasattr(module, name)]
    if missing:
        raise SinkUnfit(sink, f"{module!r} is no DB-API 2.0 module: it has no {missing[0]}")
    if module.apilevel != "2.0" or module.paramstyle not in PARAMSTYLES:
        raise SinkUnfit(
            sink,
            f"{module!r} says apilevel {module.apilevel!r} and paramstyle {module.paramstyle!r}:"
            f" 2.0 and one of {', '.join(PARAMSTYLES)} are known",
        )


def _check_connect(sink: str, connect: object) -> None:
    if not callable(connect):
        given = type(connect).__name__
        raise SinkUnfit(sink, f"connect is no function that opens a connection, but {given}")


def _reason(error: BaseException) -> str:
    """What the module said, in one line."""
    cause = error.__cause__ if isinstance(error, ConnectFailed | ConnectionLost) else error
    text = " ".join(str(cause).split())
    return text or type(cause).__name__
