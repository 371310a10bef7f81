"""A Kafka group's place becomes a coordinator group's: exact, or refused."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import nats
import pytest
from confluent_kafka import Consumer, TopicPartition

from millstream_bridge.back.position import StreamFacts
from millstream_bridge.cutover.cutover import Sides, cut_over
from millstream_bridge.cutover.proof import CutProof
from millstream_bridge.errors import ConfigurationError
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.kafka.admin import KafkaGroup
from millstream_bridge.model import Route
from millstream_coordinator import Group, Message
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.test_back import PARTITIONS, back, fill, publish
from tests.bridge.topics import all_records
from tests.helpers.kafka import REAL, Kafka
from tests.helpers.servers import Server


def consumer(kafka: Kafka, group: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )


def commit(kafka: Kafka, group: str, topic: str, offsets: dict[int, int]) -> None:
    """As a consumer that left would have committed."""
    one = consumer(kafka, group)
    places = [TopicPartition(topic, p, offset) for p, offset in offsets.items()]
    one.commit(offsets=places, asynchronous=False)
    one.close()


async def cut(kafka: Kafka, server: Server, route: Route, group: str, **options: Any) -> CutProof:
    """Cut over a Kafka group that is named like the other; the mock cannot tell it is empty."""
    options = {"is_stopped": kafka.kind != REAL, "timeout_s": 30.0, **options}
    return await cut_over(
        kafka=kafka.bootstrap,
        nats=server.url,
        route=route,
        kafka_group=group,
        group=group,
        **options,
    )


def noting(server: Server, route: Route, group: str) -> tuple[Group, list[int]]:
    """A worker of a group, and the sequences it has handled."""
    worker = Group(server.url, stream=route.stream, name=group, partitions=PARTITIONS)
    seen: list[int] = []

    @worker.handler(key=route.subject)
    async def note(message: Message) -> None:
        seen.append(message.seq)

    return worker, seen


async def handled_by(
    server: Server, route: Route, group: str, count: int, *, partitions: int = PARTITIONS
) -> list[tuple[int, bytes]]:
    """What a worker of the coordinator group is given, until there is nothing more."""
    seen: list[tuple[int, bytes]] = []
    worker = Group(server.url, stream=route.stream, name=group, partitions=partitions)

    @worker.handler(key=route.subject)
    async def note(message: Message) -> None:
        seen.append((message.seq, message.data))

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: len(seen) >= count)
        await asyncio.sleep(0.3)  # for one too many to come
        await worker.stop()
        await running
    return seen


def values(numbers: Iterable[int]) -> list[bytes]:
    return sorted(b"%d" % n for n in numbers)


async def test_a_group_goes_on_with_exactly_the_records_it_has_not_handled(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)  # value n is at partition n % 3, offset n // 3
    commit(kafka, topic, topic, {0: 0, 1: 2, 2: 4})

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    assert proof.applied
    assert {it.partition: it.after for it in proof.partitions} == {
        it.partition: it.next_seq for it in proof.partitions
    }
    seen = await handled_by(nats_server, route, topic, 6)
    assert sorted(data for _, data in seen) == values([0, 3, 6, 9, 7, 10])


async def test_without_apply_nothing_is_changed(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    commit(kafka, topic, topic, {0: 1, 1: 2, 2: 4})

    proof = await cut(kafka, nats_server, route, topic)

    assert (proof.is_exact, proof.applied) == (True, False)
    client = await nats.connect(nats_server.url)
    try:
        streams = [one.config.name for one in await client.jetstream().streams_info()]
    finally:
        await client.close()
    assert streams == ["FLIGHTS"]


async def test_a_cut_over_is_done_again_after_more_was_handled_in_kafka(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """As when one changes one's mind before any worker has started."""
    route = await fill(kafka, nats_server, topic)
    commit(kafka, topic, topic, {0: 1, 1: 1, 2: 1})
    await cut(kafka, nats_server, route, topic, apply=True)
    commit(kafka, topic, topic, {0: 4, 1: 4, 2: 3})

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    seen = await handled_by(nats_server, route, topic, 1)
    assert [data for _, data in seen] == [b"11"]


