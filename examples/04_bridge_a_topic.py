"""Bridge a Kafka topic: every record once, in order, with all it had; and the proof of it."""

import asyncio

import nats
from confluent_kafka import Producer
from servers import kafka_topic, nats_server

from millstream_bridge import Bridge, Route, verify

ROUTE = Route(topic="readings", stream="READINGS", subject="readings.{partition}.{key}")


def produce(bootstrap: str) -> None:
    """What an ordinary Kafka producer wrote: keys, headers, a tombstone, a record without a key."""
    producer = Producer({"bootstrap.servers": bootstrap})
    for number in range(1000):
        producer.produce(
            "readings",
            key=f"sensor.{number % 7}",
            value=f"{number} mm",
            headers={"unit": b"mm"},
            timestamp=1_700_000_000_000 + number,
        )
    producer.produce("readings", key="sensor.3", value=None)
    producer.produce("readings", key=None, value=b"nobody's")
    producer.flush(20)


async def main() -> None:
    """Run the example."""
    with kafka_topic("readings", partitions=3) as kafka:
        produce(kafka)
        async with nats_server() as url:
            bridge = Bridge(kafka=kafka, nats=url, route=ROUTE)
            report = await bridge.run(stop_at_end=True)  # without it: on and on, as it comes
            print(f"{report.records} records moved")

            again = await Bridge(kafka=kafka, nats=url, route=ROUTE).run(stop_at_end=True)
            print(f"a second run finds its place in the stream: {again.records} moved")

            proof = await verify(kafka=kafka, nats=url, route=ROUTE)
            print(f"both sides have the same {proof.records} records: {proof.equal}")

            client = await nats.connect(url)
            js = client.jetstream()
            for key in ("sensor%2E5", "sensor%2E3", "%null"):  # a key is one token: . is %2E
                reader = await js.subscribe(f"readings.*.{key}", ordered_consumer=True)
                messages = [await reader.next_msg()]
                while messages[-1].metadata.num_pending:
                    messages.append(await reader.next_msg())
                await reader.unsubscribe()
                newest = messages[-1]
                headers = newest.headers or {}
                words = headers["Millstream-Source"].split()
                flags = f", flags {words[5]}" if len(words) > 5 else ""
                text = newest.data.decode() or "empty"
                print(f"{key}: {len(messages)} messages, the newest is {text}{flags}")
            await js.delete_stream("READINGS")
            await client.close()


asyncio.run(main())
