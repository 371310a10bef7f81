"""One producer moves from Kafka to NATS while the other stays, and no key's order breaks.

Both write the same keys' kind of events. The one that moves stops writing to Kafka, waits on the
bridge's barrier until all it wrote there is in the stream, and goes on with `Publisher`, which puts
each key into the partition and under the subject it had before. The route is `shared`: others
publish to its subjects too.
"""

import asyncio

import nats
from confluent_kafka import Producer
from servers import kafka_topic, nats_server

from millstream import Bridge, Publisher
from millstream_bridge import Route, barrier

PARTITIONS = 4
ROUTE = Route(topic="clicks", stream="CLICKS", subject="clicks.{partition}.{key}", shared=True)
STAYING, MOVING = ("ann", "bob"), ("cem", "dora", "eve")
EACH = 50


def produce(producer: Producer, keys: tuple[str, ...], numbers: range) -> None:
    """Write to Kafka, and wait until it is there."""
    for number in numbers:
        for key in keys:
            producer.produce("clicks", key=key, value=str(number))
    producer.flush(20)


async def read_all(client: nats.NATS) -> dict[str, list[int]]:
    """Everything in the stream, by key, in the stream's order."""
    js = client.jetstream()
    found: dict[str, list[int]] = {}
    reader = await js.subscribe("clicks.*.*", ordered_consumer=True)
    while True:
        message = await reader.next_msg(timeout=5)
        if "_checkpoint" not in message.subject:
            found.setdefault(message.subject.split(".")[2], []).append(int(message.data))
        if not message.metadata.num_pending:
            return found


async def move_half(kafka: str, url: str) -> None:
    """Move one of two producers while both are at work."""
    client = await nats.connect(url)
    producer = Producer({"bootstrap.servers": kafka})
    ready = asyncio.Event()
    bridge = Bridge(kafka=kafka, nats=url, route=ROUTE, on_ready=lambda _: ready.set())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run())
        await ready.wait()

        # Before: both producers write to Kafka.
        produce(producer, STAYING + MOVING, range(EACH))

        # The move: no more to Kafka, then the barrier, then the first message to NATS.
        await barrier(kafka=kafka, nats=url, route=ROUTE)
        print("the barrier is passed: all that was in Kafka is in the stream")

        # After: one on NATS, the other still on Kafka, at the same time. Partitioner crc32
        # is what librdkafka's producers use; Java's use "kafka".
        async with Publisher(
            client, ROUTE.subject, partitions=PARTITIONS, partitioner="crc32"
        ) as publisher:
            for number in range(EACH, 2 * EACH):
                produce(producer, STAYING, range(number, number + 1))
                for key in MOVING:
                    await publisher.send(key, str(number).encode())

        await barrier(kafka=kafka, nats=url, route=ROUTE)
        bridge.stop()

    for key, numbers in sorted((await read_all(client)).items()):
        place = "in order" if numbers == list(range(2 * EACH)) else f"WRONG: {numbers}"
        way = "over Kafka" if key in STAYING else "half over Kafka, half by NATS"
        print(f"{key}: {len(numbers)} clicks {place}, {way}")
    await client.jetstream().delete_stream("CLICKS")
    await client.close()


async def main() -> None:
    """Run the example."""
    with kafka_topic("clicks", PARTITIONS) as kafka:
        async with nats_server() as url:
            await move_half(kafka, url)


asyncio.run(main())
