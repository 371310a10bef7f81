"""One consumer of a prefilled stream, in a process of its own.

Prints one JSON line: messages, seconds of wall clock and of this process's processor time from the
first message handled to the last, and resident memory at the end. The clock starts at the first
message, so that starting Python, connecting and joining do not count.

Kinds: ``plain`` is a standing pull by nats-py which awaits the handler and acks, one message after
the other; ``group`` is a member of a group; ``hold`` is one whose handler never returns, so that
all messages stay in its lanes; ``kafka`` is a member of a Kafka consumer group.

``--profile`` adds the five functions with the most time of their own, waiting apart.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import nats
from nats.aio.msg import Msg

from millstream_coordinator import Group, Message

PULL = b'{"batch":1000000,"expires":600000000000,"idle_heartbeat":5000000000}'


class Meter:
    """Counts messages and measures from the first to the last."""

    def __init__(self, messages: int, profiler: cProfile.Profile | None = None) -> None:
        self.messages = messages
        self.count = 0
        self.done = asyncio.Event()
        self._wall_s = self._cpu_s = 0.0
        self._profiler = profiler

    def start(self) -> None:
        """Call it when the first message arrives."""
        if self._profiler is not None:
            self._profiler.enable()
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def note(self) -> None:
        """Call it when a message is handled."""
        self.count += 1
        if self.count == self.messages:
            self.stop()

    def stop(self) -> None:
        """Stop the clocks."""
        self._wall_s = time.perf_counter() - self._wall_s
        self._cpu_s = time.process_time() - self._cpu_s
        if self._profiler is not None:
            self._profiler.disable()
        self.done.set()

    def document(self) -> dict[str, object]:
        """The line that is printed."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        document: dict[str, object] = {
            "messages": self.messages,
            "wall_s": self._wall_s,
            "cpu_s": self._cpu_s,
            "peak_bytes": peak if sys.platform == "darwin" else peak * 1024,
        }
        if self._profiler is not None:
            document["profile"] = top_five(self._profiler)
        return document


def top_five(profiler: cProfile.Profile) -> list[str]:
    """``<share> <file>:<function>`` of the functions with the most time of their own."""
    functions = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    own = {
        f"{Path(file).name}:{name}" if line else name: times[2]
        for (file, line, name), times in functions.items()
        if not name.startswith(("<method 'run", "<built-in method select", "<method 'poll"))
    }
    total = sum(own.values())
    most = sorted(own.items(), key=lambda one: -one[1])[:5]
    return [f"{time_s / total:.0%} {name}" for name, time_s in most]


def handler_of(milliseconds: float) -> Callable[[object], Awaitable[None]]:
    """Return a handler that takes so long without working; 0: one that does nothing."""
    if not milliseconds:

        async def nothing(_: object) -> None:
            pass

        return nothing

    async def wait(_: object) -> None:
        await asyncio.sleep(milliseconds / 1000)

    return wait


async def plain(given: argparse.Namespace, meter: Meter) -> None:
    """A standing pull with explicit acks, as one writes it with nats-py."""
    client = await nats.connect(given.url)
    stream = client.jetstream()
    await stream.add_consumer(
        given.stream,
        durable_name=given.name,
        ack_policy=nats.js.api.AckPolicy.EXPLICIT,
        max_ack_pending=given.max_ack_pending,
        ack_wait=3600,
        filter_subject="bench.0.>",
    )
    handle = handler_of(given.handler_ms)
    inbox = client.new_inbox()

    async def on_message(message: Msg) -> None:
        if not message.reply:
            return
        if not meter.count:
            meter.start()
        await handle(message)
        await message.ack()
        meter.note()

    await client.subscribe(inbox, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{given.stream}.{given.name}", PULL, inbox)
    await meter.done.wait()
    await client.close()


async def group(given: argparse.Namespace, meter: Meter) -> None:
    """One member that owns every partition."""
    member = Group(
        given.url,
        stream=given.stream,
        name=given.name,
        partitions=given.partitions,
        max_ack_pending=given.max_ack_pending,
        max_lanes=given.max_lanes,
    )
    handle = handler_of(given.handler_ms)
    has_begun = False

    @member.handler(key=given.key_rule)
    async def on_message(message: Message) -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            meter.start()
        await handle(message)
        meter.note()

    async with asyncio.TaskGroup() as tasks:  # what ends the member ends the wait, too
        tasks.create_task(member.run(handle_signals=False))
        await meter.done.wait()
        await member.stop()


async def hold(given: argparse.Namespace, meter: Meter) -> None:
    """One member that owns every partition and finishes nothing: ends with all in its hands."""
    member = Group(
        given.url,
        stream=given.stream,
        name=given.name,
        partitions=given.partitions,
        max_lanes=given.max_lanes,
        drain_timeout=timedelta(0),
    )
    never = asyncio.Event()

    @member.handler(key=given.key_rule)
    async def on_message(_: Message) -> None:
        await never.wait()

    def holds_all() -> bool:
        num_held = sum(one.in_flight for one in member.stats().partitions.values())
        return len(member.partitions) == given.partitions and num_held >= meter.messages

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.run(handle_signals=False))
        meter.start()
        while not holds_all():  # noqa: ASYNC110 - a figure to look at
            await asyncio.sleep(0.2)
        meter.stop()
        await member.stop()


async def kafka(given: argparse.Namespace, meter: Meter) -> None:
    """A consumer of confluent-kafka in its usual loop, offsets committed in the background."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": given.url,
            "group.id": given.name,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
    )
    consumer.subscribe([given.stream])
    try:
        while not meter.done.is_set():
            record = consumer.poll(1)
            if record is None or record.error():
                continue
            if not meter.count:
                meter.start()
            if given.handler_ms:
                await asyncio.sleep(given.handler_ms / 1000)
            consumer.store_offsets(record)
            meter.note()
    finally:
        consumer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("plain", "group", "hold", "kafka"))
    parser.add_argument("url")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--handler-ms", type=float, default=0.0)
    parser.add_argument("--max-ack-pending", type=int, default=1000)
    parser.add_argument("--max-lanes", type=int, default=128)
    parser.add_argument("--key-rule", default="bench.*.{key}")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()

    async def run() -> dict[str, object]:
        meter = Meter(given.messages, cProfile.Profile() if given.profile else None)
        kinds = {"plain": plain, "group": group, "hold": hold, "kafka": kafka}
        await kinds[given.kind](given, meter)
        return meter.document()

    if sys.platform == "win32":
        document = asyncio.run(run())
    else:
        import uvloop

        document = uvloop.run(run())
    print(json.dumps(document))


if __name__ == "__main__":
    main()
