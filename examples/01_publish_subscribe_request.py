"""Publish and subscribe; ask and be answered: by one who comes late, or, at once, by nobody."""

import asyncio

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from servers import nats_server


async def ask(client: Client, subject: str, question: bytes, patience: float) -> bytes:
    """Ask until somebody is there to answer; TimeoutError when patience ends.

    When nobody listens, the server says so at once, so asking again costs next to nothing.
    """
    async with asyncio.timeout(patience):
        while True:
            try:
                return (await client.request(subject, question, timeout=patience)).data
            except NoRespondersError:
                await asyncio.sleep(0.05)


async def main() -> None:
    """Run the example."""
    async with nats_server() as url:
        client = await nats.connect(url)

        everything = await client.subscribe("linux.>")
        archives = await client.subscribe("linux.*.packages.xz")
        await client.publish("linux.debian.packages.xz", b"xz 5.4.1 is in the archive")
        await client.publish("linux.debian.kernel", b"6.1 is out")
        for _ in range(2):
            message = await everything.next_msg()
            print(f"{message.subject}: {message.data.decode()}")
        print(f"of these, {archives.pending_msgs} is about packages.xz")

        # Nobody answers questions about the weather: the request fails, and does not wait for it.
        asked = asyncio.get_running_loop().time()
        try:
            await client.request("weather.london", b"today?", timeout=60)
        except NoRespondersError:
            waited = asyncio.get_running_loop().time() - asked
            print("no responders, known at once" if waited < 1 else f"known after {waited:.0f} s")

        # Somebody will, in a moment. The question waits for the one who comes late.
        async def answer(message: Msg) -> None:
            await message.respond(b"rain, then sun")

        async def come_late() -> None:
            await asyncio.sleep(0.3)
            await client.subscribe("weather.*", queue="meteorologists", cb=answer)

        async with asyncio.TaskGroup() as together:
            together.create_task(come_late())
            reply = together.create_task(ask(client, "weather.london", b"today?", patience=10))
        print(f"the late responder says: {reply.result().decode()}")

        await client.close()


asyncio.run(main())
