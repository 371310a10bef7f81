"""A coordinator group's place becomes a Kafka group's again: exact, or refused."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError

from millstream_bridge import Bridge, Unreachable
from millstream_bridge.cutover import rollback, takeover
from millstream_bridge.cutover.cutover import open_sides
from millstream_bridge.cutover.proof import CutProof
from millstream_bridge.cutover.returns import Returns, read_on
from millstream_bridge.cutover.rollback import roll_back
from millstream_bridge.errors import ConfigurationError, SessionLost
from millstream_bridge.kafka.sink import KafkaSink, Position
from millstream_bridge.kafka.source import KafkaSource
from millstream_bridge.model import Record, Route, Watermarks
from millstream_coordinator.operation.overview import Overview, read_overview
from millstream_coordinator.operation.target import Target
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.test_back import PARTITIONS, fill, natives, publish
from tests.bridge.test_cutover import (
    commit,
    cut,
    handled_by,
    kafka_has_a_member,
    noting,
    remove_stream,
)
from tests.bridge.test_topics_that_change import grow
from tests.bridge.topics import all_records
from tests.helpers.kafka import REAL, Kafka
from tests.helpers.servers import Server


async def roll(kafka: Kafka, server: Server, route: Route, group: str, **options: Any) -> CutProof:
    """Roll back to a Kafka group of the same name."""
    options = {"is_stopped": kafka.kind != REAL, "timeout_s": 30.0, **options}
    return await roll_back(
        kafka=kafka.bootstrap,
        nats=server.url,
        route=route,
        kafka_group=group,
        group=group,
        **options,
    )


def rest_of(kafka: Kafka, topic: str, group: str) -> list[bytes]:
    """What a member of the Kafka group is given now, up to the topic's end."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,  # by default half a second at the end of each partition
        }
    )
    found: list[bytes] = []
    ended: set[int] = set()
    try:
        consumer.subscribe([topic])
        while len(ended) < PARTITIONS:
            message = consumer.poll(30)
            assert message is not None, "no answer in time"
            error = message.error()
            if error is None:
                found.append(message.value() or b"")
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition() or 0)
        return found
    finally:
        consumer.close()


async def cut_over_all(kafka: Kafka, server: Server, topic: str) -> Route:
    """A topic of 12 records, and a group that has the first of each partition behind it."""
    route = await fill(kafka, server, topic)
    commit(kafka, topic, topic, dict.fromkeys(range(PARTITIONS), 1))
    proof = await cut(kafka, server, route, topic, apply=True)
    assert proof.problems == []
    return route


