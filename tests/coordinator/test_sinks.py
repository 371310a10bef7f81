"""The rule of fenced sinks, the contract on each of ours, and what only the key-value sink has."""

import asyncio
import random
import re
from collections.abc import Callable
from typing import Any

import nats
import nats.errors
import pytest
from hypothesis import example, given, strategies as st
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import PubAck

from millstream_coordinator.sinks.sinks import (
    MARK_HEADER,
    BadMark,
    Entry,
    KvSink,
    Mark,
    MemorySink,
    SinkContended,
    SinkUnavailable,
    StaleEpoch,
    Verdict,
    decode_marks,
    encode_marks,
    entry_key,
    judge,
    key_of_entry,
)
from tests.coordinator.sink_contract import Delivery, Open, SinkContract, appended, content
from tests.helpers.servers import Server

KEYS = st.one_of(st.binary(max_size=12), st.text("=%./_-aB0 ", max_size=6).map(str.encode))


@pytest.mark.parametrize(
    ("epoch", "seq", "verdict"),
    [
        (7, 100, Verdict.REPEAT),
        (7, 99, Verdict.REPEAT),
        (7, 101, Verdict.APPLY),
        (8, 101, Verdict.APPLY),
        (8, 100, Verdict.REPEAT),
        (8, 99, Verdict.REPEAT),
        (6, 101, Verdict.STALE),
        (6, 100, Verdict.STALE),
        (6, 99, Verdict.STALE),
    ],
)
def test_an_effect_is_judged_by_epoch_and_seq(epoch: int, seq: int, verdict: Verdict) -> None:
    assert judge(Mark(7, 100), epoch, seq) is verdict


def test_the_first_effect_of_a_key_is_applied() -> None:
    assert judge(None, 1, 1) is Verdict.APPLY


def without_epoch(mark: Mark | None, epoch: int, seq: int) -> Verdict:
    """What `judge` would be if it forgot epochs."""
    return Verdict.REPEAT if mark is not None and seq <= mark.seq else Verdict.APPLY


def without_seq(mark: Mark | None, epoch: int, seq: int) -> Verdict:
    """What `judge` would be if it forgot sequences."""
    return Verdict.STALE if mark is not None and epoch < mark.epoch else Verdict.APPLY


def wrongs(rule: Callable[[Mark | None, int, int], Verdict], seed: int) -> set[str]:
    """One key under three owners, the earlier ones still at it, in an order drawn from ``seed``.

    Each owner handles the messages in order, from the last one its predecessor is known to have
    finished. What is wrong with the effects in the end, by the three promises.
    """
    chance = random.Random(seed)
    messages = range(1, 13)
    at: dict[int, int] = {1: 0}
    effects: list[tuple[int, int]] = []
    mark: Mark | None = None
    while max(at) < 3 or at[max(at)] < len(messages):
        if chance.random() < 0.1 and max(at) < 3:
            at[max(at) + 1] = chance.randint(0, at[max(at)])
        epoch = chance.choice([it for it in at if at[it] < len(messages)] or [max(at)])
        if at[epoch] == len(messages):
            continue
        seq = messages[at[epoch]]
        at[epoch] += 1
        if rule(mark, epoch, seq) is Verdict.APPLY:
            mark = Mark(epoch, seq)
            effects.append((epoch, seq))
    found = set()
    sequences, epochs = [seq for _, seq in effects], [epoch for epoch, _ in effects]
    if sorted(sequences) != list(messages):
        found.add("not exactly once")
    if sequences != sorted(sequences):
        found.add("out of order")
    if epochs != sorted(epochs):
        found.add("stale")
    return found


def test_one_key_under_several_owners_is_applied_once_in_order_and_never_stale() -> None:
    assert [seed for seed in range(500) if wrongs(judge, seed)] == []


def test_without_the_epoch_stale_effects_come_through() -> None:
    assert set().union(*(wrongs(without_epoch, seed) for seed in range(500))) == {"stale"}


def test_without_the_seq_effects_are_repeated() -> None:
    assert "not exactly once" in set().union(*(wrongs(without_seq, it) for it in range(500)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8))))
def test_marks_never_go_back(deliveries: list[tuple[int, int]]) -> None:
    mark = Mark(0, 0)

    for epoch, seq in deliveries:
        before = mark
        if judge(mark, epoch, seq) is Verdict.APPLY:
            mark = Mark(epoch, seq)
        assert mark.epoch >= before.epoch
        assert mark.seq >= before.seq


@given(st.dictionaries(st.integers(0, 99), st.builds(Mark, st.integers(0), st.integers(1))))
def test_marks_come_back_from_their_header(marks: dict[int, Mark]) -> None:
    assert decode_marks(encode_marks(marks)) == marks


@given(KEYS, KEYS)
@example(b"a=2E", b"a.")
@example(b"=empty", b"")
@example(b"%empty", b"=empty")
def test_keys_have_legal_entries_of_their_own(one: bytes, other: bytes) -> None:
    entries = [entry_key(Delivery(key=key)) for key in (one, other)]

    assert (entries[0] == entries[1]) == (one == other)
    assert all(re.fullmatch(r"[-/_=a-zA-Z0-9]+", entry) for entry in entries)
    assert [key_of_entry(entry) for entry in entries] == [one, other]


def test_a_keyless_messages_entry_is_no_keys() -> None:
    entry = entry_key(Delivery(key=None, partition=3, seq=17))

    assert entry == "=none.3.17"
    assert key_of_entry(entry) is None


class TestMemorySink(SinkContract):
    """The contract on the sink of tests and simulations."""

    @pytest.fixture
    def opened(self) -> Open:
        sink = MemorySink()

        async def again() -> MemorySink:
            other = MemorySink()
            other.entries = sink.entries
            return other

        return again


