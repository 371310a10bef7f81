"""What describe shows: positions, lag with and without a consumer, owners, members."""

import json
from collections.abc import Mapping

import pytest
from nats.aio.client import Client
from nats.js.api import (
    ConsumerConfig,
    DeliverPolicy,
    KeyValueConfig,
    RetentionPolicy,
    StreamConfig,
)

from millstream_coordinator import naming
from millstream_coordinator.errors import GroupMissing, StreamMissing
from millstream_coordinator.model import (
    ConfigRecord,
    DonePosition,
    DoneRecord,
    LeaderRecord,
    MemberRecord,
    PartitionRecord,
    PartitionState,
    Record,
    encode,
)
from millstream_coordinator.operation.overview import SCHEMA, PartitionRow, read_overview


async def group(
    client: Client,
    name: str,
    records: Mapping[str, Record],
    *,
    partitions: int = 1,
    stream: str | None = "",
) -> None:
    """A group's bucket with the records given, as its members would have written it."""
    bucket = await client.jetstream().create_key_value(KeyValueConfig(bucket=naming.bucket(name)))
    config = ConfigRecord(
        partitions=partitions,
        stream=name if stream == "" else stream,
        filter=f"{name}.{{partition}}.*",
    )
    for key, record in {naming.CONFIG_KEY: config, **records}.items():
        await bucket.put(key, encode(record))


async def stream(
    client: Client,
    name: str,
    subjects: list[str],
    retention: RetentionPolicy = RetentionPolicy.LIMITS,
) -> None:
    """A stream ``<name>.>`` holding one message for each subject."""
    jetstream = client.jetstream()
    await jetstream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], retention=retention))
    for subject in subjects:
        await jetstream.publish(f"{name}.{subject}", b"")


async def consumer(client: Client, name: str, partition: int, epoch: int, *, start: int = 1) -> str:
    """The partition's consumer as a group makes it."""
    config = ConsumerConfig(
        durable_name=naming.consumer(name, partition, epoch),
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        filter_subject=f"{name}.{partition}.*",
    )
    return (await client.jetstream().add_consumer(name, config)).name


async def only_row(client: Client, name: str) -> PartitionRow:
    (row,) = (await read_overview(client, name)).partitions
    return row


async def test_a_served_partition_shows_its_consumers_position(client: Client, name: str) -> None:
    await stream(client, name, ["0.a", "1.x", "0.b", "0.c", "0.d", "1.y"])
    await group(
        client, name, {naming.partition_key(0): PartitionRecord(epoch=4, owner="w", floor=0)}
    )
    durable = await consumer(client, name, 0, 4)
    pull = await client.jetstream().pull_subscribe_bind(durable, stream=name)
    first, second = await pull.fetch(2)
    await first.ack_sync()

    row = await only_row(client, name)

    # 2 is another partition's: the server counts its acknowledgement floor up to the next one open.
    assert (row.current, row.end, row.lag, row.epoch) == (2, 5, 3, 4)
    assert second.metadata.sequence.stream == 3


async def test_a_partition_nobody_serves_is_counted_from_its_saved_floor(
    client: Client, name: str
) -> None:
    await stream(client, name, ["0.a", "1.x", "0.b", "0.c"])
    await group(client, name, {naming.partition_key(0): PartitionRecord(epoch=4, floor=1)})

    row = await only_row(client, name)

    assert (row.current, row.end, row.lag) == (1, 4, 2)
    assert (row.owner, row.state) == (None, "free")


async def test_counting_leaves_no_consumer_behind(client: Client, name: str) -> None:
    await stream(client, name, ["0.a"])
    await group(client, name, {naming.partition_key(0): PartitionRecord(epoch=4)})

    await read_overview(client, name)

    assert await client.jetstream().consumers_info(name) == []


async def test_the_owners_newer_saved_floor_counts(client: Client, name: str) -> None:
    await stream(client, name, ["0.a", "0.b", "0.c"])
    done = DoneRecord(instance="i", partitions={0: DonePosition(epoch=4, floor=2)})
    await group(
        client,
        name,
        {
            naming.partition_key(0): PartitionRecord(epoch=4, owner="w", floor=1),
            naming.done_key("w"): done,
        },
    )

    row = await only_row(client, name)

    assert (row.current, row.lag) == (2, 1)


