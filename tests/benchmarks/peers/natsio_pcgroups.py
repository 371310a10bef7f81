"""natsio's partitioned consumer group as one member: runs under a Python that has natsio-pcgroups.

Prints the same line as ``tests.benchmarks.group_load``. Arguments: URL, stream, name, messages,
handler in milliseconds. The stream's first subject token is the partition, as the library wants it.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import natsio
from natsio.pcgroups import create_static, static_consume


async def main(url: str, stream: str, name: str, messages: int, handler_ms: float) -> None:
    client = await natsio.connect(url)
    context = client.jetstream()
    await create_static(context, stream, name, 1, ["pcg.*"], ["one"])
    done = asyncio.Event()
    count = 0
    wall_s = cpu_s = 0.0

    async def handle(message: Any) -> None:
        nonlocal count, wall_s, cpu_s
        if not count:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
        if handler_ms:
            await asyncio.sleep(handler_ms / 1000)
        await message.ack()
        count += 1
        if count == messages:
            wall_s = time.perf_counter() - wall_s
            cpu_s = time.process_time() - cpu_s
            done.set()

    await static_consume(context, stream, name, "one", handle)
    await done.wait()
    print(json.dumps({"messages": messages, "wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": 0}))
    sys.stdout.flush()
    os._exit(0)  # the library's own end is not measured


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
