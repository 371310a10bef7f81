"""One of the demo's workers: a process that follows aircraft, leg by leg.

This is what a user's worker looks like, and a little more to be measured by: a ``Group`` with a
handler, and a fenced sink for its effects. Each handler call is written down before and after (see
``ledger.py``), and takes a while, as if it asked another service: that keeps the worker inside its
handler when something happens to it.

Run as ``python -m millstream.demo.worker SPEC`` where SPEC is a `WorkerSpec` as JSON.
"""

import asyncio
import logging
import sys
import time
from pathlib import Path

import msgspec
import nats

from millstream_coordinator import Group, GroupError, Message
from millstream_coordinator.sinks import KvSink, StaleEpoch, Verdict

from .child import announce, end_with_standard_input
from .ledger import APPLIED, FAILED, REPEAT, STALE, Call, Effect, Ledger
from .tracks import decode, encode, follow

SOURCE_HEADER = "Millstream-Source"
RECONNECT_WAIT_S = 0.1


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker is told. Directories and files are paths as text."""

    name: str
    nats: str
    stream: str
    group: str
    bucket: str
    key_rule: str
    partitions: int
    max_lanes: int
    work_s: float
    directory: str
    ready_file: str


class Worker:
    """Follows aircraft into the sink and writes down what it does."""

    def __init__(self, spec: WorkerSpec, sink: KvSink, handled: Ledger, effects: Ledger) -> None:
        self._spec = spec
        self._sink = sink
        self._handled = handled
        self._effects = effects

    async def handle(self, message: Message) -> None:
        """One leg of one aircraft."""
        _, kafka_partition, offset, *_ = message.headers[SOURCE_HEADER].split()
        call = Call(
            worker=self._spec.name,
            epoch=message.epoch,
            kafka_partition=int(kafka_partition),
            offset=int(offset),
            key=None if message.key is None else message.key.decode(),
            seq=message.seq,
            time=time.monotonic_ns(),
        )
        self._handled.write(call)
        await asyncio.sleep(self._spec.work_s)
        outcome = FAILED
        try:
            verdict = await self._sink.apply(
                message,
                lambda stored: encode(
                    follow(decode(stored), call.kafka_partition, call.offset, message.data)
                ),
            )
            outcome = APPLIED if verdict is Verdict.APPLY else REPEAT
        except StaleEpoch:
            outcome = STALE
            raise
        finally:
            self._effects.write(
                Effect(
                    worker=call.worker,
                    epoch=call.epoch,
                    kafka_partition=call.kafka_partition,
                    offset=call.offset,
                    seq=call.seq,
                    time=time.monotonic_ns(),
                    outcome=outcome,
                )
            )


async def run(spec: WorkerSpec) -> None:
    """Work until SIGTERM. Raises GroupError."""
    directory = Path(spec.directory)
    connection = await nats.connect(
        spec.nats,
        name=f"millstream demo {spec.name}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,
    )
    try:
        with (
            Ledger(directory / f"handled-{spec.name}.ndjson") as handled,
            Ledger(directory / f"effects-{spec.name}.ndjson") as effects,
        ):
            sink = await KvSink.open(connection, spec.bucket)
            worker = Worker(spec, sink, handled, effects)
            group = Group(
                connection,
                stream=spec.stream,
                name=spec.group,
                partitions=spec.partitions,
                member=spec.name,
                max_lanes=spec.max_lanes,
            )
            group.handler(key=spec.key_rule)(worker.handle)
            announce(Path(spec.ready_file), nats=spec.nats)
            await group.run()
    finally:
        await connection.close()


def main() -> int:
    """Run the worker that the first argument describes."""
    end_with_standard_input()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    spec = msgspec.json.decode(sys.argv[1], type=WorkerSpec)
    try:
        asyncio.run(run(spec))
    except GroupError as error:
        sys.stderr.write(f"millstream demo {spec.name}: {error}\n")
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
