"""A control arm's worker: one durable consumer per partition with MaxAckPending=1, pulled by all.

What people do who have no groups. Order holds while everybody is well or dead; a process that was
stopped in the middle of a message wakes up after the message went to another one, and writes.
Says the same lines as ``group_worker``, and ends when standard input ends.
"""

import argparse
import asyncio
import os
import sys

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from tests.chaos.group_worker import PLAIN, Apply, connect, open_sink, say

ACK_WAIT_S = 1.0


async def _pull(client: Client, given: argparse.Namespace, partition: int, apply: Apply) -> None:
    subscription = await client.jetstream().pull_subscribe(
        f"flights.{partition}.>",
        durable=f"{given.name}-{partition}",
        stream=given.stream,
        config=ConsumerConfig(ack_wait=ACK_WAIT_S, max_ack_pending=1),
    )
    while True:
        try:
            (message,) = await subscription.fetch(1, timeout=1)
        except (nats.errors.Error, nats.js.errors.Error):
            continue
        seq = message.metadata.sequence.stream
        say("handle", partition, 0, seq)
        await asyncio.sleep(given.handler_ms / 1000)
        await apply(message.subject.rpartition(".")[2], seq, message.data, None)
        await message.ack()
        say("applied", partition, 0, seq)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    for name in ("--stream", "--name", "--member", "--sink", "--key-rule"):
        parser.add_argument(name, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--handler-ms", type=float, required=True)
    given = parser.parse_args()
    client = await connect(given.url)
    apply = await open_sink(client, given.sink, PLAIN)
    loop = asyncio.get_running_loop()
    is_over = asyncio.Event()

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4096):  # the parent is gone
            is_over.set()

    loop.add_reader(sys.stdin, on_stdin)
    pulling = [
        asyncio.create_task(_pull(client, given, one, apply), name=f"pull {one}")
        for one in range(given.partitions)
    ]
    over = asyncio.create_task(is_over.wait(), name="over")
    done, _ = await asyncio.wait((over, *pulling), return_when=asyncio.FIRST_COMPLETED)
    for one in done:
        one.result()  # a puller that ended has failed
    await client.close()


if __name__ == "__main__":
    asyncio.run(_main())
