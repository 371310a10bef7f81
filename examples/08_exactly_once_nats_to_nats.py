"""From one stream to another exactly once: outputs, state and mark are one atomic batch."""

import asyncio

import nats
from servers import nats_server

from millstream import Group, Message
from millstream_coordinator import BatchSink, Output, Step


async def main() -> None:
    """Run the example."""
    async with nats_server() as url:
        client = await nats.connect(url)
        js = client.jetstream()
        await js.add_stream(name="ORDERS", subjects=["orders.>"])
        subjects = ["shop.>", "millstream.sink.totals.>"]
        # atomic batches: nats-server 2.12 and later, and the embedded broker
        shop = {"allow_atomic": True, "allow_rollup_hdrs": True}
        await js.add_stream(name="SHOP", subjects=subjects, **shop)
        for number in range(1, 6):
            await js.publish("orders.0.ann", b"%d" % number)

        sink = await BatchSink.open(client, stream="SHOP", group="totals")
        group = Group(client, stream="ORDERS", name="totals", partitions=1)
        all_done = asyncio.Event()

        @group.handler(key="orders.{partition}.{customer}")
        async def add(message: Message) -> None:
            def step(state: bytes | None) -> Step:
                total = b"%d" % (int(state or 0) + int(message.data))
                line = Output(subject="shop.line.ann", data=message.data)
                return Step(
                    outputs=[line, Output(subject="shop.total.ann", data=total)], state=total
                )

            await sink.apply(message, step)
            if message.attempt == 1 and message.data == b"3":
                raise ConnectionError("after the effect: the message comes again")
            if message.data == b"5":
                all_done.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(group.run(handle_signals=False))
            await all_done.wait()
            await group.stop()

        lines = await js.subscribe("shop.line.*", ordered_consumer=True)
        print("lines:", *[(await lines.next_msg()).data.decode() for _ in range(5)])
        total = await js.get_last_msg("SHOP", "shop.total.ann")
        print("total:", (total.data or b"").decode())
        print("refused as repeats:", sink.counters.refused_repeat)
        for stream in ("ORDERS", "SHOP", "KV_MILLSTREAM_totals"):
            await js.delete_stream(stream)
        await client.close()


asyncio.run(main())
