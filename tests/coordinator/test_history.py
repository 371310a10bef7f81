"""What happened in a group: the leader's ring, then the members' own voices."""

import asyncio
from dataclasses import fields
from typing import Any, get_args

import pytest
from nats.aio.client import Client

from millstream_coordinator import naming
from millstream_coordinator.errors import GroupMissing
from millstream_coordinator.events import (
    GroupEvent,
    Joined,
    KeyReplayed,
    LeaderChanged,
    MessageRetried,
    PartitionAssigned,
    PartitionMoved,
    Paused,
    RecordTooNew,
    encode_events,
    event_name,
    event_object,
)
from millstream_coordinator.operation.history import describe, follow, read_history
from millstream_coordinator.operation.target import Target
from tests.coordinator.made_group import make_group


def joined(group: str, member: str, number: int | None) -> dict[str, Any]:
    return event_object(
        Joined(member=member), group=group, member="boss", at_ns=10**18, number=number
    )


async def kept(client: Client, name: str, entry: int, *numbers: int) -> None:
    """An entry of the ring with events of these numbers."""
    bucket = await client.jetstream().key_value(naming.bucket(name))
    events = [joined(name, f"m{it}", it) for it in numbers]
    await bucket.put(naming.event_key(entry), encode_events(events))


async def test_history_is_told_in_the_order_of_its_numbers(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await kept(client, name, 0, 257, 258)
    await kept(client, name, 1, 3)
    await kept(client, name, 10, 12, 13)

    events = await read_history(target)

    assert [it["number"] for it in events] == [3, 12, 13, 257, 258]
    assert events[0]["member"] == "m3"


async def test_an_entry_that_cannot_be_read_is_left_out(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await kept(client, name, 0, 1)
    bucket = await client.jetstream().key_value(naming.bucket(name))
    await bucket.put(naming.event_key(1), b"?")

    assert [it["number"] for it in await read_history(target)] == [1]


async def test_history_of_a_group_that_is_not_there_is_missing(client: Client, name: str) -> None:
    with pytest.raises(GroupMissing):
        await read_history(Target(client, name))


async def test_what_is_told_live_follows_the_history_and_comes_once(
    client: Client, name: str
) -> None:
    target = await make_group(client, name)
    await kept(client, name, 0, 1, 2)
    seen: list[tuple[int | None, str]] = []

    async with asyncio.timeout(60):
        async for event in follow(target):
            seen.append((event["number"], event["member"]))
            if len(seen) == 2:
                for live in (
                    joined(name, "m2", 2),
                    joined(name, "own", None),
                    joined(name, "m3", 3),
                ):
                    await client.publish(naming.event(name, "boss"), encode_events(live))
            if len(seen) == 4:
                break

    assert seen == [(1, "m1"), (2, "m2"), (None, "own"), (3, "m3")]


async def test_history_can_be_left_out(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await kept(client, name, 0, 1)

    async def first() -> dict[str, Any]:
        async for event in follow(target, with_history=False):
            return event
        raise AssertionError("ended")

    waiting = asyncio.create_task(first())
    async with asyncio.timeout(60):
        while not waiting.done():
            live = encode_events(joined(name, "m9", 9))
            await client.publish(naming.event(name, "boss"), live)
            await asyncio.sleep(0.01)

    assert waiting.result()["number"] == 9


def told(event: GroupEvent) -> str:
    """The line without its time."""
    line = describe(event_object(event, group="g", member="boss", at_ns=10**18))
    return line.split(maxsplit=2)[2]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            PartitionMoved(partition=3, epoch=8, owner="w2", previous=None, cause="left"),
            "boss: partition 3 from nobody to w2, epoch 8: left",
        ),
        (
            PartitionMoved(partition=3, epoch=8, owner="w2", previous="w2", cause="reset"),
            "boss: partition 3 anew for w2, epoch 8: reset",
        ),
        (
            PartitionMoved(partition=3, epoch=8, owner=None, previous=None, cause="joined"),
            "boss: partition 3 from nobody to nobody, epoch 8: joined",
        ),
        (Joined(member="w1"), "boss: w1 joined"),
        (
            KeyReplayed(partition=1, key="k", count=3, is_parked=False),
            "boss: partition 1 key k: 3 letters handled again",
        ),
        (
            KeyReplayed(partition=1, key="k", count=3, is_parked=True),
            "boss: partition 1 key k failed again, and stays parked",
        ),
        (
            RecordTooNew(key="part.2", record_version=2),
            "boss: part.2 is of version 2, too new for this member: let be",
        ),
        (LeaderChanged(leader=None), "boss: nobody leads"),
        (Paused(partitions=None), "boss: paused: all partitions"),
        (Paused(partitions=(3, 5)), "boss: paused: partition 3, 5"),
        (
            PartitionAssigned(partition=3, epoch=8, cause="left", stopped_s=0.2119),
            "boss: partition 3 served, epoch 8: left, still for 0.212 s",
        ),
        (
            MessageRetried(partition=0, seq=4, attempt=2, delay_s=0.5, error="E:\n odd"),
            "boss: partition 0 message 4 again in 0.500 s: E: odd",
        ),
    ],
)
def test_an_event_is_told_in_one_line(event: GroupEvent, line: str) -> None:
    assert told(event) == line


def test_an_event_nobody_knows_yet_is_told_by_its_fields() -> None:
    line = describe({"event": "moon_rose", "teller": "w", "at_ns": 0, "phase": "full"})

    assert line.endswith(" w: moon rose: phase=full")


@pytest.mark.parametrize("kind", get_args(GroupEvent), ids=event_name)
def test_every_event_has_words_and_the_words_use_its_fields(kind: type[GroupEvent]) -> None:
    facts = dict.fromkeys((it.name for it in fields(kind)), "x")
    line = describe({"event": event_name(kind), "teller": "w", "at_ns": 0, **facts})

    assert not any(f"{name}=" in line for name in facts)
    assert "x" in line.partition(" w: ")[2] or not facts
