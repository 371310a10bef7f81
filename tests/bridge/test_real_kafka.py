"""What only a real Kafka does: transactions, append time, console producer, deletion, growth."""

import asyncio

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from millstream_bridge import (
    Bridge,
    BridgeError,
    ConfigurationError,
    RecordError,
    barrier,
    verify,
)
from millstream_bridge.model import TimestampType
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until
from tests.bridge.test_bad_input import make_stream
from tests.bridge.topics import await_readable, transactional
from tests.helpers.kafka import Kafka, run_tool
from tests.helpers.servers import Server

pytestmark = pytest.mark.kafka


async def test_what_the_console_producer_wrote_is_moved_and_verified(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """Bytes that this project did not write."""
    a_real_kafka.create_topic(topic, 2)
    lines = [b"carrier:UA,tail:N%d\tkey%d\tleg %d" % (n, n % 7, n) for n in range(500)]
    lines += [b"carrier:UA\tkey1\tNULL", b"carrier:AA,carrier:UA\tNULL\tno key"]
    properties = ["parse.key=true", "parse.headers=true", "null.marker=NULL"]
    await asyncio.to_thread(
        run_tool,
        "ConsoleProducer",
        *("--bootstrap-server", a_real_kafka.bootstrap, "--topic", topic),
        *(word for one in properties for word in ("--property", one)),
        stdin=b"\n".join(lines) + b"\n",
    )

    await move_all(a_real_kafka.bootstrap, nats_server.url, a_route(topic))
    proof = await verify(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=a_route(topic))

    stored = await stored_records(nats_server.url, a_route(topic))
    records = [record for of_partition in stored.values() for record in of_partition]
    assert (proof.equal, proof.records) == (True, 502)
    assert sum(record.value is None for record in records) == 1
    assert [r.headers for r in records if r.key is None] == [
        (("carrier", b"AA"), ("carrier", b"UA"))
    ]


async def test_an_aborted_transaction_is_not_moved_and_its_gap_is_no_loss(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    producer = transactional(a_real_kafka, topic)
    for value, is_committed in ((b"kept", True), (b"aborted", False), (b"also kept", True)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(20)
        (producer.commit_transaction if is_committed else producer.abort_transaction)(20)
    await_readable(a_real_kafka, topic)
    route = a_route(topic)

    report = await move_all(a_real_kafka.bootstrap, nats_server.url, route)
    await barrier(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route, timeout_s=20)
    proof = await verify(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route)

    stored = await stored_records(nats_server.url, route)
    assert [record.value for record in stored[0]] == [b"kept", b"also kept"]
    assert (report.records, proof.equal, proof.records) == (2, True, 2)


async def test_the_barrier_waits_for_a_transaction_that_is_still_open(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """What was committed a moment ago looks like that, too."""
    a_real_kafka.create_topic(topic, 1)
    route = a_route(topic)
    producer = transactional(a_real_kafka, topic)
    producer.begin_transaction()
    producer.produce(topic, b"last", partition=0)
    producer.flush(20)
    await move_all(a_real_kafka.bootstrap, nats_server.url, route)
    kafka, url = a_real_kafka.bootstrap, nats_server.url

    with pytest.raises(TimeoutError, match="partition 0: 0 of 1"):
        await barrier(kafka=kafka, nats=url, route=route, timeout_s=1)
    producer.commit_transaction(20)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(barrier(kafka=kafka, nats=url, route=route), name="barrier")
        while not waiting.done():
            await move_all(kafka, url, route)

    assert [record.value for record in (await stored_records(url, route))[0]] == [b"last"]


async def test_log_append_time_is_kept_as_such(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1, {"message.timestamp.type": "LogAppendTime"})
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"v", "timestamp": 5}])

    await move_all(a_real_kafka.bootstrap, nats_server.url, a_route(topic))

    stored = await stored_records(nats_server.url, a_route(topic))
    assert stored[0][0].timestamp_type is TimestampType.LOG_APPEND
    assert stored[0][0].timestamp_ms > 5


async def test_records_deleted_in_kafka_before_they_were_moved_are_missed(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(5)])
    await move_all(a_real_kafka.bootstrap, nats_server.url, a_route(topic))
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(5)])
    admin = AdminClient({"bootstrap.servers": a_real_kafka.bootstrap})
    deleted = admin.delete_records([TopicPartition(topic, 0, 8)])
    await asyncio.to_thread(lambda: [one.result(20) for one in deleted.values()])

    with pytest.raises(RecordError, match=r"offset 5: Kafka no longer has .* begins at 8"):
        await move_all(a_real_kafka.bootstrap, nats_server.url, a_route(topic))