class TestKvSink(SinkContract):
    """The contract on a key-value bucket."""

    @pytest.fixture
    def opened(self, client: Client, name: str) -> Open:
        return lambda: KvSink.open(client, name)


class TestForgetfulKvSink(SinkContract):
    """The contract once more, with nothing remembered between effects."""

    @pytest.fixture
    def opened(self, client: Client, name: str) -> Open:
        return lambda: KvSink.open(client, name, remembered_max=0)


async def test_the_value_is_plain_to_any_key_value_client(client: Client, name: str) -> None:
    sink = await KvSink.open(client, name)
    await sink.apply(Delivery(key=b"N1.a", seq=4), lambda _: b"plain")

    bucket = await client.jetstream().key_value(name)

    assert (await bucket.get("N1=2Ea")).value == b"plain"
    assert await bucket.keys() == ["N1=2Ea"]


async def test_a_long_key_can_be_read_back_from_its_entry(client: Client, name: str) -> None:
    key = b"tenant/7 " + b"k" * 300
    sink = await KvSink.open(client, name)
    await sink.apply(Delivery(key=key), lambda _: b"x")

    (entry,) = await (await client.jetstream().key_value(name)).keys()
    stored = await client.jetstream().get_msg(f"KV_{name}", subject=f"$KV.{name}.{entry}")

    assert entry.startswith("tenant/7=20kkk")
    assert key_of_entry(entry, stored.headers) == key


async def test_a_value_somebody_else_put_is_taken_as_unmarked(client: Client, name: str) -> None:
    sink = await KvSink.open(client, name)
    bucket = await client.jetstream().key_value(name)
    await bucket.put("N14228", b'["before"]')

    await sink.apply(Delivery(seq=1), appended("1"))

    assert await content(sink) == ["before", "1"]


async def test_a_write_between_reading_and_writing_makes_it_read_again(
    client: Client, name: str
) -> None:
    sink, rival = await KvSink.open(client, name), await KvSink.open(client, name)
    await sink.apply(Delivery(seq=1), appended("1"))
    await rival.apply(Delivery(seq=2, epoch=2), appended("2 by the new owner"))

    with pytest.raises(StaleEpoch):
        await sink.apply(Delivery(seq=2, epoch=1), appended("2 by the old owner"))

    assert await content(sink) == ["1", "2 by the new owner"]


async def test_many_tasks_lose_no_effect(client: Client, name: str) -> None:
    sinks = [await KvSink.open(client, name, attempts_max=100) for _ in range(3)]

    async with asyncio.TaskGroup() as tasks:
        for number, sink in enumerate(sinks):
            for partition in range(5):
                delivery = Delivery(partition=10 * number + partition)
                tasks.create_task(sink.apply(delivery, appended(f"{number}.{partition}")))

    expected = [f"{number}.{partition}" for number in range(3) for partition in range(5)]
    assert sorted(await content(sinks[0])) == expected


class Meddled(KvSink):
    """A sink whose entry somebody changes each time after it was read."""

    async def load(self, where: str) -> Entry:
        entry = await super().load(where)
        await self._jetstream.publish(f"$KV.{self.bucket}.{where}", b'["meddled"]')
        return entry


async def test_an_entry_that_never_stands_still_is_given_up(client: Client, name: str) -> None:
    sink = await Meddled.open(client, name, attempts_max=3)

    with pytest.raises(SinkContended, match="changed 3 times"):
        await sink.apply(Delivery(), appended("1"))

    assert await content(sink) == ["meddled"]


class Deaf(JetStreamContext):
    """A client that stops hearing confirmations once ``is_deaf`` is set; its writes arrive."""

    is_deaf = False

    async def publish(self, *args: Any, **options: Any) -> PubAck:
        ack = await super().publish(*args, **options)
        if self.is_deaf:
            raise nats.errors.TimeoutError
        return ack


async def test_an_effect_whose_confirmation_was_lost_is_found_and_counted_once(
    client: Client, name: str
) -> None:
    await KvSink.open(client, name)
    jetstream = Deaf(client)
    sink = KvSink(jetstream, name)
    jetstream.is_deaf = True
    with pytest.raises(SinkUnavailable):
        await sink.apply(Delivery(seq=1), appended("1"))
    jetstream.is_deaf = False

    verdicts = [await sink.apply(Delivery(seq=1), appended("again")) for _ in range(2)]

    assert verdicts == [Verdict.APPLY, Verdict.REPEAT]
    assert await content(sink) == ["1"]
    assert (sink.counters.attempts, sink.counters.applied) == (3, 1)


async def test_a_mark_that_cannot_be_read_stops_the_sink(client: Client, name: str) -> None:
    sink = await KvSink.open(client, name)
    await client.jetstream().publish(
        f"$KV.{name}.N14228", b"x", headers={MARK_HEADER: "not a mark"}
    )

    with pytest.raises(BadMark, match="not a mark"):
        await sink.apply(Delivery(), appended("1"))


async def test_a_bucket_that_is_gone_is_unavailable_and_loses_nothing(
    client: Client, name: str
) -> None:
    sink = await KvSink.open(client, name)
    await client.jetstream().delete_key_value(name)

    with pytest.raises(SinkUnavailable, match=name):
        await sink.apply(Delivery(), appended("1"))

    assert (sink.counters.attempts, sink.counters.applied) == (1, 0)


async def test_a_server_without_jetstream_is_unavailable(
    tmp_path_factory: pytest.TempPathFactory, server: Server
) -> None:
    with Server(server.kind, tmp_path_factory.mktemp("plain"), jetstream=False) as plain:
        connection = await nats.connect(plain.url)
        with pytest.raises(SinkUnavailable):
            await KvSink.open(connection, "bucket")
        await connection.close()
