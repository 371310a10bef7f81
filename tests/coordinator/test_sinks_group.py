"""Groups on fenced sinks: handlers that fail after their effect, and members that come and go."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from nats.aio.client import Client

from millstream_coordinator import Group, Message
from millstream_coordinator.sinks import (
    BatchSink,
    Output,
    SinkError,
    SqlSink,
    StaleEpoch,
    Verdict,
)
from tests.helpers.servers import Server

from .members import running, until

MESSAGES = 210
KEYS = 7
TIMEOUT_S = 30.0

Apply = Callable[[Message], Awaitable[Verdict]]


async def published(client: Client, name: str) -> None:
    """Messages of `KEYS` keys, numbered through."""
    stream = client.jetstream()
    await stream.add_stream(name=name.upper(), subjects=[f"{name}.*.*"])
    for number in range(MESSAGES):
        key = number % KEYS
        await stream.publish(f"{name}.{key % 4}.k{key}", str(number).encode())


class Members:
    """Members of one group, whose handler fails once in a while after its effect is there."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.handled: set[int] = set()
        self.failed: set[int] = set()

    def member(self, apply: Apply, fence: Callable[[int, int], Awaitable[None]]) -> Group:
        async def on_assigned(partition: int, epoch: int) -> None:
            # The first effect raises the fence as well.
            with suppress(SinkError, StaleEpoch):
                await fence(partition, epoch)

        group = Group(
            self.url,
            stream=self.name.upper(),
            name=self.name,
            partitions=4,
            on_assigned=on_assigned,
        )

        @group.handler(key=f"{self.name}.*.{{key}}")
        async def follow(message: Message) -> None:
            await apply(message)
            number = int(message.data)
            if number % 10 == 0 and number not in self.failed:
                self.failed.add(number)
                raise RuntimeError("after the effect")
            self.handled.add(number)

        return group

    async def share(self, one: Group, other: Group) -> None:
        """Handle all messages with one member, then both, then the other alone."""
        async with running(one):
            await until(lambda: len(self.handled) >= MESSAGES // 3, TIMEOUT_S)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(other.run(handle_signals=False))
                await until(
                    lambda: bool(other.partitions) or len(self.handled) == MESSAGES, TIMEOUT_S
                )
                await one.stop()
                await until(lambda: len(self.handled) == MESSAGES, TIMEOUT_S)
                await other.stop()


def expected(key: int) -> list[str]:
    return [str(number) for number in range(MESSAGES) if number % KEYS == key]


async def test_rows_are_written_once_and_in_order_by_members_that_come_and_go(
    server: Server, client: Client, name: str, tmp_path: Path
) -> None:
    await published(client, name)
    path = tmp_path / "effects.db"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=30)

    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE effects (id INTEGER PRIMARY KEY, entry TEXT, text TEXT)")
    database.close()
    sinks = [await SqlSink.open(sqlite3, connect, group=name) for _ in range(2)]
    members = Members(server.url, name)

    def applying(sink: SqlSink) -> Apply:
        def insert(message: Message, cursor: sqlite3.Cursor) -> None:
            values = ((message.key or b"").decode(), message.data.decode())
            cursor.execute("INSERT INTO effects (entry, text) VALUES (?, ?)", values)

        return lambda message: sink.apply(message, lambda cursor: insert(message, cursor))

    await members.share(*(members.member(applying(it), it.fence) for it in sinks))

    connection = connect()
    rows = connection.execute("SELECT entry, text FROM effects ORDER BY id").fetchall()
    connection.close()
    for sink in sinks:
        await sink.close()
    for key in range(KEYS):
        assert [text for entry, text in rows if entry == f"k{key}"] == expected(key)
    assert sum(sink.counters.applied for sink in sinks) == MESSAGES
    assert sum(sink.counters.refused_repeat for sink in sinks) >= MESSAGES // 10


async def test_outputs_are_published_once_and_in_order_by_members_that_come_and_go(
    server: Server, client: Client, name: str
) -> None:
    await published(client, name)
    config = {
        "name": f"{name}_OUT",
        "subjects": [f"out.{name}.>", f"millstream.sink.{name}.>"],
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
    }
    await client.request(
        f"$JS.API.STREAM.CREATE.{name}_OUT", json.dumps(config).encode(), timeout=5
    )
    sinks = [await BatchSink.open(client, stream=f"{name}_OUT", group=name) for _ in range(2)]
    members = Members(server.url, name)

    def applying(sink: BatchSink) -> Apply:
        def outputs(message: Message) -> list[Output]:
            key = (message.key or b"").decode()
            return [Output(subject=f"out.{name}.{key}.{part}", data=message.data) for part in "ab"]

        return lambda message: sink.apply(message, outputs(message))

    await members.share(*(members.member(applying(it), it.fence) for it in sinks))

    found: dict[str, list[str]] = {}
    subscription = await client.jetstream().subscribe(f"out.{name}.>", ordered_consumer=True)
    for _ in range(2 * MESSAGES):
        message = await subscription.next_msg(timeout=TIMEOUT_S)
        found.setdefault(message.subject, []).append(message.data.decode())
    for key in range(KEYS):
        for part in "ab":
            assert found[f"out.{name}.k{key}.{part}"] == expected(key)
    assert sum(sink.counters.applied for sink in sinks) == MESSAGES
