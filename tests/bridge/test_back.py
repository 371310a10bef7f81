"""The way back: what producers wrote straight to NATS reaches Kafka, once, marked, in order."""

import asyncio
from collections.abc import Mapping
from typing import Any

import nats
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from millstream_bridge import ConfigurationError, Route
from millstream_bridge.back import runner
from millstream_bridge.back.progress import BackReport
from millstream_bridge.back.runner import BackBridge, CannotReturn, way_back_name
from millstream_bridge.back.tail import Tail
from millstream_bridge.jetstream import consumer
from millstream_bridge.jetstream.reader import first_from
from millstream_bridge.kafka.sink import Fenced
from millstream_bridge.model import Record
from millstream_bridge.records.origin import returned
from millstream_coordinator import Publisher
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.topics import all_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 3


def shared_route(topic: str, **changes: object) -> Route:
    return a_route(topic, shared=True, **changes)


async def back(kafka: Kafka, server: Server, route: Route, **options: object) -> BackReport:
    """One run of the way back, to the stream's end."""
    bridge = BackBridge(kafka=kafka.bootstrap, nats=server.url, route=route, **options)  # type: ignore[arg-type]
    return await bridge.run(stop_at_end=True)


async def publish(
    server: Server,
    numbers: range,
    partitions: int = PARTITIONS,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Native messages: key ``N<n mod 5>``, payload ``native <n>``, header ``n``, in this order."""
    client = await nats.connect(server.url)
    try:
        subject = "flights.{partition}.{key}"
        async with Publisher(client, subject, partitions=partitions) as publisher:
            for n in numbers:
                await publisher.send(
                    b"N%d" % (n % 5), b"native %d" % n, headers={"n": str(n), **(headers or {})}
                )
    finally:
        await client.close()


async def fill(kafka: Kafka, server: Server, topic: str, records: int = 12) -> Route:
    """A topic whose records are all in the stream; the route to it."""
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(
        topic,
        [
            {"partition": n % PARTITIONS, "key": b"K%d" % n, "value": b"%d" % n}
            for n in range(records)
        ],
    )
    route = shared_route(topic)
    await move_all(kafka.bootstrap, server.url, route)
    return route


def forget_position(kafka: Kafka, route: Route) -> None:
    """As Kafka does when nothing was committed for a week."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for gone in admin.delete_consumer_groups([f"millstream-back-{route.name}"]).values():
        gone.result(20)


def committed(kafka: Kafka, route: Route) -> int:
    """The position that Kafka keeps, below 0 if it has none."""
    name = f"millstream-back-{route.name}"
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": name})
    found = consumer.committed([TopicPartition(route.topic, 0)], 20)[0]
    consumer.close()
    return int(found.offset)


def natives(records: list[Record], route: Route) -> list[Record]:
    return [record for record in records if returned(record.headers, route.name) is not None]


async def test_native_messages_reach_kafka_with_key_partition_time_and_mark(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    await publish(nats_server, range(20))

    report = await back(kafka, nats_server, route)

    records = natives(all_records(kafka, topic), route)
    assert (report.records, report.from_kafka) == (20, 12)
    assert sorted(record.value or b"" for record in records) == sorted(
        b"native %d" % n for n in range(20)
    )
    for record in records:
        number = int((record.value or b"").split()[1])
        mark = returned(record.headers, route.name)
        assert record.key == b"N%d" % (number % 5)
        assert record.headers[2:] == (("n", b"%d" % number),)
        assert mark is not None
        assert mark.stream == "FLIGHTS"
        assert record.timestamp_ms > 1_600_000_000_000
    for partition in range(PARTITIONS):
        seqs = [
            mark.seq
            for record in records
            if record.kafka_partition == partition
            and (mark := returned(record.headers, route.name)) is not None
        ]
        assert seqs == sorted(set(seqs))


async def test_a_second_run_goes_on_where_the_first_ended(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    await publish(nats_server, range(7))
    await back(kafka, nats_server, route)
    await publish(nats_server, range(7, 15))

    report = await back(kafka, nats_server, route)

    assert report.records == 8
    assert len(natives(all_records(kafka, topic), route)) == 15


async def test_it_follows_what_comes_and_stops_when_told(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    bridge = BackBridge(kafka=kafka.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="back")
        await until(lambda: bridge.progress.sessions > 0)
        await publish(nats_server, range(5))
        await until(lambda: bridge.progress.records == 5)
        await publish(nats_server, range(5, 9))
        await until(lambda: bridge.progress.records == 9)
        bridge.stop()

    assert running.result().ended == "stopped"
    assert len(natives(all_records(kafka, topic), route)) == 9


async def test_where_nothing_is_left_to_be_read_nothing_is_waited_for(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream_bridge.back.runner._WAIT_S", 3_600)
    route = await fill(mock, nats_server, topic)
    await publish(nats_server, range(3))

    async with asyncio.timeout(60):
        reports = [await back(mock, nats_server, route) for _ in range(2)]

    assert [report.records for report in reports] == [3, 0]


async def test_a_server_that_restarts_costs_a_session_and_nothing_else(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    bridge = BackBridge(kafka=kafka.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="back")
        await publish(nats_server, range(5))
        await until(lambda: bridge.progress.records == 5)
        nats_server.kill()
        await nats_server.restart()
        await publish(nats_server, range(5, 9))
        await until(lambda: bridge.progress.records == 9)
        bridge.stop()

    assert bridge.progress.sessions >= 2
    assert len(natives(all_records(kafka, topic), route)) == 9


async def test_a_deletion_becomes_a_tombstone(nats_server: Server, mock: Kafka, topic: str) -> None:
    route = await fill(mock, nats_server, topic)
    client = await nats.connect(nats_server.url)
    try:
        await client.jetstream().publish("flights.1.N1", b"", headers={"KV-Operation": "DEL"})
        await client.jetstream().publish("flights.1.N2", b"")
    finally:
        await client.close()

    await back(mock, nats_server, route)

    records = natives(all_records(mock, topic), route)
    assert [(record.key, record.value) for record in records] == [(b"N1", None), (b"N2", b"")]


async def test_what_came_from_kafka_stays_out_also_when_it_was_parked_and_replayed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill(mock, nats_server, topic)
    client = await nats.connect(nats_server.url)
    try:
        source = {"Millstream-Source": f"{topic} 1 2 1357034400000 c r"}
        await client.jetstream().publish("flights.1.N1", b"repaired", headers=source)
    finally:
        await client.close()

    report = await back(mock, nats_server, route)

    assert report.records == 0
    assert natives(all_records(mock, topic), route) == []


async def test_what_the_bridge_keeps_beside_the_records_stays_out(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Checkpoints, and marks of records that were not moved."""
    route = await fill(mock, nats_server, topic)
    client = await nats.connect(nats_server.url)
    try:
        await client.jetstream().publish("flights._poison.1", b"")
    finally:
        await client.close()

    assert (await back(mock, nats_server, route)).records == 0


async def test_a_message_of_a_partition_kafka_lacks_stops_it_and_names_the_sequence(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill(mock, nats_server, topic, records=3)
    client = await nats.connect(nats_server.url)
    try:
        await client.jetstream().publish("flights.0.N1", b"goes")
        bad = await client.jetstream().publish("flights.9.N1", b"cannot")
    finally:
        await client.close()

    with pytest.raises(CannotReturn, match=rf"sequence {bad.seq} .*partition 9.*3 partitions"):
        await back(mock, nats_server, route)

    assert [r.value for r in natives(all_records(mock, topic), route)] == [b"goes"]


def test_a_name_is_one_a_consumer_may_have_whatever_the_topics_is() -> None:
    route = a_route("flights", name="r" * 64)
    names = [way_back_name(route, "t" * 248 + end) for end in "ab"]

    assert way_back_name(route) == "millstream-back-" + "r" * 64
    assert (
        way_back_name(a_route("flights"), "flights.copy") == "millstream-back-flights-flights-copy"
    )
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {255}


async def test_everything_cannot_go_to_its_own_topic(topic: str) -> None:
    with pytest.raises(ConfigurationError, match="only go to another topic"):
        BackBridge(kafka="127.0.0.1:1", nats="", route=shared_route(topic), everything=True)


@pytest.mark.kafka
async def test_a_second_one_takes_over_and_the_first_ends(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    route = await fill(a_real_kafka, nats_server, topic)
    first = BackBridge(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route)
    second = BackBridge(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60):
        old = asyncio.create_task(first.run(), name="first")
        await publish(nats_server, range(5))
        await until(lambda: first.progress.records == 5)
        new = asyncio.create_task(second.run(), name="second")
        await until(lambda: second.progress.sessions > 0)
        await publish(nats_server, range(5, 9))
        await until(lambda: second.progress.records == 4)
        second.stop()
        await new
        with pytest.raises(Fenced, match="another bridge has taken over"):
            await old

    assert len(natives(all_records(a_real_kafka, topic), route)) == 9


@pytest.mark.kafka
async def test_a_position_kafka_forgot_is_found_in_the_records(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    route = await fill(a_real_kafka, nats_server, topic)
    await publish(nats_server, range(7))
    await back(a_real_kafka, nats_server, route)
    await asyncio.to_thread(forget_position, a_real_kafka, route)
    await publish(nats_server, range(7, 15))

    report = await back(a_real_kafka, nats_server, route)

    assert report.records == 8
    assert len(natives(all_records(a_real_kafka, topic), route)) == 15


@pytest.mark.kafka
async def test_a_forgotten_position_is_asked_for_where_the_records_may_be_gone(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """In a compacted topic a newer record of its key may have replaced the newest of them."""
    a_real_kafka.create_topic(topic, PARTITIONS, {"cleanup.policy": "compact"})
    route = shared_route(topic)
    await move_all(a_real_kafka.bootstrap, real_nats_server.url, route)
    await publish(real_nats_server, range(7))
    await back(a_real_kafka, real_nats_server, route)
    await asyncio.to_thread(forget_position, a_real_kafka, route)
    await publish(real_nats_server, range(7, 9))

    with pytest.raises(ConfigurationError, match="is compacted: say with which sequence") as error:
        await back(a_real_kafka, real_nats_server, route)
    newest = int(str(error.value).rsplit(" ", 1)[1].rstrip(")"))
    report = await back(a_real_kafka, real_nats_server, route, from_seq=newest + 1)

    assert report.records == 2
    assert len(natives(all_records(a_real_kafka, topic), route)) == 9


@pytest.mark.kafka
async def test_a_stream_made_anew_is_not_taken_for_the_old_one(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    route = await fill(a_real_kafka, nats_server, topic)
    await publish(nats_server, range(7))
    await back(a_real_kafka, nats_server, route)
    client = await nats.connect(nats_server.url)
    try:
        await client.jetstream().delete_stream("FLIGHTS")
    finally:
        await client.close()
    await move_all(a_real_kafka.bootstrap, nats_server.url, route)

    with pytest.raises(ConfigurationError, match="say with which sequence to begin"):
        await back(a_real_kafka, nats_server, route)


@pytest.mark.kafka
async def test_the_position_is_committed_with_the_records(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    route = await fill(a_real_kafka, nats_server, topic)
    await publish(nats_server, range(7))

    report = await back(a_real_kafka, nats_server, route)

    assert committed(a_real_kafka, route) == report.positions["FLIGHTS"]


@pytest.mark.kafka
@pytest.mark.parametrize("on_poison", ["stop", "skip"])
async def test_a_record_over_the_topics_limit_is_named_and_what_is_before_it_is_there(
    nats_server: Server, a_real_kafka: Kafka, topic: str, on_poison: str
) -> None:
    a_real_kafka.create_topic(topic, 1, {"max.message.bytes": "10000"})
    route = shared_route(topic, on_poison=on_poison)
    await move_all(a_real_kafka.bootstrap, nats_server.url, route)
    client = await nats.connect(nats_server.url)
    try:
        jetstream = client.jetstream()
        for n in range(20):  # together over the limit, each below it
            await jetstream.publish("flights.0.N1", b"%d" % n + b" " * 1_000)
        large = await jetstream.publish("flights.0.N1", b"x" * 20_000)
        await jetstream.publish("flights.0.N1", b"after")
    finally:
        await client.close()

    if on_poison == "stop":
        with pytest.raises(CannotReturn, match=rf"sequence {large.seq} .*Kafka refuses it"):
            await back(a_real_kafka, nats_server, route)
    else:
        report = await back(a_real_kafka, nats_server, route)
        assert (report.records, report.passed_over) == (21, 1)

    values = [r.value or b"" for r in natives(all_records(a_real_kafka, topic), route)]
    rest = [] if on_poison == "stop" else [b"after"]
    assert [value.strip() for value in values] == [*(b"%d" % n for n in range(20)), *rest]


@pytest.mark.kafka
@pytest.mark.parametrize("on_poison", ["stop", "skip"])
async def test_what_is_before_a_refused_record_comes_from_a_new_client(
    nats_server: Server, a_real_kafka: Kafka, topic: str, on_poison: str
) -> None:
    """The old one may refuse it for ever: its count of a partition's records is in disorder."""
    a_real_kafka.create_topic(topic, PARTITIONS, {"max.message.bytes": "20000"})
    route = shared_route(topic, on_poison=on_poison)
    await move_all(a_real_kafka.bootstrap, nats_server.url, route)
    await publish(nats_server, range(10))
    await publish(nats_server, range(10, 11), headers={"large": "x" * 60_000})

    async with asyncio.timeout(60):
        if on_poison == "stop":
            with pytest.raises(CannotReturn, match=r"sequence \d+ .*Kafka refuses it"):
                await back(a_real_kafka, nats_server, route)
        else:
            report = await back(a_real_kafka, nats_server, route)
            assert (report.records, report.passed_over) == (10, 1)

    values = [r.value or b"" for r in natives(all_records(a_real_kafka, topic), route)]
    assert sorted(values) == [b"native %d" % n for n in range(10)]


@pytest.mark.kafka
async def test_of_messages_that_differ_in_headers_alone_the_large_one_is_refused(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """Kafka's client reports a refused record without its headers."""
    a_real_kafka.create_topic(topic, PARTITIONS, {"max.message.bytes": "20000"})
    route = shared_route(topic, on_poison="skip")
    await move_all(a_real_kafka.bootstrap, nats_server.url, route)
    for large in ("", "x" * 60_000, ""):
        await publish(nats_server, range(1), headers={"large": large} if large else None)

    async with asyncio.timeout(60):
        report = await back(a_real_kafka, nats_server, route)

    assert (report.records, report.passed_over) == (2, 1)
    moved = natives(all_records(a_real_kafka, topic), route)
    assert [r.value for r in moved] == [b"native 0", b"native 0"]


async def test_a_run_to_the_end_does_not_end_where_a_replica_lags(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer on a node that was away says that nothing is to come; the leader knows better.

    It brings nothing either before the leader was asked in two rounds: it has caught up by then.
    """
    create, ask = consumer.create, Tail._ask
    questions = 0

    async def lagging(*args: Any, **config: Any) -> tuple[int, bool]:
        return 0, (await create(*args, **config))[1]

    async def of_the_leader(*args: Any) -> int | None:
        nonlocal questions
        questions += 1
        return await first_from(*args)

    def late(tail: Tail) -> None:
        if questions > 2:
            ask(tail)

    route = await fill(mock, nats_server, topic)
    await publish(nats_server, range(20))
    monkeypatch.setattr(consumer, "create", lagging)
    monkeypatch.setattr(runner, "first_from", of_the_leader)
    monkeypatch.setattr(Tail, "_ask", late)

    report = await back(mock, nats_server, route)

    assert report.records == 20


@pytest.mark.kafka
async def test_a_position_is_written_again_before_kafka_forgets_it(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes for a week, and still there is a place to go on at."""
    monkeypatch.setattr(runner, "RENEW_S", 0.1)
    route = await fill(a_real_kafka, real_nats_server, topic)
    await publish(real_nats_server, range(7))
    bridge = BackBridge(kafka=a_real_kafka.bootstrap, nats=real_nats_server.url, route=route)
    run = asyncio.create_task(bridge.run())
    await until(lambda: bridge.progress.records == 7 or run.done())
    await asyncio.to_thread(forget_position, a_real_kafka, route)

    async with asyncio.timeout(60):
        while await asyncio.to_thread(committed, a_real_kafka, route) < 0:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        bridge.stop()
        report = await run

    assert await asyncio.to_thread(committed, a_real_kafka, route) == report.positions["FLIGHTS"]
