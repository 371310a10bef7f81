"""Many members of one group in one process: started, then left idle.

Arguments: URL, stream, group, partitions, members. Prints the seconds until every partition is
served, then a line ``idle``, and ends when its standard input does.
"""

import asyncio
import os
import sys
import time

from millstream_coordinator import Group, Message


async def main(url: str, stream: str, name: str, partitions: str, members: str) -> None:
    served: set[int] = set()
    all_served = asyncio.Event()

    def assigned(partition: int, _epoch: int) -> None:
        served.add(partition)
        if len(served) == int(partitions):
            all_served.set()

    crowd = []
    for number in range(int(members)):
        group = Group(
            url,
            stream=stream,
            name=name,
            partitions=int(partitions),
            member=f"m{number:03}",
            on_assigned=assigned,
        )

        @group.handler(key="bench.*.{key}")
        async def nothing(message: Message) -> None:
            pass

        crowd.append(group)
    began_at = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for group in crowd:
            tasks.create_task(group.run(handle_signals=False))
        await all_served.wait()
        print(time.monotonic() - began_at, flush=True)
        print("idle", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        os._exit(0)  # leaving is not measured


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