@pytest.mark.kafka
async def test_the_kafka_group_gets_exactly_what_was_not_handled_in_nats(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """Kafka's records and native messages, some handled, some not."""
    kafka = a_real_kafka
    route = await cut_over_all(kafka, nats_server, topic)
    await publish(nats_server, range(10))
    assert len(await handled_by(nats_server, route, topic, 19)) == 19
    await publish(nats_server, range(10, 16))

    proof = await roll(kafka, nats_server, route, topic, apply=True, bring_back=True)

    assert proof.problems == []
    assert proof.applied
    rest = await asyncio.to_thread(rest_of, kafka, topic, topic)
    assert sorted(rest) == sorted(b"native %d" % n for n in range(10, 16))


@pytest.mark.kafka
async def test_a_way_back_that_gets_no_further_ends_it_and_neither_group_is_moved(
    nats_server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka is there at the start and for all that reads, and takes nothing: it is being lost."""
    kafka = a_real_kafka
    route = await cut_over_all(kafka, nats_server, topic)
    await publish(nats_server, range(10))
    store = KafkaSink.store

    async def lost(sink: KafkaSink, records: Sequence[Record], at: Mapping[int, Position]) -> None:
        if records:
            raise SessionLost("Kafka is away")
        await store(sink, records, at)

    with monkeypatch.context() as patched:
        patched.setattr(rollback, "STORE_S", 0.5)
        patched.setattr(KafkaSink, "store", lost)
        async with asyncio.timeout(60):
            with pytest.raises(Unreachable, match="the Kafka group was not moved"):
                await roll(
                    kafka, nats_server, route, topic, apply=True, bring_back=True, timeout_s=0.5
                )
    again = await roll(kafka, nats_server, route, topic, apply=True, bring_back=True)

    assert again.problems == []
    assert {it.before for it in again.partitions} == {1}
    rest = await asyncio.to_thread(rest_of, kafka, topic, topic)
    assert len(rest) == 9 + 10


@pytest.mark.kafka
async def test_records_not_moved_yet_are_left_to_the_kafka_group(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """The forward bridge was stopped before; and Kafka's producers went on."""
    kafka = a_real_kafka
    route = await cut_over_all(kafka, nats_server, topic)
    await handled_by(nats_server, route, topic, 9)
    kafka.produce(topic, [{"partition": p, "value": b"new %d" % p} for p in range(PARTITIONS)])

    proof = await roll(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    rest = await asyncio.to_thread(rest_of, kafka, topic, topic)
    assert sorted(rest) == [b"new 0", b"new 1", b"new 2"]


@pytest.mark.kafka
async def test_a_switch_there_and_back_and_there_again_handles_each_record_once(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    kafka = a_real_kafka
    route = await cut_over_all(kafka, nats_server, topic)
    there = Bridge(kafka=kafka.bootstrap, nats=nats_server.url, route=route)
    await publish(nats_server, range(5))
    first = await handled_by(nats_server, route, topic, 14)
    await roll(kafka, nats_server, route, topic, apply=True, bring_back=True)
    kafka.produce(topic, [{"partition": p, "value": b"at home"} for p in range(PARTITIONS)])
    home = await asyncio.to_thread(rest_of, kafka, topic, topic)
    marks = {it: mark.high for it, mark in (await watermarks(kafka, topic)).items()}
    commit(kafka, topic, topic, marks)
    await there.run(stop_at_end=True)
    await publish(nats_server, range(5, 8))

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    last = await handled_by(nats_server, route, topic, 3)
    assert len(first) == 9 + 5
    assert home == [b"at home"] * PARTITIONS
    assert sorted(data for _, data in last) == [b"native 5", b"native 6", b"native 7"]


async def watermarks(kafka: Kafka, topic: str) -> Any:
    from millstream_bridge.kafka.source import KafkaSource

    source = KafkaSource(kafka.bootstrap, topic)
    try:
        return await source.watermarks()
    finally:
        await source.close()


async def test_native_messages_not_in_kafka_refuse_it(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await cut_over_all(kafka, nats_server, topic)
    await publish(nats_server, range(10))
    await handled_by(nats_server, route, topic, 19)

    proof = await roll(kafka, nats_server, route, topic, apply=True, timeout_s=0.5)

    assert not proof.applied
    assert "not in Kafka yet" in proof.problems[0]


async def test_without_native_messages_the_offsets_are_those_of_the_records(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await cut_over_all(kafka, nats_server, topic)
    await handled_by(nats_server, route, topic, 9)
    kafka.produce(topic, [{"partition": 1, "value": b"13"}, {"partition": 1, "value": b"16"}])
    await move_all(kafka.bootstrap, nats_server.url, route)

    proof = await roll(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    assert {it.partition: it.offset for it in proof.partitions} == {0: 4, 1: 4, 2: 4}
    assert {it.partition: it.after for it in proof.partitions} == {0: 4, 1: 4, 2: 4}
    assert {it.partition: it.before for it in proof.partitions} == {0: 1, 1: 1, 2: 1}


@pytest.mark.kafka
async def test_a_dense_partition_that_was_added_and_has_no_stream_yet_does_not_end_it(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """That the group lacks it is told, with the places in the others."""
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"v"}])
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(a_real_kafka.bootstrap, nats_server.url, route)
    commit(a_real_kafka, topic, topic, {0: 1})
    await cut(a_real_kafka, nats_server, route, topic, apply=True)
    await grow(a_real_kafka, topic, 2)

    proof = await roll(a_real_kafka, nats_server, route, topic)

    assert proof.problems == [f"group {topic} has partitions 1, the route 2"]
    assert [(it.partition, it.offset) for it in proof.partitions] == [(0, 1)]


async def test_a_stream_or_group_that_is_not_there_is_named_with_what_helps(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, PARTITIONS)
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(mock.bootstrap, nats_server.url, route)
    await cut(mock, nats_server, route, topic, apply=True)
    await remove_stream(nats_server, "FLIGHTS-2")

    with pytest.raises(ConfigurationError, match="'FLIGHTS-2' not found; `millstream bridge run`"):
        await roll(mock, nats_server, route, topic)
    with pytest.raises(ConfigurationError, match="'other' not found; `millstream coordinator ls`"):
        await roll(mock, nats_server, route, "other")


async def test_a_group_of_another_stream_has_no_place_in_this_one(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """It has more partitions, too."""
    await cut_over_all(mock, nats_server, topic)
    other = f"{topic}-other"
    mock.create_topic(other, 2)
    mock.produce(other, [{"partition": 0, "value": b"v"}])
    route = a_route(other, stream="CARS", subject="cars.{partition}.{key}")
    await move_all(mock.bootstrap, nats_server.url, route)

    proof = await roll(mock, nats_server, route, topic, apply=True)

    assert not proof.applied
    assert proof.problems[0] == f"group {topic} has stream 'FLIGHTS', the route 'CARS'"
    assert [*proof.partitions] == []


async def test_a_group_of_more_partitions_than_the_topic_has_is_refused(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """As where the topic was made anew."""
    await cut_over_all(mock, nats_server, topic)
    other = f"{topic}-other"
    mock.create_topic(other, 2)
    route = a_route(other, shared=True)

    proof = await roll(mock, nats_server, route, topic, apply=True, wait_s=0.1, timeout_s=0.1)

    assert not proof.applied
    assert f"group {topic} has partitions 3, the route 2" in proof.problems
    assert [it.partition for it in proof.partitions] == [0, 1]


async def test_for_a_group_that_does_not_fit_nothing_is_brought_back_nor_waited_for(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """No waiting changes that, as it does where workers leave or parked keys are replayed."""
    route = await cut_over_all(mock, nats_server, topic)
    await publish(nats_server, range(10))
    told: list[str] = []

    async with asyncio.timeout(10):
        proof = await roll(
            mock,
            nats_server,
            route,
            topic,
            apply=True,
            bring_back=True,
            wait_s=30,
            key_rule="header:Id on flights.*.>",
            on_event=told.append,
        )

    assert not proof.applied
    assert any("has key" in it for it in proof.problems)
    assert told == []
    assert natives(await asyncio.to_thread(all_records, mock, topic), route) == []


async def test_a_dry_run_changes_nothing(nats_server: Server, kafka: Kafka, topic: str) -> None:
    route = await cut_over_all(kafka, nats_server, topic)
    await handled_by(nats_server, route, topic, 9)

    proof = await roll(kafka, nats_server, route, topic)
    again = await roll(kafka, nats_server, route, topic)

    assert (proof.is_exact, proof.applied) == (True, False)
    assert {it.partition: it.before for it in again.partitions} == {0: 1, 1: 1, 2: 1}


async def test_a_group_with_workers_is_waited_for(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await cut_over_all(mock, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)
    told: list[str] = []

    async def when_read(is_refused: bool) -> bool:
        told.append("read")
        return True

    options: dict[str, Any] = {"apply": True, "wait_s": 30, "when_read": when_read}
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: len(seen) == 9)
        refused = await roll(mock, nats_server, route, topic, apply=True)
        rolling = tasks.create_task(
            roll(mock, nats_server, route, topic, **options, on_event=told.append),
            name="rollback",
        )
        await until(lambda: len(told) > 1)
        await worker.stop()
        await running

    assert told[0] == "read"
    assert "has 1 member (" in told[1]
    assert "has 1 member (" in refused.problems[0]
    assert rolling.result().problems == []
    assert {it.partition: it.after for it in rolling.result().partitions} == {0: 4, 1: 4, 2: 4}


async def test_no_worker_is_waited_for_where_another_topic_is_refused(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await cut_over_all(mock, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)
    told: list[str] = []

    async def when_read(is_refused: bool) -> bool:
        return False

    options: dict[str, Any] = {"apply": True, "wait_s": 60, "when_read": when_read}
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: len(seen) == 9)
        proof = await roll(mock, nats_server, route, topic, **options, on_event=told.append)
        await worker.stop()
        await running

    assert told == []
    first, second = proof.problems
    assert first.startswith("another topic of the Kafka group is refused already")
    assert "has 1 member (" in second


@pytest.mark.kafka
async def test_what_a_group_without_workers_left_in_nats_is_in_kafka_before_others_have_to_stop(
    nats_server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = await cut_over_all(a_real_kafka, nats_server, topic)
    await publish(nats_server, range(3))
    has_brought = rollback._WayBack.has_brought
    events: list[str] = []

    async def looks(way_back: rollback._WayBack, ends: Mapping[str, int]) -> bool:
        is_brought = await has_brought(way_back, ends)
        events.append(f"brought {is_brought}")
        return is_brought

    async def when_read(is_refused: bool) -> bool:
        events.append(f"read, refused {is_refused}")
        return not is_refused

    monkeypatch.setattr(rollback._WayBack, "has_brought", looks)
    options: dict[str, Any] = {"apply": True, "bring_back": True, "when_read": when_read}
    proof = await roll(a_real_kafka, nats_server, route, topic, **options)

    read = events.index("read, refused False")
    assert events.index("brought True") < read
    assert proof.problems == []


@pytest.mark.parametrize("stays", [True, False])
async def test_a_worker_that_comes_while_other_topics_are_read_counts(
    nats_server: Server, mock: Kafka, topic: str, stays: bool
) -> None:
    route = await cut_over_all(mock, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:

        async def when_read(is_refused: bool) -> bool:
            running = tasks.create_task(worker.run(), name="worker")
            await until(lambda: len(seen) == 9)
            if not stays:
                await worker.stop()
                await running
            return not is_refused

        options: dict[str, Any] = {"apply": True, "when_read": when_read}
        proof = await roll(mock, nats_server, route, topic, **options)
        await worker.stop()

    assert proof.applied is not stays
    if stays:
        assert "has 1 member (" in proof.problems[0]
    else:
        assert proof.problems == []
        assert {it.partition: it.after for it in proof.partitions} == {0: 4, 1: 4, 2: 4}


async def test_where_a_worker_stays_its_messages_way_back_is_not_waited_for(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await cut_over_all(mock, nats_server, topic)
    await publish(nats_server, range(3))
    worker, seen = noting(nats_server, route, topic)
    told: list[str] = []

    options: dict[str, Any] = {"apply": True, "wait_s": 0.3, "timeout_s": 3_600.0}
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: len(seen) == 12)
        proof = await roll(mock, nats_server, route, topic, **options, on_event=told.append)
        await worker.stop()
        await running

    [line] = told
    assert line.startswith("all but the last step is done; ")
    assert "has 1 member (" in proof.problems[0]


async def test_the_standstill_begins_where_the_group_is_seen_empty(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await cut_over_all(mock, nats_server, topic)

    async def when_read(is_refused: bool) -> bool:
        await asyncio.sleep(0.5)
        return not is_refused

    proof = await roll(mock, nats_server, route, topic, apply=True, when_read=when_read)

    assert proof.standstill_s is not None
    assert proof.standstill_s >= 0.5


async def test_no_worker_is_waited_for_while_the_kafka_group_is_at_work(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything brought back."""
    route = await cut_over_all(mock, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)
    told: list[str] = []

    kafka_has_a_member(monkeypatch)
    options: dict[str, Any] = {"apply": True, "wait_s": 60, "bring_back": True}
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: len(seen) == 9)
        proof = await roll(mock, nats_server, route, topic, **options, on_event=told.append)
        await worker.stop()
        await running

    assert told == []
    assert any("is Stable with 1 member" in it for it in proof.problems)


@pytest.mark.kafka
async def test_what_is_published_while_the_group_works_is_in_kafka_before_its_end_is_waited_for(
    nats_server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And read there; only what is published until it leaves is brought back and read then."""
    kafka = a_real_kafka
    looked: list[int] = []

    async def looks(
        source: KafkaSource,
        route_name: str,
        returns: Mapping[int, Returns],
        marks: Mapping[int, Watermarks],
    ) -> None:
        looked.append(sum(marks[p].high - it.read_to for p, it in returns.items()))
        await read_on(source, route_name, returns, marks)

    monkeypatch.setattr(rollback, "_READ_AHEAD", 3)
    monkeypatch.setattr(rollback, "read_on", looks)
    route = await cut_over_all(kafka, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)
    told: list[str] = []

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await publish(nats_server, range(30))
        await until(lambda: len(seen) == 39)
        options: dict[str, Any] = {"apply": True, "bring_back": True, "wait_s": 30}
        rolling = tasks.create_task(
            roll(kafka, nats_server, route, topic, **options, on_event=told.append),
            name="rollback",
        )
        await until(lambda: any("has 1 member (" in it for it in told))
        looked_before = len(looked)
        before = await asyncio.to_thread(all_records, kafka, topic)
        await publish(nats_server, range(30, 36))
        await until(lambda: len(seen) == 45)
        await worker.stop()
        await running

    after = await asyncio.to_thread(all_records, kafka, topic)
    assert rolling.result().problems == []
    assert values_of(natives(before, route)) == sorted(b"native %d" % n for n in range(30))
    assert values_of(natives(after, route)) == sorted(b"native %d" % n for n in range(36))
    assert await asyncio.to_thread(rest_of, kafka, topic, topic) == []
    assert sum(looked[:looked_before]) >= 30
    assert looked[-1] < 30


async def test_a_kafka_that_is_away_while_workers_are_waited_for_is_read_later(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ahead only saves time, so nothing ends with it."""
    route = await cut_over_all(mock, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)
    told: list[str] = []
    asked: list[object] = []

    async def is_away(*given: object) -> None:
        asked.append(given)
        raise Unreachable("Kafka", mock.bootstrap, "a leader is being elected")

    monkeypatch.setattr(rollback._RollBack, "_read_much", is_away)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: len(seen) == 9)
        rolling = tasks.create_task(
            roll(mock, nats_server, route, topic, apply=True, wait_s=30, on_event=told.append),
            name="rollback",
        )
        await until(lambda: bool(told))
        await worker.stop()
        await running

    assert asked
    assert rolling.result().problems == []
    assert {it.partition: it.after for it in rolling.result().partitions} == {0: 4, 1: 4, 2: 4}


def values_of(records: list[Record]) -> list[bytes]:
    return sorted(record.value or b"" for record in records)


async def test_a_worker_that_leaves_while_its_progress_is_read_is_asked_again(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it handled last is written down as it leaves: what was read before is not all of it."""
    route = await cut_over_all(mock, nats_server, topic)
    worker, seen = noting(nats_server, route, topic)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")

        async def leaves_behind_it(target: Target, **options: Any) -> Overview:
            overview = await read_overview(target, **options)
            if not running.done():
                await publish(nats_server, range(3))
                await until(lambda: len(seen) == 12)
                await worker.stop()
                await running
            return overview

        monkeypatch.setattr(takeover, "read_overview", leaves_behind_it)
        await until(lambda: len(seen) == 9)
        async with open_sides(
            kafka=mock.bootstrap,
            nats=nats_server.url,
            route=route,
            group=topic,
            key_rule=None,
            kafka_options=None,
        ) as sides:
            progress = await sides.takeover.progress()
            assert any("has 1 member (" in it for it in progress.obstacles)
            progress = await sides.takeover.progress()

    assert progress.obstacles == []
    assert max(it.end for it in progress.handled.values()) == max(seen)
