"""Others that do the same, in the same run: nats-py's awaited publish, mq-bridge, nats-kafka."""

import asyncio
import time
from pathlib import Path
from typing import Any

import nats

from tests.benchmarks import bridge_rows
from tests.benchmarks.bridge_ground import Figures, Ground, Options, a_route, ground_of, produce

AWAITED_RECORDS = 5_000
PEERS = Path(__file__).parents[2] / ".cache" / "peers"
SILENT_S = 20.0


async def peers(options: Options, kind: str) -> Figures:
    """Records a second of the others that are there, beside ours, whose start counts too."""
    records = options.records
    with ground_of(options, kind, {"flights": options.partitions}) as ground:
        produce(ground.kafka, "flights", records, options.partitions, options.size)
        found: Figures = {
            "millstream": bridge_rows.moved(ground, a_route("flights"), records),
            "nats_py awaited": {"per_s": round(await _awaited(ground.nats, options.size))},
        }
        for name, command in _commands(ground, options.partitions).items():
            rate = await _rate(command, ground.nats, name, records)
            found[name] = {"per_s": None if rate is None else round(rate)}
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


async def _rate(command: list[str], url: str, stream: str, records: int) -> float | None:
    """Messages a second that another bridge stores, from its first on; None if it stops short."""
    client = await nats.connect(url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        await client.jetstream().add_stream(name=stream, subjects=[f"{stream}.>"])
        began = stored = 0
        since = seen = time.perf_counter()
        while stored < records and time.perf_counter() - seen < SILENT_S:
            await asyncio.sleep(0.02)
            now = (await client.jetstream().stream_info(stream)).state.messages
            if now != stored:
                seen = time.perf_counter()
                if not stored:
                    began, since = now, seen
                stored = now
        return (stored - began) / (seen - since) if stored >= records else None
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
