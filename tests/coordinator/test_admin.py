"""What operators do to a group: which records each operation writes, and what it refuses."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, StreamConfig

from millstream_coordinator import naming
from millstream_coordinator.errors import (
    BadName,
    Contended,
    GroupMissing,
    MemberMissing,
    NotPossible,
    PartitionMissing,
    ServerUnreachable,
)
from millstream_coordinator.jetstream.api import Entry
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    MemberRecord,
    ParkedRecord,
    PartitionRecord,
    Record,
    encode,
)
from millstream_coordinator.operation import admin
from millstream_coordinator.operation.admin import Outcome
from millstream_coordinator.operation.target import Target
from tests.coordinator.made_group import (
    control,
    make_group,
    make_stream,
    partition,
    revision,
    served,
)
from tests.helpers.servers import Server

Operation = Callable[[Target, bool], Awaitable[Outcome]]


def told(outcome: Outcome) -> list[str]:
    return [str(change) for change in outcome.changes]


# ---- pause, resume


async def test_a_paused_group_hands_nothing_out(client: Client, name: str) -> None:
    target = await make_group(client, name, partitions=2)

    outcome = await admin.pause(target)

    assert await control(target) == ControlRecord(is_paused=True)
    assert told(outcome) == ["group: running -> paused"]


async def test_partitions_are_paused_beside_those_that_are(client: Client, name: str) -> None:
    target = await make_group(
        client, name, {naming.CONTROL_KEY: ControlRecord(paused=(3,))}, partitions=4
    )

    outcome = await admin.pause(target, partitions=[1, 3])

    assert (await control(target)).paused == (1, 3)
    assert told(outcome) == ["partition 1: running -> paused"]


async def test_resuming_a_group_resumes_its_partitions_too(client: Client, name: str) -> None:
    paused = ControlRecord(is_paused=True, paused=(0,), pins={1: "a"})
    target = await make_group(client, name, {naming.CONTROL_KEY: paused}, partitions=2)

    outcome = await admin.resume(target)

    assert await control(target) == ControlRecord(pins={1: "a"})
    assert told(outcome) == ["group: paused -> running", "partition 0: paused -> running"]


async def test_one_partition_of_a_paused_group_cannot_be_resumed(client: Client, name: str) -> None:
    target = await make_group(client, name, {naming.CONTROL_KEY: ControlRecord(is_paused=True)})

    with pytest.raises(NotPossible, match="all of it is paused"):
        await admin.resume(target, partitions=[0])


async def test_resuming_a_stopped_partition_has_its_message_tried_again(
    client: Client, name: str
) -> None:
    stopped = PartitionRecord(epoch=4, owner="a", stopped_seq=17, stopped_error="ValueError: x")
    target = await make_group(client, name, {naming.partition_key(0): stopped})

    outcome = await admin.resume(target, partitions=[0])

    assert await partition(target, 0) == PartitionRecord(epoch=4, owner="a")
    assert told(outcome) == ["partition 0: stopped at 17 -> tried again"]


async def test_skipping_leaves_the_message_that_stopped_it_to_the_owner_as_a_dead_letter(
    client: Client, name: str
) -> None:
    stopped = PartitionRecord(epoch=4, owner="a", stopped_seq=17, stopped_error="ValueError: x")
    target = await make_group(client, name, {naming.partition_key(0): stopped})

    outcome = await admin.resume(target, skip=True)

    assert await partition(target, 0) == PartitionRecord(epoch=4, owner="a", skip_seq=17)
    assert told(outcome) == ["partition 0: stopped at 17 -> dead letter"]


async def test_nothing_is_skipped_where_nothing_is_stopped(client: Client, name: str) -> None:
    target = await make_group(client, name, served(["a"]))

    with pytest.raises(NotPossible, match="nothing to skip"):
        await admin.resume(target, skip=True)


# ---- drain, move


async def test_a_drained_member_is_to_own_nothing_until_it_is_undrained(
    client: Client, name: str
) -> None:
    target = await make_group(client, name, served(["a", "b"]), partitions=2)

    drained = await admin.drain(target, "b")
    draining = (await control(target)).draining
    undrained = await admin.undrain(target, "b")

    assert draining == ("b",)
    assert (await control(target)).draining == ()
    assert told(drained) == ["member b: taking partitions -> draining"]
    assert told(undrained) == ["member b: draining -> taking partitions"]


async def test_a_member_that_left_can_still_be_undrained(client: Client, name: str) -> None:
    target = await make_group(client, name, {naming.CONTROL_KEY: ControlRecord(draining=("gone",))})

    await admin.undrain(target, "gone")

    assert (await control(target)).draining == ()


async def test_a_moved_partition_is_pinned_and_an_unpinned_one_balanced_again(
    client: Client, name: str
) -> None:
    target = await make_group(client, name, served(["a", "b"]), partitions=2)

    moved = await admin.move(target, [0, 1], "b")
    pins = (await control(target)).pins
    freed = await admin.unpin(target, [0])

    assert pins == {0: "b", 1: "b"}
    assert (await control(target)).pins == {1: "b"}
    assert told(moved)[0] == "partition 0: balanced -> pinned to b"
    assert told(freed) == ["partition 0: pinned to b -> balanced"]


@pytest.mark.parametrize(
    ("member", "ctl", "reason"),
    [
        (MemberRecord(instance="1", capacity=0), ControlRecord(), "capacity 0"),
        (MemberRecord(instance="1", is_leaving=True), ControlRecord(), "drains"),
        (MemberRecord(instance="1"), ControlRecord(draining=("m",)), "drains"),
    ],
)
async def test_nothing_is_moved_to_a_member_that_takes_nothing(
    client: Client, name: str, member: MemberRecord, ctl: ControlRecord, reason: str
) -> None:
    records: dict[str, Record] = {naming.member_key("m"): member, naming.CONTROL_KEY: ctl}
    target = await make_group(client, name, records)

    with pytest.raises(NotPossible, match=reason):
        await admin.move(target, [0], "m")

    assert await control(target) == ctl


# ---- resize


def levelled(name: str, **more: object) -> ConfigRecord:
    config = ConfigRecord(
        partitions=4,
        stream=name,
        filter=f"{name}.{{partition}}.{{partition:8}}.*",
        levels=(4, 8),
    )
    return replace(config, **more)  # type: ignore[arg-type]


async def config_of(target: Target) -> ConfigRecord:
    return (await target.view()).config


async def test_a_resize_is_a_wish_in_the_configuration(client: Client, name: str) -> None:
    target = await make_group(client, name, config=levelled(name))

    outcome = await admin.resize(target, 8)

    assert await config_of(target) == levelled(name, resize_to=8)
    assert told(outcome) == ["partitions: 4 -> 4, resizing to 8"]


async def test_a_resize_to_what_there_is_calls_one_under_way_off(client: Client, name: str) -> None:
    target = await make_group(client, name, config=levelled(name, level=8, resize_to=4))

    outcome = await admin.resize(target, 8)

    assert await config_of(target) == levelled(name, level=8)
    assert told(outcome) == ["partitions: 8, resizing to 4 -> 8"]


@pytest.mark.parametrize(
    ("config", "wanted", "reason"),
    [
        ({}, 16, "tokens for 4, 8 partitions, not for 16"),
        ({"levels": ()}, 8, "one partition token, for 4 partitions"),
        ({"levels": (4, 8, 16), "resize_to": 16}, 8, "a resize to 16 is under way"),
    ],
)
async def test_a_resize_that_the_subjects_or_another_one_forbid_is_refused(
    client: Client, name: str, config: dict[str, object], wanted: int, reason: str
) -> None:
    target = await make_group(client, name, config=levelled(name, **config))

    with pytest.raises(NotPossible, match=reason):
        await admin.resize(target, wanted)

    assert await config_of(target) == levelled(name, **config)


@pytest.mark.parametrize(
    ("key", "record", "reason"),
    [
        ("ctl", ControlRecord(paused=(2,)), "partition 2 is paused"),
        ("ctl", ControlRecord(pins={1: "a"}), "partition 1 is pinned"),
        ("part.3", PartitionRecord(epoch=1, stopped_seq=5), "partition 3 is stopped"),
        ("parked.0", ParkedRecord(keys={"k": 5}), "partition 0 is holding parked keys"),
    ],
)
async def test_no_resize_while_something_is_said_about_single_partitions(
    client: Client, name: str, key: str, record: Record, reason: str
) -> None:
    target = await make_group(client, name, {key: record}, config=levelled(name))

    with pytest.raises(NotPossible, match=reason):
        await admin.resize(target, 8)


# ---- delete


async def test_a_deleted_group_leaves_no_consumer_and_no_bucket_and_its_stream_in_place(
    client: Client, name: str
) -> None:
    await make_stream(client, name, ["0.a"])
    await client.jetstream().add_stream(StreamConfig(name=naming.dead_letter_stream(name)))
    target = await make_group(client, name, served(["a"]))
    for durable in (naming.consumer(name, 0, 1), "somebody-else"):
        await client.jetstream().add_consumer(name, ConsumerConfig(durable_name=durable))

    outcome = await admin.delete(target, with_letters=True, with_work=True)

    left = await client.jetstream().streams_info()
    consumers = await client.jetstream().consumers_info(name)
    assert [it.config.name for it in left if name in (it.config.name or "")] == [name]
    assert [it.name for it in consumers] == ["somebody-else"]
    assert told(outcome) == [
        f"consumer {name}-p0-e1: there -> deleted",
        f"stream MILLSTREAM_DLQ_{name}: there -> deleted",
        f"bucket MILLSTREAM_{name}: there -> deleted",
    ]


async def test_a_group_whose_members_answer_is_not_deleted(client: Client, name: str) -> None:
    target = await make_group(client, name, served(["alive", "gone"]), partitions=2)

    async def answer(probe: Msg) -> None:
        await probe.respond(b"alive-1")

    await client.subscribe(naming.probe(name, "alive"), cb=answer)

    with pytest.raises(NotPossible, match=r"stop its members first: alive$"):
        await admin.delete(target)

    assert (await target.view()).config.partitions == 2


async def test_a_group_is_not_deleted_under_a_coordinator_that_does_not_leave_it(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "RELEASE_WAIT_S", 0.2)
    target = await make_group(client, name, served(["boss"], capacity=0))

    async def answer(probe: Msg) -> None:
        await probe.respond(b"boss-1")

    await client.subscribe(naming.probe(name, "boss"), cb=answer)

    with pytest.raises(NotPossible, match="stop its members first: boss"):
        await admin.delete(target)

    assert (await target.view()).config.partitions == 1


async def test_dead_letters_stay_unless_they_are_asked_for(client: Client, name: str) -> None:
    await client.jetstream().add_stream(StreamConfig(name=naming.dead_letter_stream(name)))
    target = await make_group(client, name)

    await admin.delete(target)

    await client.jetstream().stream_info(naming.dead_letter_stream(name))


# ---- what holds for all


OPERATIONS: dict[str, Operation] = {
    "pause": lambda target, dry: admin.pause(target, dry_run=dry),
    "resume": lambda target, dry: admin.resume(target, partitions=[1], skip=True, dry_run=dry),
    "drain": lambda target, dry: admin.drain(target, "a", dry_run=dry),
    "undrain": lambda target, dry: admin.undrain(target, "b", dry_run=dry),
    "move": lambda target, dry: admin.move(target, [1], "a", dry_run=dry),
    "unpin": lambda target, dry: admin.unpin(target, [0], dry_run=dry),
    "delete": lambda target, dry: admin.delete(target, dry_run=dry),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_dry_run_tells_the_changes_and_makes_none(
    client: Client, name: str, operation: str
) -> None:
    records = served(["a", "b"])
    records[naming.partition_key(1)] = PartitionRecord(epoch=1, stopped_seq=3)
    records[naming.CONTROL_KEY] = ControlRecord(draining=("b",), pins={0: "b"})
    target = await make_group(client, name, records, partitions=2)
    before = (await target.stream_info(f"KV_{target.bucket}") or {})["state"]["last_seq"]

    dry = await OPERATIONS[operation](target, True)
    after = (await target.stream_info(f"KV_{target.bucket}") or {})["state"]["last_seq"]
    done = await OPERATIONS[operation](target, False)

    assert dry.is_dry_run
    assert dry.changes
    assert dry.changes == done.changes
    assert after == before


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_group_that_is_not_there_is_missing(
    client: Client, name: str, operation: str
) -> None:
    with pytest.raises(GroupMissing):
        await OPERATIONS[operation](Target(client, name), False)


@pytest.mark.parametrize(
    "operation",
    [
        lambda target: admin.drain(target, "nobody"),
        lambda target: admin.undrain(target, "nobody"),
        lambda target: admin.move(target, [0], "nobody"),
    ],
)
async def test_a_member_that_is_not_there_is_missing(
    client: Client, name: str, operation: Callable[[Target], Awaitable[Outcome]]
) -> None:
    target = await make_group(client, name, served(["a"]))

    with pytest.raises(MemberMissing, match="no member 'nobody'"):
        await operation(target)


@pytest.mark.parametrize(
    "operation",
    [
        lambda target: admin.pause(target, partitions=[0, 2]),
        lambda target: admin.resume(target, partitions=[2]),
        lambda target: admin.move(target, [2], "a"),
        lambda target: admin.unpin(target, [-1]),
    ],
)
async def test_a_partition_that_is_not_there_is_missing(
    client: Client, name: str, operation: Callable[[Target], Awaitable[Outcome]]
) -> None:
    target = await make_group(client, name, served(["a", "b"]), partitions=2)

    with pytest.raises(PartitionMissing, match="they are 0 to 1"):
        await operation(target)


def test_a_name_no_group_can_have_is_refused(client: Client) -> None:
    with pytest.raises(BadName):
        Target(client, "a.b")


async def test_what_is_so_already_is_no_change_and_no_write(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await admin.pause(target)
    before = await revision(target, naming.CONTROL_KEY)

    outcome = await admin.pause(target)

    assert outcome.changes == ()
    assert await revision(target, naming.CONTROL_KEY) == before


async def test_two_operators_at_once_do_not_undo_one_another(client: Client, name: str) -> None:
    target = await make_group(client, name, partitions=8)

    await asyncio.gather(*(admin.pause(target, partitions=[it]) for it in range(8)))

    assert (await control(target)).paused == tuple(range(8))


async def test_what_another_operator_wrote_in_between_is_kept(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await make_group(client, name, partitions=2)
    read = target.api.read
    keys: list[str] = []

    async def overtaken(bucket: str, key: str) -> Entry:
        entry = await read(bucket, key)
        keys.append(key)
        if keys.count(naming.CONTROL_KEY) == 1:
            await admin.pause(Target(client, name), partitions=[1])
        return entry

    monkeypatch.setattr(target.api, "read", overtaken)
    await admin.pause(target, partitions=[0])

    assert (await control(Target(client, name))).paused == (0, 1)


async def test_a_key_that_never_stands_still_is_given_up(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await make_group(client, name)
    write = target.api.write

    async def beaten(bucket: str, key: str, value: bytes, revision: int, headers: object) -> int:
        await write(bucket, key, encode(ControlRecord()), revision, {})
        return await write(bucket, key, value, revision, {})

    monkeypatch.setattr(target.api, "write", beaten)
    with pytest.raises(Contended, match="'ctl'"):
        await admin.pause(target)


async def test_a_record_of_a_newer_version_is_not_written_over(client: Client, name: str) -> None:
    newer = PartitionRecord(epoch=1, stopped_seq=3, version=2)
    target = await make_group(client, name, {naming.partition_key(0): newer})

    with pytest.raises(NotPossible, match="use a newer one"):
        await admin.resume(target)

    assert await partition(target, 0) == newer


async def test_a_connection_that_is_gone_is_said_with_where_it_led(
    server: Server, client: Client, name: str
) -> None:
    target = await make_group(client, name)
    await client.close()

    with pytest.raises(ServerUnreachable, match=server.url.removeprefix("nats://")):
        await admin.pause(target)


async def test_an_outcome_is_a_document_with_its_schema(client: Client, name: str) -> None:
    target = await make_group(client, name)

    outcome = await admin.pause(target, dry_run=True)

    assert outcome.as_json() == {
        "schema": "millstream.coordinator.pause/1",
        "group": name,
        "dry_run": True,
        "changes": [{"what": "group", "before": "running", "after": "paused"}],
    }
