"""Effects in a database, each exactly once: the effect and its mark are one transaction."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

import nats
from servers import nats_server

from millstream import Group, Message
from millstream_coordinator import SqlSink


async def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "accounts.db"
        async with nats_server() as url:
            client = await nats.connect(url)
            js = client.jetstream()
            await js.add_stream(name="ORDERS", subjects=["orders.>"])
            for number in range(1, 11):
                await js.publish("orders.0.ann", b"%d" % number)

            sqlite3.connect(database).execute("CREATE TABLE account (id, owes)").connection.close()
            sink = await SqlSink.open(sqlite3, lambda: sqlite3.connect(database), group="billing")
            group = Group(client, stream="ORDERS", name="billing", partitions=1)
            all_billed = asyncio.Event()

            @group.handler(key="orders.{partition}.{customer}")
            async def bill(message: Message) -> None:
                def effect(cursor: sqlite3.Cursor) -> None:
                    cursor.execute("INSERT INTO account VALUES (?, ?)", ("ann", int(message.data)))

                verdict = await sink.apply(message, effect)
                if message.attempt == 1 and message.data == b"5":
                    raise ConnectionError("after the effect: the message comes again")
                if message.data == b"5":
                    print("order 5 came twice, the second time it was a", verdict)
                if message.data == b"10":
                    all_billed.set()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(group.run(handle_signals=False))
                await all_billed.wait()
                await group.stop()
            await sink.close()

            with sqlite3.connect(database) as accounts:
                print("ann owes", *accounts.execute("SELECT sum(owes) FROM account").fetchone())
            accounts.close()
            for stream in ("ORDERS", "KV_MILLSTREAM_billing"):
                await js.delete_stream(stream)
            await client.close()


asyncio.run(main())
