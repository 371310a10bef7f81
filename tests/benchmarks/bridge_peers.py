"""Others that do the same, in the same run: nats-py's awaited publish, mq-bridge, nats-kafka."""

import asyncio
import time
from pathlib import Path
from typing import Any

import nats

from tests.benchmarks import bridge_rows
from tests.benchmarks.bridge_ground import Figures, Ground, Options, a_route, ground_of, produce
from tests.benchmarks.measure import cpu_seconds

AWAITED_RECORDS = 5_000
PEERS = Path(__file__).parents[2] / ".cache" / "peers"
SILENT_S = 20.0


async def peers(options: Options, kind: str) -> Figures:
    """Records a second of the others that are there, and processor time of each and the server."""
    records = options.records
    with ground_of(options, kind, {"flights": options.partitions}) as ground:
        produce(ground.kafka, "flights", records, options.partitions, options.size)
        found: Figures = {
            "millstream": bridge_rows.moved(ground, a_route("flights"), records),
            "nats_py awaited": {"per_s": round(await _awaited(ground.nats, options.size))},
        }
        for name, command in _commands(ground, options.partitions).items():
            found[name] = await _measured(command, ground, name, records)
        return found


async def _awaited(url: str, size: int) -> float:
    """Messages a second of nats-py's publish, each awaited."""
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="AWAITED", subjects=["awaited.>"])
        started = time.perf_counter()
        for n in range(AWAITED_RECORDS):
            await stream.publish(f"awaited.{n % 10}.k{n % 3_000}", b"x" * size)
        return AWAITED_RECORDS / (time.perf_counter() - started)
    finally:
        await client.close()


async def _measured(command: list[str], ground: Ground, stream: str, records: int) -> Figures:
    """What another bridge comes to, from the first message it stores on; nothing if it stops short.

    Per record, in microseconds of processor time.
    """
    client = await nats.connect(ground.nats)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)

    def used() -> tuple[float, float, float]:
        return time.perf_counter(), cpu_seconds(process.pid), ground.server_cpu_s()

    try:
        await client.jetstream().add_stream(name=stream, subjects=[f"{stream}.>"])
        began = stored = 0
        start = latest = used()
        while stored < records and time.perf_counter() - latest[0] < SILENT_S:
            await asyncio.sleep(0.02)
            now = (await client.jetstream().stream_info(stream)).state.messages
            if now != stored:
                latest = used()
                if not stored:
                    began, start = now, latest
                stored = now
        if stored < records:
            return {"per_s": None}
        count = stored - began
        took_s, cpu_s, server_s = (b - a for a, b in zip(start, latest, strict=True))
        return {
            "per_s": round(count / took_s),
            "cpu_us": round(cpu_s / count * 1e6, 2),
            "server_us": round(server_s / count * 1e6, 2),
        }
    finally:
        process.kill()
        await process.wait()
        await client.close()


def _commands(ground: Ground, partitions: int) -> dict[str, list[str]]:
    """How the others are started, those that are there; each has a stream of its name."""
    found: dict[str, Any] = {}
    python = PEERS / "mq-bridge" / "bin" / "python"
    if python.exists():
        script = Path(__file__).parent / "peers" / "mq_bridge_move.py"
        found["mq_bridge"] = [
            *(str(python), str(script)),
            *(ground.kafka, "flights", ground.nats, "mq_bridge"),
        ]
    nats_kafka = PEERS / "bin" / "nats-kafka"
    if nats_kafka.exists():
        config = ground.folder / "nats-kafka.conf"
        # With a groupid it begins with the newest record, by partition with the oldest.
        connectors = ", ".join(
            f'{{ type: "KafkaToJetStream", id: "k{partition}", brokers: ["{ground.kafka}"],'
            f' topic: "flights", partition: {partition}, subject: "nats_kafka.all" }}'
            for partition in range(partitions)
        )
        config.write_text(
            f'nats: {{ servers: ["{ground.nats}"] }}\njetstream: {{ }}\nconnect: [{connectors}]\n'
        )
        found["nats_kafka"] = [str(nats_kafka), "-c", str(config)]
    return found
