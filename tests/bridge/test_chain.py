"""A chain whose frames ask for an answer once in a while only: what that must not cost."""

import asyncio
from collections.abc import Sequence

import pytest

from millstream_bridge import Bridge, Record, RecordError, verify
from millstream_bridge.model import TimestampType
from millstream_bridge.moving.chain import ChainPublisher, _chunks
from millstream_bridge.moving.window import Window
from millstream_bridge.records.frames import Frames
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, offsets, stored_records
from tests.bridge.test_bad_input import make_stream
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 3
RECORDS = 3_000


def fill(kafka: Kafka, topic: str) -> None:
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(
        topic,
        [{"partition": n % PARTITIONS, "key": b"k", "value": b"%d" % n} for n in range(RECORDS)],
    )


def a_record(offset: int, value: bytes) -> Record:
    return Record(0, offset, offset, TimestampType.CREATE, b"k", value)


class Recording(Window):
    """Notes how many records each answer is for, by session."""

    asked: dict[str, list[int]]

    def on_sent(self, records: Sequence[Record], wire_bytes: int, frames: int = 0) -> None:
        super().on_sent(records, wire_bytes, frames)
        self.asked.setdefault(self.session, []).append(len(records))


class Interrupted(ChainPublisher):
    """Puts a stray message into the middle of the first write of a hundred frames."""

    stray = "flights.elsewhere"

    async def send(self, records: Sequence[Record]) -> None:
        was_there = bool(self.stray)
        await super().send(records)
        if was_there and not self.stray:
            await self.drain()

    async def _write(self, window: Window, data: bytes) -> None:
        if self.stray and data.count(b"HPUB ") == 100:
            place = data.find(b"HPUB ", len(data) // 2)
            data = b"%bPUB %b 5\r\nstray\r\n%b" % (data[:place], self.stray.encode(), data[place:])
            self.stray = ""
        await super()._write(window, data)


def test_of_frames_sent_together_the_last_one_asks() -> None:
    mapping = Mapping(a_route("t"))
    records = [a_record(n, b"HPUB a b 1 2\r\n") for n in range(4)]
    guard = Window("s", 0).guard

    data, count, error = Frames(mapping, 1 << 20).chained(records, guard, 0, "_INBOX.a")

    singly = [
        Frames(mapping, 1 << 20).plain(record, guard(n), "_INBOX.a" if n == len(records) else "")
        for n, record in enumerate(records, 1)
    ]
    assert (data, count, error) == (b"".join(singly), 4, None)


def test_before_a_record_that_is_no_message_the_last_frame_asks() -> None:
    frames = Frames(Mapping(a_route("t")), 300)
    records = [a_record(n, b"x" * size) for n, size in enumerate((1, 2, 300, 1))]

    data, count, error = frames.chained(records, Window("s", 0).guard, 0, "_INBOX.a")

    heads = [line.split() for line in data.split(b"\r\n") if line.startswith(b"HPUB ")]
    assert [len(head) for head in heads] == [4, 5]
    assert (heads[1][2], count) == (b"_INBOX.a", 2)
    assert error is not None
    assert error.offset == 2


async def test_a_record_refused_amid_others_is_named_and_all_before_it_are_stored(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic)
    route = a_route(topic)
    await make_stream(nats_server.url, max_msgs=157, discard="new")
    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    with pytest.raises(RecordError, match="the server refuses it: maximum messages") as refused:
        async with asyncio.timeout(30):
            await bridge.run(stop_at_end=True)

    stored = offsets(await stored_records(nats_server.url, route))
    assert sum(map(len, stored.values())) == 157
    assert all(it == [*range(len(it))] for it in stored.values())
    error = refused.value
    assert error.offset == len(stored.get(error.kafka_partition, []))
    assert (bridge.progress.records, bridge.progress.refusals) == (157, 0)  # nobody else wrote


@pytest.mark.parametrize("keeps", [None, 1], ids=["keeps-all", "keeps-newest"])
async def test_what_was_stored_before_a_stray_message_is_counted(
    nats_server: Server, mock: Kafka, topic: str, keeps: int | None
) -> None:
    fill(mock, topic)
    route = a_route(topic, max_msgs_per_subject=keeps)

    report = await move_all(
        mock.bootstrap, nats_server.url, route, stand_back_s=0.05, make_publisher=Interrupted
    )

    assert (report.records, report.refusals, report.sessions) == (RECORDS, 1, 2)
    assert len(report.foreign_seqs) == 1
    assert report.stood_back == 0
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    assert proof.equal
    assert proof.partitions[0].nats.count == (RECORDS // PARTITIONS if keeps is None else 1)


async def test_after_a_refusal_as_many_records_as_were_out_are_answered_one_by_one(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic)
    asked: dict[str, list[int]] = {}
    window_type = type("Noted", (Recording,), {"asked": asked})

    report = await move_all(
        mock.bootstrap,
        nats_server.url,
        a_route(topic),
        stand_back_s=0.05,
        make_publisher=lambda c, m: Interrupted(c, m, window_type=window_type),
    )

    first, second = asked.values()
    stored = report.foreign_seqs[0] - 1
    alone = sum(first) - stored
    assert max(first) == 100
    assert second[:alone] == [1] * alone
    assert max(second[alone:]) == 100


def test_what_one_answer_is_for_is_small_with_its_headers_too() -> None:
    large = a_record(0, b"")._replace(headers=(("h", b"x" * 30_000),))
    small = a_record(1, b"x")

    assert max(len(it) for it in _chunks([large] * 8, 100, 1 << 16)) == 2
    assert [len(it) for it in _chunks([small] * 8, 100, 1 << 16)] == [8]
