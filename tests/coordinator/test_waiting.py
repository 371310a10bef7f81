"""When an operator's wish has come about, what is said while it has not, and when it never will."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import nats
import pytest
from nats.aio.client import Client

from millstream_coordinator import naming
from millstream_coordinator.errors import GroupMissing, NotPossible
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    LeaderRecord,
    MemberRecord,
    PartitionRecord,
    PartitionState,
)
from millstream_coordinator.operation import admin
from millstream_coordinator.operation.target import Target
from millstream_coordinator.operation.view import GroupView
from millstream_coordinator.operation.waiting import Pending, drained, moved, resized, wait
from tests.coordinator.made_group import make_group, served
from tests.helpers.servers import Server

NOTHING_SAID = ControlRecord()
CONFIG = ConfigRecord(partitions=2, stream="s", filter="s.{partition}.*", levels=(2, 4))
MEMBERS = {name: MemberRecord(instance=name) for name in "ab"}


def view(
    owners: Mapping[int, str | None],
    *,
    config: ConfigRecord = CONFIG,
    control: ControlRecord = NOTHING_SAID,
    state: PartitionState = PartitionState.OWNED,
    members: Mapping[str, MemberRecord] = MEMBERS,
) -> GroupView:
    partitions = {
        number: PartitionRecord(epoch=1, owner=owner, state=state)
        for number, owner in owners.items()
    }
    return GroupView(config=config, control=control, partitions=partitions, members=members)


DRAINING = ControlRecord(draining=("a",))
PINNED = ControlRecord(pins={0: "a", 1: "a"})
RESIZING = replace(CONFIG, resize_to=4)
RESIZED = replace(CONFIG, level=4)


@pytest.mark.parametrize(
    ("pending", "seen", "text"),
    [
        (drained("a"), view({0: "a", 1: "a"}, control=DRAINING), "'a' still owns partitions 0, 1"),
        (drained("a"), view({0: "b", 1: "a"}, control=DRAINING), "'a' still owns partition 1"),
        (drained("a"), view({0: "b", 1: "b"}, control=DRAINING), None),
        (drained("a"), view({0: "a"}, members={}), "'a' still owns partition 0"),
        (drained("a"), view({0: None}, members={}), None),
        (moved([0, 1], "a"), view({0: "a", 1: "b"}, control=PINNED), "not own partition 1 yet"),
        (moved([0, 1], "a"), view({0: "a"}, control=PINNED), "not own partition 1 yet"),
        (
            moved([0], "a"),
            view({0: "a"}, control=PINNED, state=PartitionState.MOVING),
            "not own partition 0 yet",
        ),
        (moved([0, 1], "a"), view({0: "a", 1: "a"}, control=PINNED), None),
        (resized(4), view({}, config=RESIZING), "2 partitions, resizing to 4"),
        (resized(4), view({}, config=RESIZED), None),
        (resized(2), view({}, config=RESIZING), "2 partitions, resizing to 2"),
    ],
)
def test_what_is_still_to_come_is_said(pending: Pending, seen: GroupView, text: str | None) -> None:
    said = pending("g", seen)

    assert said is None if text is None else said is not None and text in said


@pytest.mark.parametrize(
    ("pending", "seen", "text"),
    [
        (drained("a"), view({0: "a"}), "drain of member 'a' was taken back"),
        (moved([0], "a"), view({0: "b"}), "move of partition 0 was taken back"),
        (moved([0], "a"), view({0: "b"}, control=PINNED, members={}), "member 'a' is gone"),
        (resized(4), view({}), "resize to 4 partitions was called off"),
    ],
)
def test_what_will_not_come_about_is_said(pending: Pending, seen: GroupView, text: str) -> None:
    with pytest.raises(NotPossible, match=text):
        pending("g", seen)


def test_of_many_partitions_a_few_are_named() -> None:
    seen = view(dict.fromkeys(range(12), "a"), control=DRAINING)

    assert drained("a")("g", seen) == (
        "member 'a' still owns partitions 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    )


async def test_it_ends_as_soon_as_it_is_so(client: Client, name: str) -> None:
    target = await make_group(client, name, served("a"))
    await admin.drain(target, "a")
    waiting = asyncio.create_task(wait(target, drained("a"), timeout_s=60))

    def give(record: PartitionRecord) -> PartitionRecord:
        return replace(record, owner=None, state=PartitionState.FREE)

    await target.update(naming.partition_key(0), None, give, kind=PartitionRecord, dry_run=False)

    assert await waiting is None


async def test_when_time_is_up_it_says_what_is_missing_and_that_nobody_leads(
    client: Client, name: str
) -> None:
    target = await make_group(client, name, served("a"))
    await admin.drain(target, "a")

    late = await wait(target, drained("a"), timeout_s=0)

    words = "member 'a' still owns partition 0, and nobody leads the group"
    assert late == f"not done after 0 s: {words}"


async def test_who_leads_is_no_reason(client: Client, name: str) -> None:
    leads = {naming.LEADER_KEY: LeaderRecord(member="a", instance="1")}
    target = await make_group(client, name, {**served("a"), **leads})
    await admin.drain(target, "a")

    late = await wait(target, drained("a"), timeout_s=0)

    assert late is not None
    assert late.endswith("partition 0")


async def test_what_is_taken_back_ends_it_at_once(client: Client, name: str) -> None:
    target = await make_group(client, name, served("a"))

    late = await wait(target, moved([0], "b"), timeout_s=60)

    assert late == f"group {name!r}: the move of partition 0 was taken back"


async def test_a_group_that_is_deleted_meanwhile_is_an_error(client: Client, name: str) -> None:
    with pytest.raises(GroupMissing):
        await wait(Target(client, name), drained("a"), timeout_s=60)


async def test_a_server_that_is_away_is_waited_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:

    with Server("embedded", tmp_path_factory.mktemp("away")) as server:
        client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
        target = await make_group(client, "g", {})
        server.kill()
        waiting = asyncio.create_task(wait(target, drained("a"), timeout_s=60))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await server.restart()

        assert await waiting is None
        await client.close()
