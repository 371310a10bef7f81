"""What a group needs of a server, on each server of the field. The first lines are the table's."""

import asyncio

import nats.js.errors
import pytest
from nats.aio.client import Client

from millstream_coordinator import BatchSink, Group, GroupError, KvSink, Message, Output, read_view
from millstream_coordinator.jetstream.api import Api
from millstream_coordinator.jetstream.consumers import Consumers
from millstream_coordinator.jetstream.keys import Bucket, bucket_config
from millstream_coordinator.jetstream.port import JetStreamPort
from millstream_coordinator.jetstream.streams import Streams
from millstream_coordinator.model import ConfigRecord, MemberSettings
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.ports import (
    CreateConsumer,
    Delivered,
    Done,
    DoubleAck,
    Failed,
    Failure,
    OpenPull,
    Overlap,
    PullEnded,
)
from tests.coordinator.members import running, until
from tests.coordinator.test_worker import Seen, fill, member
from tests.helpers.versions import VersionServer

ATOMIC_LEVEL = 2
LEASES = {"2.10.26": False}
"""Where a key cannot run out by itself; everywhere else it can."""
pytestmark = pytest.mark.real_server


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_order_per_key_and_every_message_once(
    server: VersionServer, client: Client, name: str, retention: str
) -> None:
    """Order per key, every message once"""
    await fill(client, name, 70, retention)
    seen = Seen()

    async with running(member(server.url, name, seen)):
        await until(lambda: len(seen.messages) >= 70)

    assert len(seen.messages) == 70
    for key in range(7):
        assert seen.of_key(f"k{key}".encode()) == list(range(key, 70, 7))


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_members_share_partitions_and_give_them_back(
    server: VersionServer, client: Client, name: str, retention: str
) -> None:
    """Balancing, graceful moves"""
    await fill(client, name, 40, retention)
    seen = Seen()
    first = member(server.url, name, seen, member="a")
    second = member(server.url, name, seen, member="b")

    async with running(first):
        async with running(second):
            await until(lambda: len(first.partitions) == 2 and len(second.partitions) == 2)
        await until(lambda: len(first.partitions) == 4)
        await until(lambda: len(seen.messages) >= 40)

    assert len(seen.messages) == 40


async def test_a_deleted_consumer_fences_its_owner(
    server: VersionServer, client: Client, name: str
) -> None:
    """Fencing by the epoch in the consumer's name"""
    await fill(client, name, 10)
    settings = MemberSettings(
        group=name,
        member="m",
        instance="i",
        config=ConfigRecord(partitions=4, stream=name.upper(), filter=None),
    )
    told: list[object] = []
    port = JetStreamPort(server.url, settings, KeyRule.parse(f"{name}.*.{{key}}"))
    async with asyncio.TaskGroup() as tasks:
        started: list[asyncio.Task[None]] = []
        await port.open(told.append, lambda task, _: started.append(tasks.create_task(task)))
        consumer = f"{name}-p0-e1"
        port.execute(CreateConsumer(id=1, name=consumer, partition=0, start_seq=1))
        await until(lambda: Done(id=1) in told)
        port.execute(OpenPull(pull=1, name=consumer, partition=0, epoch=1))
        await until(lambda: any(isinstance(one, Delivered) for one in told))
        message = next(one for one in told if isinstance(one, Delivered)).messages[0]

        await client.jetstream().delete_consumer(name.upper(), consumer)
        port.execute(DoubleAck(id=2, message=message))
        await until(lambda: any(isinstance(one, PullEnded) for one in told))
        await until(lambda: any(isinstance(one, Failed) for one in told))

        failed = next(one for one in told if isinstance(one, Failed))
        ended = next(one for one in told if isinstance(one, PullEnded))
        await port.close()
        for task in started:
            task.cancel()

    assert (failed.id, failed.reason) == (2, Failure.NO_RESPONDERS)
    assert "Consumer Deleted" in ended.reason


