"""One group in virtual time: a server in memory, a member, and what its handler saw."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps

from millstream_coordinator import Group, Message
from millstream_coordinator.events import GroupEvent
from millstream_coordinator.memory import MemoryServer
from millstream_coordinator.model import NO_HEADERS, R, Record, decode, encode
from millstream_coordinator.virtual import run_virtual

NAME = "g"
STREAM = "G"
RULE = "g.*.{key}"


class Log:
    """What handlers were called with, in order; some keys' messages fail as often as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes | None, int, int]] = []
        """Key, number, attempt of every call."""
        self.handled: list[tuple[bytes | None, int]] = []
        self.fails: Callable[[Message], bool] = lambda _: False

    async def __call__(self, message: Message) -> None:
        number = int(message.data)
        self.calls.append((message.key, number, message.attempt))
        await asyncio.sleep(0.001)
        if self.fails(message):
            raise ValueError(f"cannot handle {number}")
        self.handled.append((message.key, number))

    def of(self, key: bytes) -> list[int]:
        return [number for one, number in self.handled if one == key]


def open_server() -> MemoryServer:
    server = MemoryServer()
    server.add_stream(STREAM)
    return server


def publish(
    server: MemoryServer,
    key: str,
    number: int,
    partition: int = 0,
    headers: Mapping[str, str] = NO_HEADERS,
) -> int:
    return server.publish(STREAM, f"{NAME}.{partition}.{key}", str(number).encode(), headers)


def make(server: MemoryServer, handler: object, **more: object) -> tuple[Group, list[GroupEvent]]:
    events: list[GroupEvent] = []
    given: dict[str, object] = {"partitions": 1, "member": "a", "on_event": events.append, **more}
    group = Group(server, stream=STREAM, name=NAME, **given)  # type: ignore[arg-type]
    group.handler(key=RULE)(handler)  # type: ignore[type-var]
    return group, events


def read(server: MemoryServer, kind: type[R], key: str) -> R:
    value = server.value(NAME, key)
    assert value is not None
    return decode(kind, value)


def write(server: MemoryServer, key: str, record: Record) -> None:
    server.put(NAME, key, encode(record))


Test = Callable[[], Coroutine[None, None, None]]


def virtual(test: Test) -> Callable[[], None]:
    """Run an async test in virtual time: hours pass in no time, in the same order each time."""

    @wraps(test)
    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(600):
                await test()

        run_virtual(bounded())

    del run.__wrapped__  # else pytest sees an async test
    return run
