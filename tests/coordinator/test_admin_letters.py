"""Dead letters and parked keys in an operator's hands."""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

import pytest
from nats.aio.client import Client

from millstream_coordinator import naming
from millstream_coordinator.errors import LetterMissing, NotPossible
from millstream_coordinator.model import LetterReason, ParkedRecord, Record, decode
from millstream_coordinator.operation.admin import Outcome
from millstream_coordinator.operation.letters import (
    ALL,
    Choice,
    drop,
    list_letters,
    read_letter,
    replay,
)
from millstream_coordinator.operation.target import Target
from tests.coordinator.made_group import make_group, make_letters, make_stream


class Work(Protocol):
    """Replay or drop."""

    def __call__(
        self, target: Target, choice: Choice, *, dry_run: bool = False
    ) -> Awaitable[Outcome]: ...


async def seqs(target: Target, choice: Choice = ALL) -> list[int]:
    return [it.seq for it in (await list_letters(target, choice)).letters]


async def parked(target: Target) -> ParkedRecord:
    entry = await target.api.read(target.bucket, naming.parked_key(0))
    assert entry.value is not None
    return decode(ParkedRecord, entry.value)


def with_parked(*keys: str) -> dict[str, Record]:
    return {naming.parked_key(0): ParkedRecord(keys=dict.fromkeys(keys, 11))}


# ---- looking


async def test_a_letter_says_what_it_was_and_why(client: Client, name: str) -> None:
    target = await make_group(client, name, with_parked("b"))
    await make_letters(client, name, "a", "b")

    (first, second) = (await list_letters(target)).letters

    assert (first.seq, first.partition, first.key, first.reason) == (1, 0, "a", "dead-letter")
    assert (first.error, first.attempts, first.message_seq) == ("ValueError: odd", 5, 11)
    assert (first.subject, first.epoch) == (f"{name}.0.a", 3)
    assert (first.given_up_ns, first.stored_ns) == (2000, 1000)
    assert (first.headers, first.data) == ({"Colour": "red", "Nats-Msg-Id": "m11"}, b"body 11")
    assert (first.is_parked, second.is_parked) == (False, True)


async def test_a_group_that_never_gave_up_a_message_has_no_letters(
    client: Client, name: str
) -> None:
    target = await make_group(client, name)

    listing = await list_letters(target)

    assert listing.as_json() == {
        "schema": "millstream.coordinator.dlq.ls/1",
        "group": name,
        "has_more": False,
        "letters": [],
        "parked": {},
    }


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (ALL, [1, 2, 3, 4]),
        (Choice(partition=0), [1, 2, 3, 4]),
        (Choice(partition=1), []),
        (Choice(key="a"), [1, 3]),
        (Choice(key="a b"), [4]),
        (Choice(key="a%20b"), [4]),
        (Choice(seqs=(2, 3)), [2, 3]),
        (Choice(seqs=(2, 3), key="a"), [3]),
    ],
)
async def test_letters_are_chosen_by_number_partition_and_key(
    client: Client, name: str, choice: Choice, wanted: list[int]
) -> None:
    target = await make_group(client, name, partitions=2)
    await make_letters(client, name, "a", "b", "a", "a%20b")

    assert await seqs(target, choice) == wanted


