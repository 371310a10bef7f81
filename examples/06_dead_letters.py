"""A message that keeps failing becomes a dead letter; its key goes on; it is replayed later."""

import asyncio

import nats
from servers import nats_server

from millstream import Group, Message
from millstream_coordinator.operation.letters import Choice, list_letters, replay
from millstream_coordinator.operation.target import Target


async def main() -> None:
    """Run the example."""
    async with nats_server() as url:
        client = await nats.connect(url)
        js = client.jetstream()
        await js.add_stream(name="ORDERS", subjects=["orders.>"])
        for number in (1, 2, 3):
            await js.publish("orders.0.ann", b"order %d" % number)

        policy = {"on_failure": "dead-letter", "max_attempts": 2}
        group = Group(client, stream="ORDERS", name="billing", partitions=1, **policy)
        is_bank_open = False
        handled: asyncio.Queue[str] = asyncio.Queue()

        @group.handler(key="orders.{partition}.{customer}")
        async def bill(message: Message) -> None:
            if message.data == b"order 2" and not is_bank_open:
                raise OSError("the bank is closed")
            await handled.put(message.data.decode())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(group.run(handle_signals=False))
            print("handled:", await handled.get(), "and", await handled.get())

            billing = Target(client, "billing")
            for letter in (await list_letters(billing)).letters:
                print(f"given up after {letter.attempts} calls:", letter.data.decode())
                print("because of", letter.error)

            is_bank_open = True
            await replay(billing, Choice(key="ann"))
            print("handled:", await handled.get())
            await group.stop()

        for stream in ("ORDERS", "KV_MILLSTREAM_billing", "MILLSTREAM_DLQ_billing"):
            await js.delete_stream(stream)
        await client.close()


asyncio.run(main())
