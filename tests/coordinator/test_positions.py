"""Start positions: what reset writes, and what it refuses."""

from datetime import UTC, datetime

import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from millstream_coordinator import naming
from millstream_coordinator.errors import GroupMissing, NotPossible, PartitionMissing
from millstream_coordinator.model import (
    ConfigRecord,
    DonePosition,
    DoneRecord,
    PartitionRecord,
    PartitionState,
)
from millstream_coordinator.operation.positions import reset
from millstream_coordinator.operation.target import Target
from millstream_coordinator.partitioning.topic import Start
from tests.coordinator.made_group import make_group, make_stream, partition, served

EARLIEST, LATEST = Start.parse("earliest"), Start.parse("latest")
SUBJECTS = ("0.a", "1.a", "0.b", "1.b", "0.c")


def at(sequence: int) -> Start:
    return Start.parse(f"sequence:{sequence}")


async def test_a_reset_is_a_higher_epoch_of_the_same_owner_behind_another_floor(
    client: Client, name: str
) -> None:
    await make_stream(client, name, SUBJECTS)
    target = await make_group(client, name, served(["w", "v"], epoch=6, floor=4), partitions=2)

    outcome = await reset(target, at(2), partitions=[0])

    record = await partition(target, 0)
    assert record.stopped_ns > 0
    assert record == PartitionRecord(
        epoch=7,
        owner="w",
        instance="w-1",
        floor=1,
        state=PartitionState.OWNED,
        cause="reset",
        stopped_ns=record.stopped_ns,
    )
    assert (await partition(target, 1)).epoch == 6
    assert [str(it) for it in outcome.changes] == ["partition 0 handled up to: 4 -> 1"]


async def test_a_move_under_way_and_a_stopped_message_are_over_after_a_reset(
    client: Client, name: str
) -> None:
    await make_stream(client, name, SUBJECTS)
    moving = PartitionRecord(
        epoch=6,
        owner="w",
        next="v",
        next_instance="1",
        state=PartitionState.MOVING,
        stopped_seq=3,
        stopped_error="E",
        skip_seq=3,
    )
    target = await make_group(client, name, {naming.partition_key(0): moving})

    await reset(target, LATEST)

    record = await partition(target, 0)
    assert (record.next, record.next_instance, record.state) == (None, None, PartitionState.OWNED)
    assert (record.stopped_seq, record.stopped_error, record.skip_seq) == (None, "", None)


@pytest.mark.parametrize(
    ("start", "floor"),
    [(EARLIEST, 2), (LATEST, 5), (at(4), 3), (at(6), 5)],
)
async def test_positions_are_edges_or_the_first_sequence_wanted(
    client: Client, name: str, start: Start, floor: int
) -> None:
    await make_stream(client, name, SUBJECTS)
    await client.jetstream().purge_stream(name, seq=3)
    target = await make_group(client, name, served(["w"], floor=3))

    await reset(target, start)

    assert (await partition(target, 0)).floor == floor


async def test_a_time_is_the_first_message_stored_then_or_later(client: Client, name: str) -> None:
    await make_stream(client, name, SUBJECTS)
    message = await client.jetstream().get_msg(name, seq=3)
    assert message.time is not None
    target = await make_group(client, name, served(["w"]))

    await reset(target, Start.at(message.time))
    at_third = (await partition(target, 0)).floor
    await reset(target, Start.at(datetime(2200, 1, 1, tzinfo=UTC)))

    assert at_third == 2
    assert (await partition(target, 0)).floor == 5


async def test_before_a_group_ever_ran_a_position_has_no_owner_and_is_above_what_is_left_over(
    client: Client, name: str
) -> None:
    await make_stream(client, name, SUBJECTS)
    left_over = ConsumerConfig(durable_name=naming.consumer(name, 1, 40))
    await client.jetstream().add_consumer(name, left_over)
    target = await make_group(client, name, partitions=2)

    await reset(target, {0: at(3), 1: LATEST})

    records = [await partition(target, it) for it in range(2)]
    assert [(it.epoch, it.owner, it.floor, it.state) for it in records] == [
        (41, None, 2, PartitionState.FREE),
        (41, None, 5, PartitionState.FREE),
    ]


