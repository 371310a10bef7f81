"""A worker's test without a server: a whole group in virtual time, one member crashes.

`follow` is the worker under test. The test runs in some milliseconds, and with the same seed it
does the same each time. With pytest it would be a plain function like `test_every_leg_is_followed`.
"""

import asyncio
from functools import partial

from millstream_coordinator import Group, MemoryServer, MemorySink, Message, run_virtual


async def follow(message: Message, sink: MemorySink) -> None:
    """The worker: remember an aircraft's legs, which takes a second each."""
    await asyncio.sleep(1)

    def add(before: bytes | None) -> bytes:
        return (before or b"") + b" " + message.data

    await sink.apply(message, add)


def test_every_leg_is_followed_once_and_in_order_when_a_worker_crashes() -> None:
    """What the worker is for."""

    async def main() -> None:
        server, sink = MemoryServer(seed=7), MemorySink()
        server.add_stream("FLIGHTS")
        for leg in range(20):
            server.publish("FLIGHTS", f"flights.{leg % 4}.N{leg % 4}", b"%d" % leg)

        async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
            members = []
            for name in ("a", "b"):
                group = Group(server, stream="FLIGHTS", name="g", partitions=4, member=name)
                group.handler(key="flights.*.{key}")(partial(follow, sink=sink))
                members.append((group, tasks.create_task(group.run(handle_signals=False))))
            await server.until(lambda: sink.counters.applied >= 6)
            members[0][1].cancel()  # a crash; `stop` would be a farewell
            await server.until(lambda: sink.counters.applied == 20)
            await members[1][0].stop()

        assert await sink.value(b"N0") == b" 0 4 8 12 16"
        assert await sink.value(b"N3") == b" 3 7 11 15 19"

    run_virtual(main())


test_every_leg_is_followed_once_and_in_order_when_a_worker_crashes()
print("20 legs in order, one worker crashed, no server was there")
