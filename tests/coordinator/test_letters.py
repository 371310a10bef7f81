"""Letters on both servers: stored once, fenced, read in order, deleted."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from nats.aio.client import Client

from millstream_coordinator import naming
from millstream_coordinator.jetstream.api import Api
from millstream_coordinator.jetstream.letters import Letters, keep_headers, original_headers
from millstream_coordinator.jetstream.streams import Streams
from millstream_coordinator.model import (
    ConfigRecord,
    FailurePolicy,
    LetterReason,
    MemberSettings,
    Message,
)
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.ports import (
    DeleteLetter,
    Done,
    Letters as LettersRead,
    ReadLetters,
    Stale,
    StoreLetter,
)


@pytest.fixture
async def letters(client: Client, name: str) -> Letters:
    api = Api(client, 2.0)
    rule = KeyRule.parse(f"{name}.*.{{key}}")
    config = ConfigRecord(
        partitions=4, stream=name.upper(), filter=None, on_failure=FailurePolicy.PARK
    )
    settings = MemberSettings(group=name, member="m", instance="i", config=config)
    return Letters(api, settings, rule, Streams(api, settings, rule))


def letter(
    name: str, seq: int, epoch: int = 1, headers: Mapping[str, str] | None = None
) -> StoreLetter:
    message = Message(
        subject=f"{name}.2.k",
        data=b"body %d" % seq,
        headers=headers or {},
        key=b"k",
        partition=2,
        seq=seq,
        epoch=epoch,
        timestamp_ns=1700,
    )
    return StoreLetter(
        id=7,
        message=message,
        token="k",
        reason=LetterReason.PARK,
        error="ValueError: no",
        attempts=5,
        stored_ns=1800,
    )


async def read(letters: Letters, epoch: int = 1, max_count: int = 10) -> LettersRead:
    command = ReadLetters(id=8, partition=2, token="k", epoch=epoch, max_count=max_count)
    answer = await letters.read(command)
    assert isinstance(answer, LettersRead)
    return answer


async def test_a_letter_comes_back_as_the_message_it_was(letters: Letters, name: str) -> None:
    await letters.prepare()

    await letters.store(letter(name, 5, headers={"Color": "red", "Nats-Msg-Id": "x"}))

    message = (await read(letters, epoch=3)).letters[0].message
    assert (message.subject, message.data, message.key) == (f"{name}.2.k", b"body 5", b"k")
    assert message.headers == {"Color": "red", "Nats-Msg-Id": "x"}
    assert (message.seq, message.epoch, message.partition, message.mark) == (5, 3, 2, 2)
    assert (message.timestamp_ns, message.num_delivered, message.reply) == (1700, 1, "")


async def test_a_letter_says_why_when_and_how_often(
    client: Client, letters: Letters, name: str
) -> None:
    await letters.store(letter(name, 5))

    stored = await client.jetstream().get_last_msg(
        naming.dead_letter_stream(name), naming.dead_letter(name, 2, "k")
    )
    assert stored.headers == {
        "Millstream-Subject": f"{name}.2.k",
        "Millstream-Seq": "5",
        "Millstream-Epoch": "1",
        "Millstream-Error": "ValueError: no",
        "Millstream-Attempts": "5",
        "Millstream-Reason": "park",
        "Millstream-Time": "1800",
        "Millstream-Stored": "1700",
        "Nats-Expected-Last-Subject-Sequence": "0",
    }


async def test_the_same_letter_is_stored_once(letters: Letters, name: str) -> None:
    first = await letters.store(letter(name, 5))
    again = await letters.store(letter(name, 5, epoch=2))

    assert first == again == Done(id=7)
    assert len((await read(letters)).letters) == 1


async def test_letters_of_a_key_are_read_in_order_and_some_at_a_time(
    letters: Letters, name: str
) -> None:
    for seq in (5, 6, 9):
        await letters.store(letter(name, seq))

    some = await read(letters, max_count=2)
    assert [one.message.seq for one in some.letters] == [5, 6]
    await letters.delete(DeleteLetter(id=9, letter_seq=some.letters[0].letter_seq))
    assert [one.message.seq for one in (await read(letters)).letters] == [6, 9]


async def test_a_resize_leaves_letters_where_they_are(letters: Letters, name: str) -> None:
    await letters.store(letter(name, 5))

    finer = ReadLetters(id=8, partition=6, token="k", epoch=9, max_count=1)
    answer = await letters.read(finer)

    assert isinstance(answer, LettersRead)
    message = answer.letters[0].message
    assert (message.partition, message.mark, message.seq) == (6, 2, 5)


async def test_a_stale_owner_stores_no_letter(letters: Letters, name: str) -> None:
    await letters.store(letter(name, 5, epoch=4))

    answer = await letters.store(letter(name, 6, epoch=3))

    assert answer == Stale(id=7, seen_epoch=4)
    assert [one.message.seq for one in (await read(letters)).letters] == [5]


async def test_a_letter_deleted_twice_is_deleted(letters: Letters, name: str) -> None:
    await letters.store(letter(name, 5))
    seq = (await read(letters)).letters[0].letter_seq

    for _ in range(2):
        assert await letters.delete(DeleteLetter(id=9, letter_seq=seq)) == Done(id=9)

    assert not (await read(letters)).letters


async def test_without_any_letter_there_is_nothing_to_read_or_delete(letters: Letters) -> None:
    assert not (await read(letters)).letters
    assert await letters.delete(DeleteLetter(id=9, letter_seq=1)) == Done(id=9)


async def test_a_letter_says_its_partition_at_the_finest_level(client: Client, name: str) -> None:
    rule = KeyRule.parse(f"{name}.{{partition}}.{{partition:8}}.{{key}}")
    api = Api(client, 2.0)
    config = ConfigRecord(partitions=4, stream=name.upper(), filter=None)
    settings = MemberSettings(group=name, member="m", instance="i", config=config)
    letters = Letters(api, settings, rule, Streams(api, settings, rule))
    command = letter(name, 5)
    message = replace(command.message, subject=f"{name}.2.6.k")

    await letters.store(replace(command, message=message))

    assert (await read(letters)).letters[0].message.finest == 6


def test_headers_that_mean_something_to_the_server_are_kept_under_other_names() -> None:
    headers = {"Nats-TTL": "1s", "Color": "red", "Millstream-Seq": "3"}

    kept = keep_headers(headers)

    assert kept == {
        "Millstream-Header-Nats-TTL": "1s",
        "Color": "red",
        "Millstream-Header-Millstream-Seq": "3",
    }
    assert original_headers({**kept, "Millstream-Seq": "9", "Nats-Msg-Id": "m"}) == headers
    assert original_headers(keep_headers(kept)) == kept
