"""One worker process of a group under fire: ``python -m tests.chaos.group_worker URL …``.

Prints one line per handler call and per event of the group, with the machine's monotonic clock
(the same in all processes), flushed at once: what a killed worker said before it died is known.
Ends when standard input ends.

With ``--sink`` each message's effect is one more link of its key's `Chain` in a bucket.
``--sink-kind plain`` leaves the fence out, as a control arm: what anybody would write who compares
and sets, but asks for neither epoch nor sequence.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import nats
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from millstream_coordinator import Group, KvSink, Message, StaleEpoch, Verdict
from millstream_coordinator.errors import GroupError
from millstream_coordinator.events import GroupEvent
from tests.chaos.chain import decode, encode
from tests.chaos.ground import published_seq

FENCED = "fenced"
PLAIN = "plain"

Apply = Callable[[str, int, bytes, Message | None], Awaitable[bool]]
"""(key, seq, data, message) → whether the effect was stored now; False: it was there."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--member", default=None)
    parser.add_argument("--handler-ms", type=float, default=10.0)
    parser.add_argument("--max-lanes", type=int, default=4)
    parser.add_argument("--static-grace", type=float, default=0.0, help="seconds")
    parser.add_argument("--heartbeat-timeout", type=float, default=1.0, help="seconds")
    parser.add_argument("--key-rule", required=True)
    parser.add_argument("--sink", default=None, help="bucket to keep the chains in")
    parser.add_argument("--sink-kind", choices=(FENCED, PLAIN), default=FENCED)
    return parser.parse_args()


def say(kind: str, *facts: object) -> None:
    print(kind, repr(time.monotonic()), *facts, flush=True)


def _tell(event: GroupEvent) -> None:
    facts = [f"{name}={getattr(event, name)}".replace(" ", "_") for name in event.__slots__]
    say(type(event).__name__, *facts)


async def connect(url: str) -> Client:
    """A connection that comes back by itself; several URLs separated by commas."""
    return await nats.connect(
        url.split(","), max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore
    )


async def _ignore(_: Exception) -> None:
    """The server is killed and the connection cut on purpose."""


async def open_sink(connection: Client, bucket: str, kind: str) -> Apply:
    """What stores an effect. The bucket must be there."""
    if kind == FENCED:
        sink = await KvSink.open(connection, bucket)

        async def apply(_key: str, seq: int, data: bytes, message: Message | None) -> bool:
            assert message is not None
            verdict = await sink.apply(message, lambda old: encode(decode(old).link(seq, data)))
            return verdict is Verdict.APPLY

        return apply

    store = await connection.jetstream().key_value(bucket)

    async def apply_plain(key: str, seq: int, data: bytes, _message: Message | None) -> bool:
        while True:
            try:
                entry = await store.get(key)
                value, revision = entry.value, entry.revision
            except KeyNotFoundError:
                value, revision = None, 0
            try:
                await store.update(key, encode(decode(value).link(seq, data)), last=revision)
            except KeyWrongLastSequenceError:
                continue
            return True

    return apply_plain


async def _main() -> None:
    given = _arguments()
    apply: Apply | None = None
    connection = None
    if given.sink:
        connection = await connect(given.url)
        apply = await open_sink(connection, given.sink, given.sink_kind)
    group = Group(
        given.url,
        stream=given.stream,
        name=given.name,
        partitions=given.partitions,
        member=given.member,
        max_lanes=given.max_lanes,
        static_grace=timedelta(seconds=given.static_grace),
        heartbeat_timeout=timedelta(seconds=given.heartbeat_timeout),
        on_event=_tell,
    )

    @group.handler(key=given.key_rule)
    async def follow(message: Message) -> None:
        facts = (message.partition, message.epoch, message.seq)
        say("handle", *facts)
        await asyncio.sleep(given.handler_ms / 1000)
        if apply is None:
            return
        assert message.key is not None
        try:
            seq = published_seq(message)
            is_new = await apply(message.key.decode(), seq, message.data, message)
        except StaleEpoch:
            say("stale", *facts)
            raise
        except GroupError as error:
            say("failed", *facts, type(error).__name__)
            raise
        say("applied" if is_new else "repeat", *facts)

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
