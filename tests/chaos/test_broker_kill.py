"""The broker is killed (SIGKILL) again and again; nothing it acknowledged may be gone.

Publishers send numbered messages, each with a Nats-Msg-Id, one after the other, and send a message
again until it is acknowledged. A consumer takes messages and acknowledges each with a confirmed
(double) ack. Meanwhile the server dies right after some acknowledgement, at a place drawn from the
seed, and starts again on the same store. In the end the stream must hold every acknowledged message
exactly once, at the sequence its ack named, in order per publisher; sending every message once more
must be answered as a duplicate; and no message whose ack was confirmed may have come again.

A bucket (one message per subject, overwritten until blocks are rewritten) lives through the same:
each key has its last value in the end, and no older one comes back.

The last arm runs the first against a broker whose store forgets to write until it is closed, and
must see losses: a check that cannot fail shows nothing.
"""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from tests.helpers.servers import EMBEDDED, Server

pytestmark = pytest.mark.slow

PUBLISHERS = 4
MESSAGES = 250
KILLS = 5
KEYS = 5
BUCKET_PUTS = 400
BUCKET_VALUE_BYTES = 6000
RETRY_S = 0.02
DEADLINE_S = 90

FORGETFUL = """
import sys
from millstream_broker.store.file import FileStore

written = FileStore.flush
closed = FileStore.close

def close(store):
    FileStore.flush = written
    closed(store)

FileStore.flush = lambda store: None
FileStore.close = close

from millstream.__main__ import main
sys.argv[0] = "millstream"
sys.exit(main())
"""


class ForgetfulServer(Server):
    """The broker with a planted bug: what it acknowledges is written when the store is closed."""

    def command(self) -> list[str]:
        _, _, _, *arguments = super().command()
        return [sys.executable, "-c", FORGETFUL, *arguments]


@dataclass
class Ledger:
    """What the clients were told, and what they saw that must not be."""

    acked: dict[str, int] = field(default_factory=dict)
    handed_out: set[int] = field(default_factory=set)
    confirmed: set[int] = field(default_factory=set)
    wrongs: list[str] = field(default_factory=list)
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    settled: bool = False
    """Every message is published and no kill is to come."""

    def ack(self, msg_id: str, seq: int) -> None:
        self.acked[msg_id] = seq
        self.progress.set()

    async def wait_for_acks(self, count: int) -> None:
        while len(self.acked) < count:
            self.progress.clear()
            await self.progress.wait()


async def _ignore(_: Exception) -> None:
    """Every kill breaks every connection; the ledger tells what matters."""


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    client = await nats.connect(
        server.url,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RETRY_S,
        error_cb=_ignore,
    )
    try:
        yield client
    finally:
        await client.close()


async def publish(jetstream: JetStreamContext, publisher: int, number: int) -> tuple[str, int]:
    """Send one message until it is acknowledged; its id and the sequence the ack names."""
    msg_id = f"{publisher}-{number}"
    while True:
        try:
            ack = await jetstream.publish(
                f"orders.{publisher}",
                str(number).encode(),
                timeout=0.5,
                headers={"Nats-Msg-Id": msg_id},
            )
        except (Error, OSError):
            await asyncio.sleep(RETRY_S)
        else:
            return msg_id, ack.seq


async def run_publisher(server: Server, ledger: Ledger, publisher: int) -> None:
    async with connected(server) as client:
        jetstream = client.jetstream()
        for number in range(MESSAGES):
            ledger.ack(*await publish(jetstream, publisher, number))


async def run_consumer(server: Server, ledger: Ledger) -> None:
    """Take and confirm until nothing is left; a confirmed message must not come again.

    An ack whose confirmation a kill swallowed may have been taken: such a message need not come
    again, so the end is when the server has none to hand out, not when all are confirmed.
    """
    async with connected(server) as client:
        jetstream = client.jetstream()
        subscription = await jetstream.pull_subscribe_bind("work", "ORDERS")
        while True:
            try:
                if ledger.settled:
                    info = await jetstream.consumer_info("ORDERS", "work")
                    if not info.num_pending and not info.num_ack_pending:
                        return
                messages = await subscription.fetch(50, timeout=0.5)
            except (Error, OSError):
                await asyncio.sleep(RETRY_S)
                continue
            for message in messages:
                seq = message.metadata.sequence.stream
                if seq in ledger.confirmed:
                    ledger.wrongs.append(f"sequence {seq} came again after its confirmed ack")
                ledger.handed_out.add(seq)
                with contextlib.suppress(Error, OSError):
                    await message.ack_sync(timeout=0.5)
                    ledger.confirmed.add(seq)


async def run_killer(server: Server, ledger: Ledger, seed: int, total: int) -> None:
    """Die right after an acknowledgement, at places drawn from the seed."""
    chance = random.Random(seed)
    places = sorted(chance.sample(range(20, total - 20), KILLS))
    for place in places:
        await ledger.wait_for_acks(place)
        server.kill()
        await server.restart()


