"""One worker process of a group under fire: ``python -m tests.chaos.group_worker URL …``.

Prints one line per handler call and per event of the group, with the machine's monotonic clock
(the same in all processes), flushed at once: what a killed worker said before it died is known.
Ends when standard input ends.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable

import nats

from millstream_coordinator import Group, KvSink, Message, Verdict
from millstream_coordinator.errors import GroupError
from millstream_coordinator.events import GroupEvent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--member", default=None)
    parser.add_argument("--handler-ms", type=float, default=10.0)
    parser.add_argument("--max-lanes", type=int, default=4)
    parser.add_argument("--sink", default=None, help="bucket of a fenced sink to write chains into")
    return parser.parse_args()


def say(kind: str, *facts: object) -> None:
    print(kind, repr(time.monotonic()), *facts, flush=True)


def _tell(event: GroupEvent) -> None:
    facts = [f"{name}={getattr(event, name)}" for name in event.__slots__]
    say(type(event).__name__, *facts)


def extend(seq: int) -> Callable[[bytes | None], bytes]:
    """Append a sequence to a key's chain: it is wrong if one is lost, repeated or out of order."""
    return lambda before: b" ".join([*(before or b"").split(), str(seq).encode()])


async def _main() -> None:
    given = _arguments()
    sink = None
    connection = None
    if given.sink:
        connection = await nats.connect(
            given.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1
        )
        sink = await KvSink.open(connection, given.sink)
    group = Group(
        given.url,
        stream=given.stream,
        name=given.name,
        partitions=given.partitions,
        member=given.member,
        max_lanes=given.max_lanes,
        on_event=_tell,
    )

    @group.handler(key="flights.*.{key}")
    async def follow(message: Message) -> None:
        say("handle", message.partition, message.epoch, message.seq)
        await asyncio.sleep(given.handler_ms / 1000)
        if sink is not None:
            try:
                applied = await sink.apply(message, extend(message.seq))
            except GroupError:
                say("refused", message.partition, message.epoch, message.seq)
                raise
            say("applied" if applied is Verdict.APPLY else "repeat", message.partition, message.seq)

    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4096):  # the parent is gone
            loop.remove_reader(sys.stdin)
            stopping.append(loop.create_task(group.stop()))

    loop.add_reader(sys.stdin, on_stdin)
    try:
        await group.run()
    finally:
        loop.remove_reader(sys.stdin)
        if connection is not None:
            await connection.close()


if __name__ == "__main__":
    asyncio.run(_main())