async def test_a_listing_says_that_there_are_more(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await make_letters(client, name, "a", "b", "c")

    some, all_ = [await list_letters(target, limit=it) for it in (2, 3)]

    assert ([it.seq for it in some.letters], some.has_more) == ([1, 2], True)
    assert ([it.seq for it in all_.letters], all_.has_more) == ([1, 2, 3], False)


async def test_what_a_letter_once_asked_of_its_stream_is_not_asked_again(
    client: Client, name: str
) -> None:
    await make_stream(client, name, ["0.z"])
    target = await make_group(client, name)
    await make_letters(client, name, "a", own={"Nats-Expected-Last-Sequence": "7"})

    await replay(target, Choice(seqs=(1,)))

    assert (await client.jetstream().get_msg(name, seq=2)).subject == f"{name}.0.a"


async def test_a_letter_is_shown_with_its_body(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await make_letters(client, name, "a")

    shown = (await read_letter(target, 1)).as_json(with_body=True)

    assert (shown["text"], shown["size_bytes"]) == ("body 11", 7)
    assert shown["headers"] == {"Colour": "red", "Nats-Msg-Id": "m11"}


async def test_a_letter_that_is_not_there_is_missing(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await make_letters(client, name, "a")

    for work in (read_letter(target, 2), replay(target, Choice(seqs=(1, 2)))):
        with pytest.raises(LetterMissing, match="no dead letter 2"):
            await work
    assert await seqs(target) == [1]


# ---- replay


async def test_a_replayed_letter_is_at_the_end_of_its_stream_for_this_group_alone(
    client: Client, name: str
) -> None:
    await make_stream(client, name, ["0.z"])
    target = await make_group(client, name)
    await make_letters(client, name, "a", "b")

    outcome = await replay(target, Choice(key="a"))

    message = await client.jetstream().get_msg(name, seq=2)
    assert (message.subject, message.data) == (f"{name}.0.a", b"body 11")
    assert message.headers == {
        "Colour": "red",
        "Millstream-Replay": name,
        "Nats-Msg-Id": f"millstream-replay-{name}-1",
        "Nats-Expected-Stream": name,
    }
    assert await seqs(target) == [2]
    assert [str(it) for it in outcome.changes] == [
        "letter 1 (key a, message 11): dead-letter -> published again"
    ]


async def test_letters_of_a_key_are_replayed_in_their_order(client: Client, name: str) -> None:
    await make_stream(client, name)
    target = await make_group(client, name)
    await make_letters(client, name, "a", "b", "a", "a")

    await replay(target, ALL)

    stored = [await client.jetstream().get_msg(name, seq=it) for it in range(1, 5)]
    assert [it.data for it in stored if it.subject == f"{name}.0.a"] == [
        b"body 11",
        b"body 13",
        b"body 14",
    ]


async def test_a_letter_replayed_by_two_operators_at_once_is_handled_once(
    client: Client, name: str
) -> None:
    await make_stream(client, name)
    target = await make_group(client, name)
    await make_letters(client, name, "a")

    await asyncio.gather(*(replay(target, ALL) for _ in range(2)))

    assert (await client.jetstream().stream_info(name)).state.messages == 1
    assert await seqs(target) == []


async def test_a_letter_its_stream_does_not_take_stays(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await make_letters(client, name, "a", subject=f"{name}.nowhere.0.a")

    with pytest.raises(NotPossible, match="no stream takes"):
        await replay(target, ALL)

    assert await seqs(target) == [1]


async def test_a_letter_is_not_put_into_another_stream(client: Client, name: str) -> None:
    await make_stream(client, f"{name}-other")
    target = await make_group(client, name)
    await make_letters(client, name, "a", subject=f"{name}-other.0.a")

    with pytest.raises(NotPossible, match="letter 1 is not taken back"):
        await replay(target, ALL)

    assert await seqs(target) == [1]


async def test_a_parked_key_is_replayed_by_the_owner_of_its_partition(
    client: Client, name: str
) -> None:
    target = await make_group(client, name, with_parked("a", "b", "c"))
    await make_letters(client, name, "a", "a", "b", reason=LetterReason.PARK)

    outcome = await replay(target, Choice(key="a"))

    assert (await parked(target)).replay == ("a",)
    assert await seqs(target) == [1, 2, 3]
    assert [str(it) for it in outcome.changes] == ["key a of partition 0: parked -> replayed"]


async def test_single_letters_of_a_parked_key_are_not_replayed(client: Client, name: str) -> None:
    target = await make_group(client, name, with_parked("a"))
    await make_letters(client, name, "a", reason=LetterReason.PARK)

    with pytest.raises(NotPossible, match="replay the key"):
        await replay(target, Choice(seqs=(1,)))


# ---- drop


async def test_a_dropped_letter_is_gone(client: Client, name: str) -> None:
    target = await make_group(client, name)
    await make_letters(client, name, "a", "b")

    outcome = await drop(target, Choice(seqs=(1,)))

    assert await seqs(target) == [2]
    assert len(outcome.changes) == 1


async def test_a_parked_key_that_is_dropped_goes_on(client: Client, name: str) -> None:
    target = await make_group(client, name, with_parked("a", "b"))
    await make_letters(client, name, "a", "b", "a", reason=LetterReason.PARK)

    await drop(target, Choice(key="a"))

    assert await seqs(target) == [2]
    assert (await parked(target)).replay == ("a",)


async def test_one_dropped_letter_of_a_parked_key_leaves_the_others_parked(
    client: Client, name: str
) -> None:
    target = await make_group(client, name, with_parked("a"))
    await make_letters(client, name, "a", "a", reason=LetterReason.PARK)

    await drop(target, Choice(seqs=(1,)))

    assert await seqs(target) == [2]
    assert (await parked(target)).replay == ()


@pytest.mark.parametrize("work", [replay, drop])
async def test_a_dry_run_of_replay_and_drop_changes_nothing(
    client: Client, name: str, work: Work
) -> None:
    await make_stream(client, name)
    target = await make_group(client, name, with_parked("b"))
    await make_letters(client, name, "a", "b")

    outcome = await work(target, ALL, dry_run=True)

    assert outcome.is_dry_run
    assert len(outcome.changes) >= 2
    assert await seqs(target) == [1, 2]
    assert (await parked(target)).replay == ()
    assert (await client.jetstream().stream_info(name)).state.messages == 0
