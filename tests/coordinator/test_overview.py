"""What describe shows: positions, lag with and without a consumer, owners, members."""

import asyncio
import json

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
    ControlRecord,
    DonePosition,
    DoneRecord,
    LeaderRecord,
    MemberRecord,
    ParkedRecord,
    PartitionRecord,
    PartitionState,
    Record,
)
from millstream_coordinator.operation.overview import (
    SCHEMA,
    GroupLine,
    PartitionRow,
    list_groups,
    read_overview,
)
from millstream_coordinator.operation.target import Target
from tests.coordinator.made_group import make_group, make_stream, served


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
    (row,) = (await read_overview(Target(client, name))).partitions
    return row


async def test_a_served_partition_shows_its_consumers_position(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a", "1.x", "0.b", "0.c", "0.d", "1.y"])
    await make_group(
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
    await make_stream(client, name, ["0.a", "1.x", "0.b", "0.c"])
    await make_group(client, name, {naming.partition_key(0): PartitionRecord(epoch=4, floor=1)})

    row = await only_row(client, name)

    assert (row.current, row.end, row.lag) == (1, 4, 2)
    assert (row.owner, row.state) == (None, "free")


async def test_counting_leaves_no_consumer_behind(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a"])
    await make_group(client, name, {naming.partition_key(0): PartitionRecord(epoch=4)})

    await read_overview(Target(client, name))

    assert await client.jetstream().consumers_info(name) == []


async def test_the_owners_newer_saved_floor_counts(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a", "0.b", "0.c"])
    done = DoneRecord(instance="i", partitions={0: DonePosition(epoch=4, floor=2)})
    await make_group(
        client,
        name,
        {
            naming.partition_key(0): PartitionRecord(epoch=4, owner="w", floor=1),
            naming.done_key("w"): done,
        },
    )

    row = await only_row(client, name)

    assert (row.current, row.lag) == (2, 1)


async def test_what_was_saved_before_a_reset_counts_no_more(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a", "0.b", "0.c"])
    done = DoneRecord(instance="i", partitions={0: DonePosition(epoch=4, floor=3)})
    reset = PartitionRecord(epoch=5, owner="w", floor=1, done_from=None)
    await make_group(client, name, {naming.partition_key(0): reset, naming.done_key("w"): done})

    row = await only_row(client, name)

    assert (row.current, row.lag) == (1, 2)


async def test_on_a_work_queue_all_that_is_left_is_lag(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a", "0.b", "1.x"], RetentionPolicy.WORK_QUEUE)
    await make_group(client, name, {naming.partition_key(0): PartitionRecord(epoch=4)})

    assert (await only_row(client, name)).lag == 2


async def test_an_empty_partition_has_no_end_and_no_lag(client: Client, name: str) -> None:
    await make_stream(client, name, ["1.x"])
    await make_group(client, name)

    row = await only_row(client, name)

    assert (row.current, row.end, row.lag, row.epoch) == (0, None, 0, 0)


async def test_members_show_what_they_own_and_who_leads(client: Client, name: str) -> None:
    await make_stream(client, name, [])
    records: dict[str, Record] = {
        naming.member_key("w1"): MemberRecord(instance="i", host="h1", pid=7, labels={"z": "1"}),
        naming.member_key("w2"): MemberRecord(instance="i", host="h2", is_leaving=True),
        naming.LEADER_KEY: LeaderRecord(member="w1", instance="i"),
        naming.partition_key(0): PartitionRecord(epoch=1, owner="w1", state=PartitionState.OWNED),
        naming.partition_key(1): PartitionRecord(epoch=2, owner="w1", state=PartitionState.MOVING),
    }
    await make_group(client, name, records, partitions=2)

    overview = await read_overview(Target(client, name))

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
    config = ConfigRecord(partitions=1, stream=None, filter=None)
    await make_group(client, name, records, config=config)

    overview = await read_overview(Target(client, name))

    (row,) = overview.partitions
    assert (row.current, row.end, row.lag, row.epoch, row.owner) == (None, None, None, 3, "w")
    assert overview.lag is None


async def test_the_json_document_has_these_fields(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a", "1.a", "1.b"])
    await make_group(
        client, name, {naming.member_key("w"): MemberRecord(instance="i")}, partitions=2
    )

    document = json.loads(json.dumps((await read_overview(Target(client, name))).as_json()))

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
        "next": None,
        "is_paused": False,
        "stopped_seq": None,
        "stopped_error": "",
        "pinned_to": None,
        "parked_keys": 0,
        "is_too_new": False,
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
        "is_draining",
        "is_static",
        "software",
        "heartbeat_age_s",
    }


@pytest.mark.parametrize(
    ("record", "ctl", "parked", "condition"),
    [
        (PartitionRecord(epoch=1), ControlRecord(), 0, "free"),
        (PartitionRecord(epoch=1), ControlRecord(paused=(0,)), 0, "paused"),
        (PartitionRecord(epoch=1), ControlRecord(is_paused=True), 2, "paused, 2 keys parked"),
        (PartitionRecord(epoch=1, owner="w"), ControlRecord(pins={0: "w"}), 0, "pinned"),
        (PartitionRecord(epoch=1, owner="w"), ControlRecord(pins={0: "v"}), 0, "pinned to v"),
        (PartitionRecord(epoch=1, stopped_seq=7), ControlRecord(paused=(0,)), 0, "stopped at 7"),
        (PartitionRecord(epoch=1, version=2), ControlRecord(), 0, "too new"),
        (
            PartitionRecord(epoch=1, owner="w", next="v", state=PartitionState.MOVING),
            ControlRecord(),
            0,
            "moving to v",
        ),
        (
            PartitionRecord(epoch=1, owner="w", state=PartitionState.MOVING),
            ControlRecord(),
            0,
            "draining",
        ),
    ],
)
async def test_the_state_is_told_in_words(
    client: Client,
    name: str,
    record: PartitionRecord,
    ctl: ControlRecord,
    parked: int,
    condition: str,
) -> None:
    await make_stream(client, name)
    keys = {str(it): it for it in range(parked)}
    records: dict[str, Record] = {
        naming.partition_key(0): record,
        naming.CONTROL_KEY: ctl,
        naming.parked_key(0): ParkedRecord(keys=keys),
    }
    await make_group(client, name, records)

    assert (await only_row(client, name)).condition == condition


async def test_a_member_that_beats_is_heard_and_a_silent_one_is_not(
    client: Client, name: str
) -> None:
    await make_stream(client, name)
    target = await make_group(client, name, served(["beats", "silent"]), partitions=2)

    async def beat() -> None:
        while True:
            await client.publish(naming.heartbeat(name, "beats"))
            await asyncio.sleep(0.02)

    beating = asyncio.create_task(beat())
    try:
        ages = [it.heartbeat_age_s for it in (await read_overview(target)).members]
    finally:
        beating.cancel()

    assert ages[0] is not None
    assert ages[1] is None


async def test_each_partition_of_a_stream_per_partition_is_read_in_its_own(
    client: Client, name: str
) -> None:
    config = ConfigRecord(partitions=2, stream=f"{name}-{{partition}}", filter=f"{name}.*.*")
    for number, keys in enumerate((["a"], ["b", "c"])):
        subjects = [f"{name}.{number}.*"]
        await client.jetstream().add_stream(
            StreamConfig(name=f"{name}-{number}", subjects=subjects)
        )
        for key in keys:
            await client.jetstream().publish(f"{name}.{number}.{key}", b"")
    target = await make_group(client, name, config=config)

    overview = await read_overview(target)

    assert [row.lag for row in overview.partitions] == [1, 2]


async def test_a_finer_level_is_read_by_its_own_token(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.0.a", "0.2.a", "0.2.b", "1.3.a"])
    config = ConfigRecord(
        partitions=2,
        stream=name,
        filter=f"{name}.{{partition}}.{{partition:4}}.*",
        levels=(2, 4),
        level=4,
    )
    before = PartitionRecord(epoch=9, owner="w", level=2)
    target = await make_group(client, name, {naming.partition_key(0): before}, config=config)

    overview = await read_overview(target)

    assert [row.lag for row in overview.partitions] == [1, 0, 2, 1]
    assert overview.partitions[0].owner is None


async def test_all_groups_are_listed_with_what_they_are_doing(client: Client, name: str) -> None:
    await client.jetstream().create_key_value(KeyValueConfig(bucket=naming.bucket(f"{name}-none")))
    bad = await client.jetstream().create_key_value(
        KeyValueConfig(bucket=naming.bucket(f"{name}-bad"))
    )
    await bad.put(naming.CONFIG_KEY, b"?")
    busy: dict[str, Record] = {
        **served(["w"]),
        naming.LEADER_KEY: LeaderRecord(member="w", instance="1"),
    }
    await make_group(client, f"{name}-a", busy)
    await make_group(client, f"{name}-b", {naming.CONTROL_KEY: ControlRecord(is_paused=True)})

    lines = [it for it in await list_groups(client) if it.group.startswith(f"{name}-")]

    assert lines[0] == GroupLine(
        group=f"{name}-a",
        stream=f"{name}-a",
        partitions=1,
        members=1,
        leader="w",
        condition="running",
    )
    assert (lines[1].group, lines[1].condition) == (f"{name}-b", "paused")
    assert (lines[2].group, lines[2].error.startswith("not a ConfigRecord")) == (
        f"{name}-bad",
        True,
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("records", "condition"),
    [
        ({"ctl": ControlRecord(is_paused=True)}, "paused"),
        ({"part.0": PartitionRecord(epoch=1, stopped_seq=1)}, "1 partition stopped"),
        ({"part.0": PartitionRecord(epoch=1, version=2)}, "1 partition too new"),
        ({}, "no workers"),
        ({"members.w": MemberRecord(instance="1", capacity=0)}, "no workers"),
        ({"members.w": MemberRecord(instance="1")}, "running"),
        (
            {"members.w": MemberRecord(instance="1"), "ctl": ControlRecord(paused=(0,))},
            "1 partition paused",
        ),
    ],
)
async def test_the_list_tells_the_most_urgent_thing_first(
    client: Client, name: str, records: dict[str, Record], condition: str
) -> None:
    await make_group(client, name, records)

    (line,) = [it for it in await list_groups(client) if it.group == name]

    assert line.condition == condition


async def test_a_group_that_is_not_there_is_missing(client: Client, name: str) -> None:
    with pytest.raises(GroupMissing, match=name):
        await read_overview(Target(client, name))


async def test_a_stream_that_is_gone_is_missing(client: Client, name: str) -> None:
    await make_group(client, name)

    with pytest.raises(StreamMissing, match=name):
        await read_overview(Target(client, name))


async def test_many_partitions_are_read_at_once(client: Client, name: str) -> None:
    await make_stream(client, name, [f"{number}.a" for number in range(100)])
    await make_group(client, name, {}, partitions=100)

    overview = await read_overview(Target(client, name))

    assert overview.lag == 100
    assert [row.partition for row in overview.partitions] == list(range(100))