def kafka_has_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Kafka group has one, which stays; the mock cannot tell of any."""
    look = Sides.kafka_group

    async def with_a_member(sides: Sides, name: str) -> KafkaGroup:
        return replace(await look(sides, name), state="Stable", members=1)

    monkeypatch.setattr(Sides, "kafka_group", with_a_member)


async def test_the_stream_is_read_before_anybody_is_told_to_stop(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = await fill(mock, nats_server, topic)
    commit(mock, topic, topic, dict.fromkeys(range(PARTITIONS), 1))
    kafka_has_a_member(monkeypatch)
    events: list[str] = []

    async def when_read(is_refused: bool) -> bool:
        events.append("read")
        return not is_refused

    options = {"wait_s": 0.3, "when_read": when_read}
    await cut(mock, nats_server, route, topic, on_event=events.append, **options)

    assert events[0] == "read"
    assert events[1].startswith("all but the last step is done; ")


async def test_nobody_is_told_to_stop_where_another_topic_is_refused(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are records waited for."""
    route = await fill(mock, nats_server, topic)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    commit(mock, topic, topic, {0: 5, 1: 1, 2: 1})
    kafka_has_a_member(monkeypatch)
    events: list[str] = []

    async def when_read(is_refused: bool) -> bool:
        return False

    options = {"wait_s": 60, "timeout_s": 60.0, "when_read": when_read}
    async with asyncio.timeout(40):
        proof = await cut(mock, nats_server, route, topic, on_event=events.append, **options)

    assert events == []
    assert proof.problems[:2] == [
        "another topic of the Kafka group is refused already, so nothing was waited for",
        f"Kafka group {topic} is Stable with 1 member: stop them, or wait for their end",
    ]