async def test_a_second_consumer_on_a_work_queue_is_refused(
    client: Client, server: VersionServer, name: str
) -> None:
    """The server's own mutex on work-queue streams"""
    del server
    await fill(client, name, 0, "workqueue")
    api = Api(client, 2.0)
    rule = KeyRule.parse(f"{name}.*.{{key}}")
    settings = MemberSettings(
        group=name,
        member="m",
        instance="i",
        config=ConfigRecord(partitions=4, stream=name.upper(), filter=None),
    )
    streams = Streams(api, settings, rule)
    await streams.look()
    consumers = Consumers(api, settings, rule, streams)

    answers = [
        await consumers.create(
            CreateConsumer(id=1, name=f"{name}-p0-e{epoch}", partition=0, start_seq=1)
        )
        for epoch in (1, 2)
    ]

    assert answers == [Done(id=1), Overlap(id=1)]


async def test_a_restarted_server_moves_nothing(
    server: VersionServer, client: Client, name: str
) -> None:
    """A server restart moves nothing"""
    await fill(client, name, 8)
    seen = Seen()
    group = member(server.url, name, seen)
    async with running(group):
        await until(lambda: len(seen.messages) == 8)
        before = group.partitions
        server.kill()
        await server.restart()
        await until(lambda: client.is_connected)
        await client.jetstream(timeout=10).publish(f"{name}.1.late", b"8")
        await until(lambda: len(seen.messages) == 9)

        assert group.partitions == before


async def test_a_lost_bucket_is_made_again(
    server: VersionServer, client: Client, name: str
) -> None:
    """A lost bucket is rebuilt with higher epochs"""
    await fill(client, name, 20)
    seen = Seen()
    group = member(server.url, name, seen)
    async with running(group):
        await until(lambda: len(seen.messages) == 20)
        before = group.partitions

        await client.jetstream().delete_stream(f"KV_MILLSTREAM_{name}")

        await until(
            lambda: (
                len(group.partitions) == 4
                and all(epoch > before[n] for n, epoch in group.partitions.items())
            )
        )


async def test_keys_run_out_where_the_server_can_and_it_is_known_where_not(
    client: Client, server: VersionServer, name: str
) -> None:
    """Known whether keys run out by themselves, and lived without"""
    config = ConfigRecord(partitions=1, stream=None, filter=None)
    settings = MemberSettings(group=name, member="m", instance="i", config=config)
    bucket = Bucket(Api(client, 2.0), settings)
    level = (await Api(client, 2.0).call("INFO")).get("api", {}).get("level", 0)

    await bucket.prepare(1, has_ttl=level >= 1)

    assert bucket.has_ttl is LEASES.get(server.version, True)


async def test_what_a_bucket_holds_survives_a_restart(
    client: Client, server: VersionServer, name: str
) -> None:
    """What a bucket holds survives a restart"""
    api = Api(client, 2.0)
    config = ConfigRecord(partitions=1, stream=None, filter=None)
    settings = MemberSettings(group=name, member="m", instance="i", config=config)
    has_ttl = (await api.call("INFO")).get("api", {}).get("level", 0) >= 1
    bucket = Bucket(api, settings)
    await api.call(f"STREAM.CREATE.{bucket.stream}", bucket_config(name, 1, has_ttl=has_ttl))
    await api.write(bucket.name, "cfg", b"first", 0, {})  # by a program that crashed then

    await bucket.prepare(1, has_ttl=has_ttl)
    await api.write(bucket.name, "part.0", b"second", 0, {})
    server.kill()
    await server.restart()
    await until(lambda: client.is_connected)
    await client.flush()

    assert (await api.read(bucket.name, "cfg")).value == b"first"
    assert (await api.read(bucket.name, "part.0")).value == b"second"


async def test_a_message_that_cannot_be_handled_becomes_a_letter(
    server: VersionServer, client: Client, name: str
) -> None:
    """Dead letters"""
    await fill(client, name, 14)
    seen = Seen()
    group = Group(
        server.url,
        stream=name.upper(),
        name=name,
        partitions=4,
        on_failure="dead-letter",
        max_attempts=2,
    )

    @group.handler(key=f"{name}.*.{{key}}")
    async def handle(message: Message) -> None:
        if message.data == b"3":
            raise ValueError("not this one")
        await seen(message)

    async with running(group):
        await until(lambda: len(seen.messages) == 13)

    letter = await client.jetstream().get_last_msg(
        f"MILLSTREAM_DLQ_{name}", f"millstream.dlq.{name}.3.k3"
    )
    assert letter.data == b"3"
    assert letter.headers is not None
    assert letter.headers["Millstream-Attempts"] == "2"
    assert seen.of_key(b"k3") == [10]