async def test_partitions_added_while_it_runs_are_moved_too(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"old"}])
    bridge = Bridge(
        kafka=a_real_kafka.bootstrap,
        nats=nats_server.url,
        route=a_route(topic),
        look_for_partitions_s=0.1,
    )
    admin = AdminClient({"bootstrap.servers": a_real_kafka.bootstrap})

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: bridge.progress.records == 1)
        grown = admin.create_partitions([NewPartitions(topic, 3)])
        await asyncio.to_thread(grown[topic].result, 20)
        await asyncio.to_thread(a_real_kafka.produce, topic, [{"partition": 2, "value": b"new"}])
        await until(lambda: bridge.progress.records == 2)
        bridge.stop()

    stored = await stored_records(nats_server.url, a_route(topic))
    assert offsets(stored) == {0: [0], 2: [0]}


async def remade(kafka: Kafka, topic: str) -> None:
    """Delete a topic and make it again under its name."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result, 20)
    async with asyncio.timeout(30):
        while True:  # it is gone a moment after it was answered
            try:
                await asyncio.to_thread(kafka.create_topic, topic, 1)
            except KafkaException:
                await asyncio.sleep(0.1)
            else:
                return


async def test_a_topic_made_anew_with_more_records_than_before_is_not_taken_for_the_old_one(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """Its position fits the new topic as well: only the topic's id tells."""
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"old"} for _ in range(5)])
    route, url = a_route(topic), real_nats_server.url
    await move_all(a_real_kafka.bootstrap, url, route)

    await remade(a_real_kafka, topic)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"new"} for _ in range(50)])

    with pytest.raises(ConfigurationError, match=f"topic {topic} was deleted and made anew"):
        await move_all(a_real_kafka.bootstrap, url, route)
    assert offsets(await stored_records(url, route)) == {0: list(range(5))}


async def test_a_topic_made_anew_is_told_by_its_records_where_the_stream_knows_no_id(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """The stream is somebody's; the new topic has just as many records."""
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"old"} for _ in range(5)])
    route, url = a_route(topic), real_nats_server.url
    await make_stream(url)
    await move_all(a_real_kafka.bootstrap, url, route)

    await remade(a_real_kafka, topic)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"new"} for _ in range(5)])

    with pytest.raises(RecordError, match="partition 0 offset 4: Kafka has another record here"):
        await move_all(a_real_kafka.bootstrap, url, route)


async def test_behind_a_transactions_marker_a_run_goes_on(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """The offset before the log's end is no record's, before the position is one."""
    a_real_kafka.create_topic(topic, 1)
    route = a_route(topic)
    producer = transactional(a_real_kafka, topic)
    for n in range(3):
        producer.begin_transaction()
        producer.produce(topic, b"%d" % n, partition=0)
        producer.flush(20)
        producer.commit_transaction(20)
        await_readable(a_real_kafka, topic)
        report = await move_all(a_real_kafka.bootstrap, nats_server.url, route)
        assert (report.records, report.sessions) == (1, 1)
    again = await move_all(a_real_kafka.bootstrap, nats_server.url, route)

    assert (again.records, again.sessions) == (0, 1)
    assert offsets(await stored_records(nats_server.url, route)) == {0: [0, 2, 4]}


async def test_a_topic_made_anew_while_it_is_moved_ends_the_run(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"old"} for _ in range(5)])
    bridge = Bridge(
        kafka=a_real_kafka.bootstrap,
        nats=real_nats_server.url,
        route=a_route(topic),
        look_for_partitions_s=0.2,
    )
    run = asyncio.create_task(bridge.run())
    await until(lambda: bridge.progress.records == 5 or run.done())

    await remade(a_real_kafka, topic)

    async with asyncio.timeout(60):
        with pytest.raises(BridgeError, match=topic):
            await run
    assert bridge.progress.positions == {0: 5}