async def test_where_a_member_stays_records_are_not_waited_for(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = await fill(mock, nats_server, topic)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    commit(mock, topic, topic, {0: 5, 1: 1, 2: 1})
    kafka_has_a_member(monkeypatch)
    events: list[str] = []

    options = {"wait_s": 0.3, "timeout_s": 3_600.0, "on_event": events.append}
    async with asyncio.timeout(60):
        proof = await cut(mock, nats_server, route, topic, **options)

    [line] = events
    assert line.startswith("all but the last step is done; ")
    assert "is Stable with 1 member" in proof.problems[0]


async def test_a_partition_without_a_commit_is_asked_for(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    commit(kafka, topic, topic, {0: 1, 1: 1})

    refused = await cut(kafka, nats_server, route, topic, apply=True)
    told = await cut(kafka, nats_server, route, topic, apply=True, uncommitted="latest")

    assert not refused.applied
    assert "partition 2" in refused.problems[0]
    assert "committed nothing" in refused.problems[0]
    assert told.problems == []
    assert told.partitions[2].offset == 4


async def test_what_the_bridge_has_not_stored_is_waited_for(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    kafka.produce(topic, [{"partition": 0, "value": b"late"}])
    commit(kafka, topic, topic, {0: 5, 1: 1, 2: 1})

    refused = await cut(kafka, nats_server, route, topic, apply=True, timeout_s=0.5)
    await move_all(kafka.bootstrap, nats_server.url, route)
    done = await cut(kafka, nats_server, route, topic, apply=True)

    assert not refused.applied
    assert "is the bridge running?" in refused.problems[0]
    assert done.problems == []


async def dense_without_a_stream(kafka: Kafka, server: Server, topic: str) -> Route:
    """Of the last partition, which is empty, as where it was added a moment ago."""
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(topic, [{"partition": p, "value": b"v"} for p in range(PARTITIONS - 1)])
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(kafka.bootstrap, server.url, route)
    await remove_stream(server, f"FLIGHTS-{PARTITIONS - 1}")
    commit(kafka, topic, topic, {0: 0, 1: 1})
    return route


async def remove_stream(server: Server, name: str) -> None:
    client = await nats.connect(server.url)
    try:
        assert await client.jetstream().delete_stream(name)
    finally:
        await client.close()


async def test_a_dense_partition_that_the_bridge_has_not_met_is_waited_for(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await dense_without_a_stream(mock, nats_server, topic)
    events: list[str] = []
    runs: list[asyncio.Task[Any]] = []

    def on_event(event: str) -> None:
        if not events:
            runs.append(asyncio.create_task(move_all(mock.bootstrap, nats_server.url, route)))
        events.append(event)

    proof = await cut(mock, nats_server, route, topic, apply=True, on_event=on_event)

    await asyncio.gather(*runs)
    assert events[0] == "waiting until the bridge has made stream FLIGHTS-2"
    assert (proof.problems, proof.applied) == ([], True)
    assert [(it.offset, it.next_seq, it.after) for it in proof.partitions] == [
        (0, 1, 1),
        (1, 2, 2),
        (0, 1, 1),
    ]


async def test_a_dense_partition_that_no_bridge_meets_refuses_it_and_is_named(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Its workers would not start without the stream. Of none at all the name may be wrong."""
    route = await dense_without_a_stream(mock, nats_server, topic)

    refused = await cut(mock, nats_server, route, topic, apply=True, timeout_s=0.3)
    for name in ("FLIGHTS-0", "FLIGHTS-1"):
        await remove_stream(nats_server, name)
    with pytest.raises(ConfigurationError, match=r"stream FLIGHTS-0: .*is the name right"):
        await cut(mock, nats_server, route, topic, apply=True)

    (problem,) = refused.problems
    assert not refused.applied
    assert problem.startswith("partition 2: stream FLIGHTS-2 is not there yet; `millstream bridge")
    assert [it.partition for it in refused.partitions] == [*range(PARTITIONS)]


async def test_a_stream_that_is_made_while_it_is_looked_for_does_not_end_it(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge makes it just behind an answer that it is not there."""
    route = await dense_without_a_stream(mock, nats_server, topic)
    read, missed = StreamFacts.read, 0

    async def made_behind(connection: Connection, name: str) -> StreamFacts:
        nonlocal missed
        try:
            return await read(connection, name)
        except ConfigurationError:
            missed += 1
            if missed == 2:
                await move_all(mock.bootstrap, nats_server.url, route)
            raise

    monkeypatch.setattr(StreamFacts, "read", made_behind)
    proof = await cut(mock, nats_server, route, topic, apply=True)

    assert missed == 2
    assert (proof.problems, proof.applied) == ([], True)


async def test_nobody_is_told_to_stop_where_a_stream_was_not_made_in_time(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused in any case, so the group works on; nor are the stream's records waited for."""
    route = await dense_without_a_stream(mock, nats_server, topic)
    mock.produce(topic, [{"partition": 2, "value": b"v"}])
    commit(mock, topic, topic, {2: 1})
    kafka_has_a_member(monkeypatch)
    told: list[str] = []

    options = {"wait_s": 1.0, "timeout_s": 0.3, "on_event": told.append}
    proof = await cut(mock, nats_server, route, topic, apply=True, **options)

    assert told == ["waiting until the bridge has made stream FLIGHTS-2"]
    (problem,) = proof.problems
    assert problem.startswith("partition 2: stream FLIGHTS-2 is not there yet")


async def test_a_stream_that_is_made_when_its_time_is_up_is_for_the_next_cut_over(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records were not waited for."""
    route = await dense_without_a_stream(mock, nats_server, topic)
    look_at_group = Sides.kafka_group

    async def after_it_is_made(sides: Sides, name: str) -> KafkaGroup:
        await move_all(mock.bootstrap, nats_server.url, route)
        return await look_at_group(sides, name)

    with monkeypatch.context() as patched:
        patched.setattr(Sides, "kafka_group", after_it_is_made)
        refused = await cut(mock, nats_server, route, topic, apply=True, timeout_s=0.3)
    done = await cut(mock, nats_server, route, topic, apply=True)

    (problem,) = refused.problems
    assert problem.startswith("partition 2: stream FLIGHTS-2 is not there yet")
    assert (done.problems, done.applied) == ([], True)


async def test_what_came_back_from_a_stream_that_is_not_there_does_not_end_it(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.create_topic(topic, PARTITIONS)
    mock.produce(topic, [{"partition": p, "value": b"v"} for p in range(PARTITIONS)])
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(mock.bootstrap, nats_server.url, route)
    client = await nats.connect(nats_server.url)
    try:
        for p in range(PARTITIONS):
            await client.jetstream().publish(f"flights.{p}.N", b"native")
    finally:
        await client.close()
    await back(mock, nats_server, route)
    commit(mock, topic, topic, dict.fromkeys(range(PARTITIONS), 1))
    await remove_stream(nats_server, "FLIGHTS-2")

    async def way_back_seqs(_: Sides) -> dict[int, int]:
        return dict.fromkeys(range(PARTITIONS), 3)  # the mock has forgotten them

    monkeypatch.setattr(Sides, "way_back_seqs", way_back_seqs)
    proof = await cut(mock, nats_server, route, topic, apply=True, timeout_s=0.3)

    (problem,) = proof.problems
    assert problem.startswith("partition 2: stream FLIGHTS-2 is not there yet")


async def test_a_stream_that_went_while_it_was_read_is_not_waited_for(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """What was handled of it is not to be found any more."""
    mock.create_topic(topic, PARTITIONS)
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(mock.bootstrap, nats_server.url, route)

    async def when_read(is_refused: bool) -> bool:
        await remove_stream(nats_server, "FLIGHTS-2")
        return True

    with pytest.raises(ConfigurationError, match="stream FLIGHTS-2"):
        await cut(mock, nats_server, route, topic, apply=True, when_read=when_read)


async def test_a_native_message_the_group_would_miss_refuses_it(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """A producer moved before the group did, and the group went on in Kafka."""
    route = await fill(kafka, nats_server, topic)
    await publish(nats_server, range(12))
    kafka.produce(topic, [{"partition": p, "value": b"behind"} for p in range(PARTITIONS)])
    await move_all(kafka.bootstrap, nats_server.url, route)
    commit(kafka, topic, topic, dict.fromkeys(range(PARTITIONS), 5))

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert not proof.applied
    assert "published straight to NATS" in proof.problems[0]


async def test_a_record_that_was_parked_and_replayed_is_not_handled_twice_unseen(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """The group had it in Kafka, and it comes again in the stream."""
    route = await fill(kafka, nats_server, topic)
    client = await nats.connect(nats_server.url)
    try:
        source = {"Millstream-Source": f"{topic} 1 0 1357034400000 c r"}
        ack = await client.jetstream().publish("flights.1.N1", b"repaired", headers=source)
    finally:
        await client.close()
    commit(kafka, topic, topic, {0: 1, 1: 1, 2: 1})

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert not proof.applied
    (problem,) = proof.problems
    assert problem.startswith(
        f"partition 1: the record of offset 0, replayed at sequence {ack.seq}"
    )
    assert problem.endswith("is handled, and would be again")


@pytest.mark.kafka
async def test_native_messages_the_group_has_had_in_kafka_are_no_obstacle(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """Both directions at once: the group handled in Kafka what the way back brought there."""
    kafka = a_real_kafka
    route = await fill(kafka, nats_server, topic)
    await publish(nats_server, range(12))
    await back(kafka, nats_server, route)
    await move_all(kafka.bootstrap, nats_server.url, route)
    ends = {it.kafka_partition: it.offset + 1 for it in all_records(kafka, topic)}
    commit(kafka, topic, topic, ends)
    await publish(nats_server, range(12, 15))

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    seen = await handled_by(nats_server, route, topic, 3)
    assert sorted(data for _, data in seen) == [b"native 12", b"native 13", b"native 14"]


@pytest.mark.kafka
async def test_a_group_at_work_is_waited_for_and_then_cut_over(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    kafka = a_real_kafka
    route = await fill(kafka, nats_server, topic)
    member = consumer(kafka, topic)
    member.subscribe([topic])

    def read_some() -> None:
        for _ in range(5):
            message = member.poll(20)
            assert message is not None
            member.commit(message=message, asynchronous=False)

    await asyncio.to_thread(read_some)
    refused = await cut(kafka, nats_server, route, topic, apply=True)
    waited: list[str] = []
    options: dict[str, Any] = {
        "wait_s": 40,
        "uncommitted": "earliest",
        "on_event": waited.append,
    }

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        cutting = tasks.create_task(
            cut(kafka, nats_server, route, topic, apply=True, **options), name="cutover"
        )
        await until(lambda: bool(waited))
        await asyncio.to_thread(member.close)

    assert not refused.applied
    assert "with 1 member:" in " ".join(refused.problems)
    assert cutting.result().problems == []
    assert len(await handled_by(nats_server, route, topic, 7)) == 7


async def test_a_group_with_members_is_not_moved(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill(mock, nats_server, topic)
    commit(mock, topic, topic, {0: 1, 1: 1, 2: 1})
    worker, seen = noting(nats_server, route, topic)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await until(lambda: bool(seen))
        proof = await cut(mock, nats_server, route, topic, apply=True)
        await worker.stop()
        await running

    assert not proof.applied
    assert "has 1 member (" in proof.problems[0]


async def test_a_worker_that_comes_while_other_topics_are_read_is_a_member(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill(mock, nats_server, topic)
    commit(mock, topic, topic, {0: 1, 1: 1, 2: 1})
    await cut(mock, nats_server, route, topic, apply=True)
    worker, seen = noting(nats_server, route, topic)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:

        async def when_read(is_refused: bool) -> bool:
            tasks.create_task(worker.run(), name="worker")
            await until(lambda: bool(seen))
            return not is_refused

        proof = await cut(mock, nats_server, route, topic, apply=True, when_read=when_read)
        await worker.stop()

    assert not proof.applied
    assert "has 1 member (" in proof.problems[0]


async def test_a_group_that_reads_otherwise_is_not_moved(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill(mock, nats_server, topic)
    commit(mock, topic, topic, {0: 1, 1: 1, 2: 1})
    await cut(mock, nats_server, route, topic, apply=True)
    other = a_route(topic, stream="OTHER", subject="other.{partition}.{key}")
    await move_all(mock.bootstrap, nats_server.url, other)

    proof = await cut(mock, nats_server, other, topic, apply=True)

    assert not proof.applied
    assert "has stream 'FLIGHTS', the route 'OTHER'" in " ".join(proof.problems)


async def test_nobody_is_told_to_stop_for_a_group_that_reads_otherwise(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No waiting changes that."""
    route = await fill(mock, nats_server, topic)
    commit(mock, topic, topic, {0: 1, 1: 1, 2: 1})
    await cut(mock, nats_server, route, topic, apply=True)
    kafka_has_a_member(monkeypatch)
    told: list[str] = []

    options = {"wait_s": 1.0, "on_event": told.append}
    proof = await cut(
        mock, nats_server, route, topic, key_rule="header:Id on flights.*.>", **options
    )

    assert told == []
    assert any("has key" in it for it in proof.problems)
    assert not any("stop them" in it for it in proof.problems)


async def test_a_mock_does_not_tell_and_so_is_asked_for_a_word(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill(mock, nats_server, topic)
    commit(mock, topic, topic, {0: 1, 1: 1, 2: 1})

    told: list[str] = []

    options = {"is_stopped": False, "wait_s": 60, "on_event": told.append}
    async with asyncio.timeout(30):
        proof = await cut(mock, nats_server, route, topic, apply=True, **options)

    assert told == []
    assert not proof.applied
    assert "does not tell whether" in proof.problems[0]
