"""A partitioned worker on a nats-py connection that you already have.

Two members of one group share four partitions. Each customer's orders are billed in order, by one
member at a time; different customers in parallel. A fenced sink keeps what is owed, so that an
order that is delivered twice is still billed once.
"""

import asyncio

import nats
from servers import nats_server

from millstream import Group, KvSink, Message, Publisher

PARTITIONS = 4
CUSTOMERS = ("ann", "bob", "cem", "dora", "eve")
ORDERS = 8


async def main() -> None:
    """Run the example."""
    async with nats_server() as url:
        client = await nats.connect(url)  # yours: the group uses it and leaves it open
        js = client.jetstream()
        await js.add_stream(name="ORDERS", subjects=["orders.>"])
        async with Publisher(client, "orders.{partition}.{key}", partitions=PARTITIONS) as orders:
            for number in range(1, ORDERS + 1):
                for customer in CUSTOMERS:
                    await orders.send(customer, b"%d" % number)

        owed = await KvSink.open(client, "owed")
        billed: dict[str, list[str]] = {}
        groups = [
            Group(client, stream="ORDERS", name="billing", partitions=PARTITIONS, member=name)
            for name in ("first", "second")
        ]

        async def bill(message: Message) -> None:
            def add(before: bytes | None) -> bytes:
                return b"%d" % (int(before or 0) + int(message.data))

            await owed.apply(message, add)
            assert message.key is not None
            billed.setdefault(message.key.decode(), []).append(message.data.decode())
            if sum(map(len, billed.values())) == ORDERS * len(CUSTOMERS):
                all_billed.set()

        all_billed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for group in groups:
                group.handler(key="orders.*.{key}")(bill)
                tasks.create_task(group.run(handle_signals=False))
            await all_billed.wait()
            for group in groups:
                await group.stop()

        for customer in sorted(billed):
            total = await owed.value(customer.encode())
            assert total is not None
            print(f"{customer}: orders {' '.join(billed[customer])}, owes {total.decode()}")
        print(f"your connection is {'still open' if client.is_connected else 'closed'}")

        for stream in ("ORDERS", "KV_owed", "KV_MILLSTREAM_billing"):
            await js.delete_stream(stream)
        await client.close()


asyncio.run(main())