async def test_each_partition_of_a_stream_per_partition_ends_where_its_own_stream_does(
    client: Client, name: str
) -> None:
    config = ConfigRecord(
        partitions=2, stream=f"{name}-{{partition}}", filter=f"{name}.{{partition}}.*"
    )
    for number in range(2):
        one = StreamConfig(name=f"{name}-{number}", subjects=[f"{name}.{number}.*"])
        await client.jetstream().add_stream(one)
        for key in "abc"[: number + 1]:
            await client.jetstream().publish(f"{name}.{number}.{key}", b"")
    target = await make_group(client, name, config=config)

    await reset(target, LATEST)

    assert [(await partition(target, it)).floor for it in range(2)] == [1, 2]


async def test_at_a_finer_level_a_position_is_of_that_level(client: Client, name: str) -> None:
    await make_stream(client, name)
    config = ConfigRecord(
        partitions=2,
        stream=name,
        filter=f"{name}.{{partition}}.{{partition:4}}.*",
        levels=(2, 4),
        level=4,
    )
    target = await make_group(client, name, config=config)

    await reset(target, EARLIEST, partitions=[3])

    assert (await partition(target, 3)).level == 4


async def test_backwards_on_a_work_queue_is_refused_and_forwards_is_not(
    client: Client, name: str
) -> None:
    await make_stream(client, name, SUBJECTS, RetentionPolicy.WORK_QUEUE)
    target = await make_group(client, name, served(["w"], floor=3))

    with pytest.raises(NotPossible, match="there is no way back"):
        await reset(target, at(3))
    await reset(target, at(5))

    assert (await partition(target, 0)).floor == 4


async def test_a_position_beyond_the_end_is_refused_and_nothing_is_written(
    client: Client, name: str
) -> None:
    await make_stream(client, name, SUBJECTS)
    target = await make_group(client, name, served(["w", "v"]), partitions=2)

    with pytest.raises(NotPossible, match="sequence 7 for partition 1 is beyond the end"):
        await reset(target, {0: at(2), 1: at(7)})

    assert (await partition(target, 0)).epoch == 1


async def test_a_partition_that_is_not_there_has_no_position(client: Client, name: str) -> None:
    await make_stream(client, name)
    target = await make_group(client, name, partitions=2)

    with pytest.raises(PartitionMissing):
        await reset(target, {2: EARLIEST})


async def test_a_group_without_a_stream_has_no_positions(client: Client, name: str) -> None:
    config = ConfigRecord(partitions=1, stream=None, filter=None)
    target = await make_group(client, name, config=config)

    with pytest.raises(NotPossible, match="has no stream"):
        await reset(target, EARLIEST)


async def test_no_position_is_set_between_two_levels(client: Client, name: str) -> None:
    await make_stream(client, name)
    filter_ = f"{name}.{{partition}}.{{partition:2}}.*"
    config = ConfigRecord(partitions=1, stream=name, filter=filter_, levels=(1, 2), resize_to=2)
    target = await make_group(client, name, config=config)

    with pytest.raises(NotPossible, match="a resize to 2 is under way"):
        await reset(target, EARLIEST)


async def test_a_dry_run_of_a_reset_tells_and_writes_nothing(client: Client, name: str) -> None:
    await make_stream(client, name, SUBJECTS)
    target = await make_group(client, name, served(["w"], floor=1))

    outcome = await reset(target, LATEST, dry_run=True)

    assert [str(it) for it in outcome.changes] == ["partition 0 handled up to: 1 -> 5"]
    assert (await partition(target, 0)).epoch == 1


async def test_a_group_that_is_not_there_has_no_positions(client: Client, name: str) -> None:
    with pytest.raises(GroupMissing):
        await reset(Target(client, name), EARLIEST)


async def test_a_partition_that_stands_there_already_is_left_alone_unless_that_would_repeat(
    client: Client, name: str
) -> None:
    await make_stream(client, name, SUBJECTS)
    beyond = DonePosition(epoch=6, floor=4, done=((6, 6),))
    target = await make_group(
        client,
        name,
        {
            **served(["w", "v", "u"], epoch=6, floor=4),
            naming.partition_key(1): PartitionRecord(epoch=6, owner="v", floor=2),
            naming.done_key("u"): DoneRecord(instance="u-1", partitions={2: beyond}),
        },
        partitions=3,
    )

    dry = await reset(target, at(5), dry_run=True)
    outcome = await reset(target, at(5))

    assert dry.changes == outcome.changes
    assert [str(it) for it in outcome.changes] == [
        "partition 1 handled up to: 2 -> 4",
        "partition 2 handled up to: 4 -> 4",
    ]
    assert [(await partition(target, it)).epoch for it in range(3)] == [6, 7, 7]
