"""One member of a group: prints ``handle <monotonic clock> <partition>`` for each message.

Arguments: URL, group, partitions, and a static member's name if it is one. Leaves on SIGTERM.
"""

import asyncio
import sys
import time
from datetime import timedelta

from millstream_coordinator import Group, Message


async def main(url: str, name: str, partitions: str, member: str | None = None) -> None:
    group = Group(
        url,
        stream="FLIGHTS",
        name=name,
        partitions=int(partitions),
        member=member,
        static_grace=timedelta(seconds=10 if member else 0),
    )

    @group.handler(key="flights.*.{key}")
    async def handle(message: Message) -> None:
        print("handle", repr(time.monotonic()), message.partition, flush=True)

    await group.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