async def test_on_a_work_queue_all_that_is_left_is_lag(client: Client, name: str) -> None:
    await stream(client, name, ["0.a", "0.b", "1.x"], RetentionPolicy.WORK_QUEUE)
    await group(client, name, {naming.partition_key(0): PartitionRecord(epoch=4)})

    assert (await only_row(client, name)).lag == 2


async def test_an_empty_partition_has_no_end_and_no_lag(client: Client, name: str) -> None:
    await stream(client, name, ["1.x"])
    await group(client, name, {})

    row = await only_row(client, name)

    assert (row.current, row.end, row.lag, row.epoch) == (0, None, 0, 0)


async def test_members_show_what_they_own_and_who_leads(client: Client, name: str) -> None:
    await stream(client, name, [])
    records: dict[str, Record] = {
        naming.member_key("w1"): MemberRecord(instance="i", host="h1", pid=7, labels={"z": "1"}),
        naming.member_key("w2"): MemberRecord(instance="i", host="h2", is_leaving=True),
        naming.LEADER_KEY: LeaderRecord(member="w1", instance="i"),
        naming.partition_key(0): PartitionRecord(epoch=1, owner="w1", state=PartitionState.OWNED),
        naming.partition_key(1): PartitionRecord(epoch=2, owner="w1", state=PartitionState.MOVING),
    }
    await group(client, name, records, partitions=2)

    overview = await read_overview(client, name)

    assert [(it.owner, it.host, it.state) for it in overview.partitions] == [
        ("w1", "h1", "owned"),
        ("w1", "h1", "moving"),
    ]
    assert [(it.member, it.partitions, it.is_leader, it.is_leaving) for it in overview.members] == [
        ("w1", (0, 1), True, False),
        ("w2", (), False, True),
    ]


async def test_a_group_without_a_stream_has_owners_and_no_positions(
    client: Client, name: str
) -> None:
    records = {naming.partition_key(0): PartitionRecord(epoch=3, owner="w")}
    await group(client, name, records, stream=None)

    overview = await read_overview(client, name)

    (row,) = overview.partitions
    assert (row.current, row.end, row.lag, row.epoch, row.owner) == (None, None, None, 3, "w")
    assert overview.lag is None


async def test_the_json_document_has_these_fields(client: Client, name: str) -> None:
    await stream(client, name, ["0.a", "1.a", "1.b"])
    await group(client, name, {naming.member_key("w"): MemberRecord(instance="i")}, partitions=2)

    document = json.loads(json.dumps((await read_overview(client, name)).as_json()))

    assert document["schema"] == SCHEMA == "millstream.coordinator.describe/1"
    assert (document["group"], document["stream"], document["lag"]) == (name, name, 3)
    assert document["partitions"][1] == {
        "partition": 1,
        "current": 0,
        "end": 3,
        "lag": 2,
        "owner": None,
        "host": None,
        "epoch": 0,
        "state": "free",
    }
    assert document["members"][0].keys() == {
        "member",
        "host",
        "pid",
        "capacity",
        "labels",
        "partitions",
        "is_leader",
        "is_leaving",
    }


async def test_a_group_that_is_not_there_is_missing(client: Client, name: str) -> None:
    with pytest.raises(GroupMissing, match=name):
        await read_overview(client, name)


async def test_a_stream_that_is_gone_is_missing(client: Client, name: str) -> None:
    await group(client, name, {})

    with pytest.raises(StreamMissing, match=name):
        await read_overview(client, name)


async def test_many_partitions_are_read_at_once(client: Client, name: str) -> None:
    await stream(client, name, [f"{number}.a" for number in range(100)])
    await group(client, name, {}, partitions=100)

    overview = await read_overview(client, name)

    assert overview.lag == 100
    assert [row.partition for row in overview.partitions] == list(range(100))