async def read_back(server: Server, ledger: Ledger) -> None:
    """Compare what is stored with what was acknowledged."""
    async with connected(server) as client:
        jetstream = client.jetstream()
        state = (await jetstream.stream_info("ORDERS")).state
        subscription = await jetstream.subscribe("orders.>", ordered_consumer=True)
        stored: dict[str, list[int]] = {}
        for _ in range(state.messages):
            message = await subscription.next_msg(timeout=5)
            msg_id = (message.headers or {})["Nats-Msg-Id"]
            stored.setdefault(msg_id, []).append(message.metadata.sequence.stream)
        for msg_id, seq in ledger.acked.items():
            if stored.get(msg_id) != [seq]:
                ledger.wrongs.append(f"{msg_id} acked at {seq} is at {stored.get(msg_id, [])}")
        for publisher in range(PUBLISHERS):
            seqs = [stored.get(f"{publisher}-{number}", [0])[0] for number in range(MESSAGES)]
            if seqs != sorted(seqs):
                ledger.wrongs.append(f"publisher {publisher} is out of order")
        for msg_id, seq in list(ledger.acked.items())[-200:]:
            publisher, number = map(int, msg_id.split("-"))
            if await publish(jetstream, publisher, number) != (msg_id, seq):
                ledger.wrongs.append(f"{msg_id} sent again was not a duplicate")


async def live_through_kills(server: Server, seed: int) -> Ledger:
    ledger = Ledger()
    async with connected(server) as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(
            StreamConfig(name="ORDERS", subjects=["orders.>"], storage=StorageType.FILE)
        )
        await jetstream.add_consumer(
            "ORDERS",
            ConsumerConfig(
                durable_name="work", ack_policy=AckPolicy.EXPLICIT, ack_wait=2, max_deliver=-1
            ),
        )
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(run_consumer(server, ledger), name="consumer")
        async with asyncio.TaskGroup() as sending:
            for publisher in range(PUBLISHERS):
                sending.create_task(run_publisher(server, ledger, publisher), name=f"{publisher}")
            total = PUBLISHERS * MESSAGES
            sending.create_task(run_killer(server, ledger, seed, total), name="killer")
        ledger.settled = True
    async with asyncio.timeout(DEADLINE_S):
        await read_back(server, ledger)
    return ledger


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_acknowledged_survives_any_number_of_kills(
    tmp_path: Path, seed: int
) -> None:
    with Server(EMBEDDED, tmp_path) as server:
        ledger = await live_through_kills(server, seed)

    assert ledger.wrongs == []
    assert len(ledger.acked) == PUBLISHERS * MESSAGES
    assert ledger.handed_out == set(ledger.acked.values())
    assert len(ledger.confirmed) > PUBLISHERS * MESSAGES * 0.9


async def overwrite(server: Server, ledger: Ledger, publisher: int) -> None:
    """Put growing numbers under the publisher's keys, each until it is acknowledged."""
    async with connected(server) as client:
        jetstream = client.jetstream()
        for number in range(BUCKET_PUTS):
            key = f"keys.{publisher}.{number % KEYS}"
            value = b"%d " % number + b"v" * BUCKET_VALUE_BYTES
            while True:
                with contextlib.suppress(Error, OSError):
                    await jetstream.publish(key, value, timeout=0.5)
                    break
                await asyncio.sleep(RETRY_S)
            ledger.ack(f"{publisher}-{number}", number)


def block_bytes(store_dir: Path) -> int:
    return sum(path.stat().st_size for path in store_dir.rglob("*.blk"))


async def test_a_bucket_overwritten_through_kills_keeps_the_last_value_of_each_key(
    tmp_path: Path,
) -> None:
    ledger = Ledger()
    with Server(EMBEDDED, tmp_path) as server:
        async with connected(server) as client:
            await client.jetstream().add_stream(
                StreamConfig(
                    name="KEYS",
                    subjects=["keys.>"],
                    storage=StorageType.FILE,
                    max_msgs_per_subject=1,
                )
            )
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            for publisher in range(PUBLISHERS):
                tasks.create_task(overwrite(server, ledger, publisher), name=f"put-{publisher}")
            tasks.create_task(
                run_killer(server, ledger, 3, PUBLISHERS * BUCKET_PUTS), name="killer"
            )
        server.kill()
        server.reopen()
        async with connected(server) as client:
            jetstream = client.jetstream()
            state = (await jetstream.stream_info("KEYS")).state
            values = {
                (publisher, key): await jetstream.get_last_msg("KEYS", f"keys.{publisher}.{key}")
                for publisher in range(PUBLISHERS)
                for key in range(KEYS)
            }

    assert state.messages == PUBLISHERS * KEYS
    for (_, key), message in values.items():
        number = int((message.data or b"").split()[0])
        assert number == BUCKET_PUTS - KEYS + key
    assert block_bytes(tmp_path) < PUBLISHERS * BUCKET_PUTS * BUCKET_VALUE_BYTES / 2


async def test_a_store_that_forgets_to_write_is_found_out(tmp_path: Path) -> None:
    with ForgetfulServer(EMBEDDED, tmp_path) as server:
        ledger = await live_through_kills(server, 1)

    assert any("acked at" in wrong for wrong in ledger.wrongs)
