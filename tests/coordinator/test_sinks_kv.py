"""The key-value sink: the contract on both servers, and what only it has."""

import asyncio
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from millstream_coordinator.jetstream.api import Api, RequestFailed, Stored
from millstream_coordinator.ports import Failure
from millstream_coordinator.sinks.contract import (
    BadMark,
    SinkContended,
    SinkUnavailable,
    StaleEpoch,
    ValueSink,
)
from millstream_coordinator.sinks.kv import KvSink
from millstream_coordinator.sinks.mark import MARK_HEADER, Verdict, key_of_entry
from millstream_coordinator.sinks.testing import (
    Delivery,
    ValueSinkContract,
    ValueTrial,
    appended,
)
from tests.helpers.servers import Server


async def content(sink: ValueSink) -> list[str]:
    """What `appended` left."""
    return await ValueTrial(sink).texts(b"N14228")


class TestKvSink(ValueSinkContract):
    """The contract on a key-value bucket."""

    remembered_max = 1024

    @pytest.fixture(autouse=True)
    def _bucket(self, client: Client, name: str) -> None:
        self.client, self.name = client, name

    async def open_sink(self) -> KvSink:
        return await KvSink.open(self.client, self.name, remembered_max=self.remembered_max)


class TestForgetfulKvSink(TestKvSink):
    """The contract once more, with nothing remembered between effects."""

    remembered_max = 0


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


class Meddling(Api):
    """A server on which somebody changes each entry after it was read."""

    async def last(self, stream: str, subject: str) -> Stored | None:
        try:
            return await super().last(stream, subject)
        finally:
            await self.publish(subject, b'["meddled"]', {})


async def test_an_entry_that_never_stands_still_is_given_up(client: Client, name: str) -> None:
    await KvSink.open(client, name)
    sink = KvSink(Meddling(client, 5.0), name, attempts_max=3)

    with pytest.raises(SinkContended, match="changed 3 times"):
        await sink.apply(Delivery(), appended("1"))

    assert await content(sink) == ["meddled"]


class Deaf(Api):
    """A server whose confirmations are not heard once ``is_deaf`` is set; what is sent arrives."""

    is_deaf = False

    async def publish(self, subject: str, *args: Any, **options: Any) -> int:
        seq = await super().publish(subject, *args, **options)
        if self.is_deaf:
            raise RequestFailed(Failure.TIMEOUT, subject)
        return seq


async def test_an_effect_whose_confirmation_was_lost_is_found_and_counted_once(
    client: Client, name: str
) -> None:
    await KvSink.open(client, name)
    api = Deaf(client, 5.0)
    sink = KvSink(api, name)
    api.is_deaf = True
    with pytest.raises(SinkUnavailable):
        await sink.apply(Delivery(seq=1), appended("1"))
    api.is_deaf = False

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
