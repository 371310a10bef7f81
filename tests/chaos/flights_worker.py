"""One worker that follows aircraft: ``python -m tests.chaos.flights_worker URL …``.

Says how many effects it has made, a few times a second, and ends when standard input ends.
"""

import argparse
import asyncio
import os
import sys

from millstream.demo.tracks import decode, encode, follow
from millstream_coordinator import Group, KvSink, Message, Verdict
from millstream_coordinator.events import GroupEvent, Joined
from tests.chaos.group_worker import connect, say

_TELL_EVERY_S = 0.2


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    for name in ("--stream", "--name", "--member", "--sink", "--key-rule"):
        parser.add_argument(name, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    given = parser.parse_args()
    connection = await connect(given.url)
    sink = await KvSink.open(connection, given.sink)
    made = 0

    def tell_joined(event: GroupEvent) -> None:
        if isinstance(event, Joined):
            say("Joined")

    group = Group(
        connection,
        stream=given.stream,
        name=given.name,
        partitions=given.partitions,
        member=given.member,
        on_event=tell_joined,
    )

    @group.handler(key=given.key_rule)
    async def fly(message: Message) -> None:
        nonlocal made
        number = int(message.headers["Flight-Number"])
        verdict = await sink.apply(
            message, lambda before: encode(follow(decode(before), 0, number, message.data))
        )
        made += verdict is Verdict.APPLY

    async def tell() -> None:
        while True:
            say("made", made)
            await asyncio.sleep(_TELL_EVERY_S)

    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4096):  # the parent is gone
            loop.remove_reader(sys.stdin)
            stopping.append(loop.create_task(group.stop()))

    loop.add_reader(sys.stdin, on_stdin)
    telling = asyncio.create_task(tell(), name="tell")
    try:
        await group.run()
    finally:
        telling.cancel()
        loop.remove_reader(sys.stdin)
        say("made", made)
        await connection.close()


if __name__ == "__main__":
    asyncio.run(_main())