async def test_a_parked_key_waits_and_the_others_go_on(
    server: VersionServer, client: Client, name: str
) -> None:
    """Parked keys"""
    await fill(client, name, 21)
    seen = Seen()
    group = Group(
        server.url,
        stream=name.upper(),
        name=name,
        partitions=4,
        on_failure="park",
        max_attempts=1,
    )

    @group.handler(key=f"{name}.*.{{key}}")
    async def handle(message: Message) -> None:
        if message.key == b"k3":
            raise ValueError("not this key")
        await seen(message)

    async with running(group):
        await until(lambda: len(seen.messages) == 18)
        subject = f"millstream.dlq.{name}.3.k3"

        async def num_letters() -> int:
            try:
                info = await client.jetstream().stream_info(
                    f"MILLSTREAM_DLQ_{name}", subjects_filter=subject
                )
            except nats.js.errors.NotFoundError:
                return 0
            return (info.state.subjects or {}).get(subject, 0)

        async with asyncio.timeout(15):
            while await num_letters() < 3:  # noqa: ASYNC110 - the server is polled, as users do
                await asyncio.sleep(0.05)

    assert sorted({one.key for one in seen.messages if one.key}) == [
        b"k0",
        b"k1",
        b"k2",
        b"k4",
        b"k5",
        b"k6",
    ]


async def test_effects_in_a_fenced_bucket(server: VersionServer, client: Client, name: str) -> None:
    """Fenced sink in a KV bucket"""
    await fill(client, name, 35)
    sink = await KvSink.open(client, f"{name}-sink")
    group = Group(server.url, stream=name.upper(), name=name, partitions=4)
    count = 0

    @group.handler(key=f"{name}.*.{{key}}")
    async def append(message: Message) -> None:
        nonlocal count
        data = message.data
        await sink.apply(message, lambda before: b" ".join([*(before or b"").split(), data]))
        count += 1

    async with running(group):
        await until(lambda: count == 35)

    for key in range(7):
        chain = await sink.value(f"k{key}".encode())
        assert [int(one) for one in (chain or b"").split()] == list(range(key, 35, 7))


async def test_a_group_can_be_looked_at(server: VersionServer, client: Client, name: str) -> None:
    """describe"""
    await fill(client, name, 0)
    group = member(server.url, name, Seen(), member="a")

    async with running(group):
        await until(lambda: len(group.partitions) == 4)
        view = await read_view(client, name)

    assert {record.owner for record in view.partitions.values()} == {"a"}


async def test_atomic_batches_are_used_or_refused_in_one_line(
    server: VersionServer, client: Client, name: str
) -> None:
    """Atomic batches are used, or refused in one line before anything is sent"""
    api = Api(client, 2.0)
    await fill(client, name, 7)
    level = (await api.call("INFO")).get("api", {}).get("level", 0)
    output = f"{name.upper()}-OUT"
    can = {"allow_atomic": True, "allow_rollup_hdrs": True} if level >= ATOMIC_LEVEL else {}
    subjects = [f"{output}.>", f"millstream.sink.{name}.>"]
    await api.call(f"STREAM.CREATE.{output}", {"name": output, "subjects": subjects, **can})
    if level < ATOMIC_LEVEL:
        with pytest.raises(GroupError, match=r"atomic batches need nats-server 2\.12"):
            await BatchSink.open(client, stream=output, group=name)
        assert (await client.jetstream().stream_info(output)).state.messages == 0
        return
    sink = await BatchSink.open(client, stream=output, group=name)
    group = Group(server.url, stream=name.upper(), name=name, partitions=4)
    count = 0

    @group.handler(key=f"{name}.*.{{key}}")
    async def copy(message: Message) -> None:
        nonlocal count
        key = (message.key or b"").decode()
        one = Output(subject=f"{output}.{key}", data=message.data)
        await sink.apply(message, [one])
        count += 1

    async with running(group):
        await until(lambda: count == 7)

    filtered = await client.jetstream().stream_info(output, subjects_filter=f"{output}.>")
    assert sum((filtered.state.subjects or {}).values()) == 7
