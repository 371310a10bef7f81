"""A member's port with everything it is told written down, on any of three servers.

What is done to the server from outside (publish, purge, delete) goes through `Bench`, so that a
scenario is written once: for the model in memory, for the embedded broker, for nats-server.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import nats
from nats.aio.client import Client

from millstream_coordinator import naming
from millstream_coordinator.jetstream.port import JetStreamPort
from millstream_coordinator.memory import MemoryServer
from millstream_coordinator.model import (
    ConfigRecord,
    FailurePolicy,
    Limits,
    MemberSettings,
    Message,
    Retention,
    Timing,
)
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.ports import (
    Command,
    CreateConsumer,
    Delivered,
    Done,
    Happening,
    OpenPull,
    Port,
    Prepare,
    Prepared,
    ReadConsumer,
    Reply,
)

WAIT_S = 60.0
Kind = TypeVar("Kind")


class Member:
    """An open port: `ask` it, look at what it was told."""

    def __init__(self, port: Port, settings: MemberSettings) -> None:
        self.port = port
        self.settings = settings
        self.told: list[Happening | Reply] = []
        self._news = asyncio.Event()
        self._last_id = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, event: Happening | Reply) -> None:
        self.told.append(event)
        self._news.set()

    def spawn(self, task: Coroutine[None, None, None], name: str) -> None:
        started = asyncio.get_running_loop().create_task(task, name=name)
        self._tasks.add(started)
        started.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        await self.port.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ask(self, make: Callable[[int], Command]) -> Reply:
        """Carry out the command made with the next id; its reply."""
        self._last_id += 1
        wanted = self._last_id
        self.port.execute(make(wanted))
        await self.until(lambda: any(getattr(one, "id", 0) == wanted for one in self.told))
        return next(one for one in self.told if getattr(one, "id", 0) == wanted)  # type: ignore[return-value]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                self._news.clear()
                await self._news.wait()

    async def hears(self, kind: type[Kind], count: int = 1) -> list[Kind]:
        """Wait for so many happenings of a kind; all there are."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [one for one in self.told if isinstance(one, kind)]

    async def messages(self, count: int) -> list[Message]:
        """Wait for so many deliveries; all there are, in order."""
        await self.until(lambda: len(self.delivered) >= count)
        return self.delivered

    @property
    def delivered(self) -> list[Message]:
        return [message for one in self.of(Delivered) for message in one.messages]

    # ---- what scenarios often do ----

    async def create(
        self, epoch: int, partition: int = 0, start_seq: int = 1, level: int = 0
    ) -> Reply:
        return await self.ask(
            lambda id_: CreateConsumer(
                id=id_,
                name=self.consumer(epoch, partition),
                partition=partition,
                start_seq=start_seq,
                level=level,
            )
        )

    async def pull(self, epoch: int, number: int, partition: int = 0, start_seq: int = 1) -> None:
        """Make a consumer and pull from it."""
        reply = await self.create(epoch, partition, start_seq)
        assert isinstance(reply, Done), reply
        self.open_pull(epoch, number, partition)

    def open_pull(self, epoch: int, number: int, partition: int = 0) -> None:
        name = self.consumer(epoch, partition)
        self.port.execute(OpenPull(pull=number, name=name, partition=partition, epoch=epoch))

    def consumer(self, epoch: int, partition: int = 0) -> str:
        return naming.consumer(self.settings.group, partition, epoch)

    async def books(self, epoch: int, partition: int = 0) -> Reply:
        name = self.consumer(epoch, partition)
        return await self.ask(lambda id_: ReadConsumer(id=id_, name=name))


class Bench:
    """One server, and a group's name of its own on it."""

    def __init__(self, name: str, memory: MemoryServer | None, url: str | None) -> None:
        self.name = name
        self.memory = memory
        self.url = url
        self._clients: dict[str, Client] = {}
        self._members: list[Member] = []

    @property
    def stream(self) -> str:
        return self.name.upper()

    @property
    def rule(self) -> KeyRule:
        return KeyRule.parse(f"{self.name}.{{partition}}.{{partition:4}}.{{key}}")

    async def _client(self, who: str) -> Client:
        assert self.url is not None
        if who not in self._clients:
            self._clients[who] = await nats.connect(
                self.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1
            )
        return self._clients[who]

    async def add_stream(self, retention: Retention = Retention.LIMITS) -> None:
        if self.memory is not None:
            self.memory.add_stream(self.stream, retention)
            return
        client = await self._client("outside")
        await client.jetstream().add_stream(
            name=self.stream, subjects=[f"{self.name}.>"], retention=retention.value
        )

    async def publish(self, partition: int, key: str, data: bytes = b"") -> int:
        """Store a message of a partition of 4, which is one of 2 as well."""
        subject = f"{self.name}.{partition % 2}.{partition}.{key}"
        if self.memory is not None:
            return self.memory.publish(self.stream, subject, data)
        client = await self._client("outside")
        return (await client.jetstream().publish(subject, data)).seq

    async def purge(self, below: int) -> None:
        if self.memory is not None:
            self.memory.purge(self.stream, below)
            return
        client = await self._client("outside")
        await client.jetstream().purge_stream(self.stream, seq=below)

    async def delete_stream(self) -> None:
        if self.memory is not None:
            self.memory.delete_stream(self.stream)
            return
        await (await self._client("outside")).jetstream().delete_stream(self.stream)

    async def delete_bucket(self) -> None:
        if self.memory is not None:
            self.memory.delete_bucket(self.name)
            return
        client = await self._client("outside")
        await client.jetstream().delete_stream(f"KV_{naming.bucket(self.name)}")

    async def cut(self, member: Member) -> None:
        """Break a member's connection; it comes back by itself."""
        if self.memory is not None:
            self.memory.disconnect(member.settings.member)
            return
        transport = self._clients[member.settings.member]._transport
        assert transport is not None
        transport.close()  # type: ignore[no-untyped-call]

    async def end(self, member: Member) -> None:
        """Close a member's port; when this returns the server knows."""
        await member.end()
        if self.memory is None:
            await self._clients[member.settings.member].flush()

    async def member(self, member: str = "a", *, has_stream: bool = True, **more: Any) -> Member:
        """Open a port; its bucket is made."""
        timing = Timing(ack_wait_s=more.pop("ack_wait_s", 3600.0), request_timeout_s=5.0)
        config = ConfigRecord(
            partitions=2,
            stream=self.stream if has_stream else None,
            filter=self.rule.filter_text if has_stream else None,
            levels=(2, 4),
            on_failure=FailurePolicy.DEAD_LETTER,
        )
        settings = MemberSettings(
            group=self.name,
            member=member,
            instance=f"{member}1",
            config=replace(config, **more.pop("config", {})),
            timing=timing,
            limits=Limits(max_ack_pending=more.pop("max_ack_pending", 256)),
        )
        rule = self.rule if has_stream else None
        if self.memory is not None:
            port: Port = self.memory.port(settings, rule)
        else:
            port = JetStreamPort(await self._client(member), settings, rule)
        one = Member(port, settings)
        await port.open(one.hear, one.spawn)
        self._members.append(one)
        prepared = await one.ask(lambda id_: Prepare(id=id_))
        assert isinstance(prepared, Prepared), prepared
        return one

    async def close(self) -> None:
        for member in self._members:
            await member.end()
        for client in self._clients.values():
            await client.close()


@asynccontextmanager
async def bench(name: str, memory: MemoryServer | None, url: str | None) -> AsyncIterator[Bench]:
    """Make a bench; everything it opened is closed behind it."""
    made = Bench(name, memory, url)
    try:
        yield made
    finally:
        await made.close()
