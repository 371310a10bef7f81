"""The record stream, what Kafka calls a compacted topic: the newest message per key, never twice.

One message per subject (MaxMsgsPerSubject=1), and the old one makes room (Discard=old). Who comes
late reads the present state and not its history; who stays reads each change once.
"""

import asyncio

import nats
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig
from servers import nats_server

STREAM = "PRICES"


async def read_new(reader: JetStreamContext.PullSubscription) -> list[str]:
    """What this reader has not read yet."""
    news = []
    try:
        while True:
            for message in await reader.fetch(100, timeout=1):
                news.append(f"{message.subject.removeprefix('prices.')} {message.data.decode()}")
                await message.ack_sync()
    except TimeoutError:  # nothing came
        return news


async def main() -> None:
    """Run the example."""
    async with nats_server() as url:
        client = await nats.connect(url)
        js = client.jetstream()
        await js.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=["prices.>"],
                max_msgs_per_subject=1,
                discard=DiscardPolicy.OLD,
            )
        )

        for price in range(100, 200):
            for share in ("AAA", "BBB", "CCC"):
                await js.publish(f"prices.{share}", str(price).encode())
        info = await js.stream_info(STREAM)
        print(f"300 prices published, {info.state.messages} are kept")

        reader = await js.pull_subscribe("prices.>", durable="dashboard", stream=STREAM)
        print(f"the newest of each: {', '.join(await read_new(reader))}")
        print(f"once more: {await read_new(reader) or 'nothing, they were read'}")

        await js.publish("prices.BBB", b"205")
        await js.publish("prices.BBB", b"206")
        print(f"after two changes: {', '.join(await read_new(reader))}")

        await js.delete_stream(STREAM)
        await client.close()


asyncio.run(main())
