"""A group is switched where the stream's own limits have removed records: exact, or refused."""

import asyncio
import json
from typing import Any

import nats
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from millstream_bridge.cutover import rollback
from millstream_bridge.cutover.index import StreamIndex
from millstream_bridge.cutover.proof import CutProof
from millstream_bridge.cutover.takeover import Handled, Progress, TakeOver
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.model import Route
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, stored_messages
from tests.bridge.test_back import PARTITIONS, back, forget_position, publish
from tests.bridge.test_cutover import commit, cut, handled_by
from tests.bridge.test_poison import TOO_MANY_HEADERS
from tests.bridge.test_rollback import rest_of, roll
from tests.bridge.topics import all_records
from tests.helpers.kafka import REAL, Kafka
from tests.helpers.servers import Server

ALL_AT = {at: dict.fromkeys(range(PARTITIONS), at) for at in range(6)}
OF_NATIVES = range(2)
"""The partitions of the keys of `publish`."""
SHARED = {"shared": True}
DENSE = {"mode": "dense", "stream": "FLIGHTS-{partition}"}


async def fill(kafka: Kafka, server: Server, topic: str, **more: Any) -> Route:
    """Four records in each partition, all of them moved, to a stream in which they may expire."""
    kafka.create_topic(topic, PARTITIONS)
    route = a_route(topic, max_age_s=3_600, **more)
    await four_more(kafka, server, route)
    return route


async def switched(kafka: Kafka, server: Server, topic: str, **more: Any) -> Route:
    """The same, and a group that has the first of each behind it and is in NATS now."""
    route = await fill(kafka, server, topic, **more)
    commit(kafka, topic, topic, ALL_AT[1])
    await cut(kafka, server, route, topic, apply=True)
    return route


async def four_more(kafka: Kafka, server: Server, route: Route, count: int = 4) -> None:
    records = [{"partition": n % PARTITIONS, "value": b"v"} for n in range(PARTITIONS * count)]
    kafka.produce(route.topic, records)
    await move_all(kafka.bootstrap, server.url, route)


async def expire(server: Server, route: Route, **which: Any) -> None:
    """Remove records as ``max_age`` would: all, or those of a subject."""
    connection = await Connection.open(server.url, name="age")
    body = json.dumps({"filter": "flights.*.*", **which}).encode()
    try:
        for partition in range(PARTITIONS if route.mode == "dense" else 1):
            name = route.stream.replace("{partition}", str(partition))
            answer = await connection.request(f"$JS.API.STREAM.PURGE.{name}", body)
            assert "error" not in json.loads(answer.payload), answer.payload
    finally:
        await connection.close()


async def expire_natives(server: Server, route: Route) -> None:
    """Those of `publish`."""
    for n in range(5):
        await expire(server, route, filter=f"flights.*.N{n}")


def assert_refused(proof: CutProof, why: str, of: range = range(PARTITIONS)) -> None:
    """Nothing was switched, and each of the partitions is a reason."""
    assert not proof.applied
    places = [it.partition(":")[0] for it in proof.problems]
    assert places == [f"partition {number}" for number in of]
    assert all(why in it for it in proof.problems)


@pytest.mark.parametrize("more", [SHARED, DENSE], ids=["shared", "dense"])
async def test_what_was_handled_and_removed_since_is_not_given_to_the_kafka_group_again(
    nats_server: Server, mock: Kafka, topic: str, more: dict[str, Any]
) -> None:
    route = await switched(mock, nats_server, topic, **more)
    assert len(await handled_by(nats_server, route, topic, 9)) == 9
    await expire(nats_server, route)

    proof = await roll(mock, nats_server, route, topic, apply=True)

    assert proof.problems == []
    assert {it.partition: it.after for it in proof.partitions} == ALL_AT[4]


@pytest.mark.parametrize("more", [SHARED, DENSE], ids=["shared", "dense"])
async def test_what_was_removed_and_may_not_be_handled_refuses_the_way_home(
    nats_server: Server, mock: Kafka, topic: str, more: dict[str, Any]
) -> None:
    route = await switched(mock, nats_server, topic, **more)
    await expire(nats_server, route, filter="flights.1.*")

    refused = await roll(mock, nats_server, route, topic, apply=True)
    await four_more(mock, nats_server, route, count=1)
    assert len(await handled_by(nats_server, route, topic, 9)) == 9
    done = await roll(mock, nats_server, route, topic, apply=True)

    assert not refused.applied
    (problem,) = refused.problems
    assert problem.startswith("partition 1: the stream's limits (max_age, max_bytes, ")
    assert "let the group handle one more first" in problem
    assert done.problems == []
    assert {it.partition: it.after for it in done.partitions} == ALL_AT[5]


async def go_back(kafka: Kafka, server: Server, route: Route) -> None:
    """What was published straight to NATS gets to Kafka, and the bridge moves on past it."""
    await back(kafka, server, route)
    await move_all(kafka.bootstrap, server.url, route)


async def test_a_handled_message_of_nats_that_is_left_tells_that_what_was_removed_is_handled(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Behind it there are only the checkpoints of the partitions, which outlive the records."""
    route = await switched(mock, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    seen = await handled_by(nats_server, route, topic, 19)
    await expire(nats_server, route, seq=min(seq for seq, data in seen if data != b"v"))
    await go_back(mock, nats_server, route)

    proof = await roll(mock, nats_server, route, topic, apply=True)

    assert proof.problems == []
    assert rest_of(mock, topic, topic) == []


async def test_where_all_is_handled_and_removed_the_checkpoint_tells_so(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Though it has moved on since, past what came back to Kafka."""
    route = await switched(mock, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    await handled_by(nats_server, route, topic, 19)
    await go_back(mock, nats_server, route)
    await expire(nats_server, route)

    proof = await roll(mock, nats_server, route, topic, apply=True)

    assert proof.problems == []
    assert all(it.after == it.high for it in proof.partitions)


async def test_a_message_of_nats_that_is_not_handled_tells_nothing_of_what_was_removed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await switched(mock, nats_server, topic, **SHARED)
    await expire(nats_server, route)
    await publish(nats_server, range(10))
    await go_back(mock, nats_server, route)

    refused = await roll(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "let the group handle one more first")


async def test_a_message_that_was_removed_after_it_was_read_tells_nothing(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """As it may be while the end of the group's members is waited for."""
    route = await fill(mock, nats_server, topic, **SHARED)
    await publish(nats_server, range(1))
    connection = await Connection.open(nats_server.url, name="index")
    try:
        index = StreamIndex(connection, Mapping(route), range(PARTITIONS))
        await index.extend()
        (number,) = (n for n, it in index.partitions.items() if it.natives)
        seq = index.partitions[number].newest_beside(index.natives_end[route.stream])

        before = await index.removed_none_behind(number, seq)
        await expire(nats_server, route)
        after = await index.removed_none_behind(number, seq)
    finally:
        await connection.close()

    assert (before, after) == (True, False)


async def test_a_message_that_outlives_the_limits_tells_nothing_of_what_was_removed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await switched(mock, nats_server, topic, **SHARED)
    await publish(nats_server, range(10), headers={"Nats-TTL": "never"})
    await handled_by(nats_server, route, topic, 19)
    await four_more(mock, nats_server, route)
    await expire(nats_server, route, filter=f"flights.*.{route.null_token}")
    await go_back(mock, nats_server, route)

    refused = await roll(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "let the group handle one more first")


async def fill_beside_tombstones(kafka: Kafka, server: Server, topic: str, last: bool) -> Route:
    """In each partition four records and a tombstone, which may live shorter than they, or longer.

    It is the first or the last. The group has the first behind it, and is in NATS now.
    """
    kafka.create_topic(topic, PARTITIONS)
    route = a_route(topic, max_age_s=3_600, tombstone_ttl_s=86_400, shared=True)
    tombstones = [{"partition": n, "key": b"K", "value": None} for n in range(PARTITIONS)]
    if not last:
        kafka.produce(topic, tombstones)
    await four_more(kafka, server, route)
    if last:
        kafka.produce(topic, tombstones)
        await move_all(kafka.bootstrap, server.url, route)
    commit(kafka, topic, topic, ALL_AT[1])
    await cut(kafka, server, route, topic, apply=True)
    return route


@pytest.mark.parametrize(
    ("last", "gone"), [(False, "%null"), (True, "K")], ids=["outlives", "goes-first"]
)
async def test_what_was_handled_is_not_given_again_where_a_tombstone_has_its_own_lifetime(
    nats_server: Server, mock: Kafka, topic: str, last: bool, gone: str
) -> None:
    route = await fill_beside_tombstones(mock, nats_server, topic, last)
    await handled_by(nats_server, route, topic, 4 * PARTITIONS)
    await expire(nats_server, route, filter=f"flights.*.{gone}")

    proof = await roll(mock, nats_server, route, topic, apply=True)

    assert proof.problems == []
    assert {it.partition: it.after for it in proof.partitions} == ALL_AT[5]


async def test_a_tombstone_that_outlives_the_others_does_not_tell_that_they_are_handled(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill_beside_tombstones(mock, nats_server, topic, last=False)
    await expire(nats_server, route, filter="flights.*.%null")

    refused = await roll(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "removed the record of offset 1,")


async def publish_to_each(server: Server) -> None:
    """One native message to each partition."""
    client = await nats.connect(server.url)
    try:
        for partition in range(PARTITIONS):
            await client.jetstream().publish(f"flights.{partition}.N9", b"one more")
    finally:
        await client.close()


async def test_a_message_of_nats_tells_nothing_of_tombstones_with_a_lifetime_of_their_own(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await fill_beside_tombstones(mock, nats_server, topic, last=False)
    await publish(nats_server, range(10))
    await handled_by(nats_server, route, topic, 4 * PARTITIONS + 10)
    mock.produce(topic, [{"partition": n, "key": b"K", "value": None} for n in range(PARTITIONS)])
    await go_back(mock, nats_server, route)
    await expire(nats_server, route, filter="flights.*.K")

    refused = await roll(mock, nats_server, route, topic, apply=True)
    await publish_to_each(nats_server)
    await handled_by(nats_server, route, topic, PARTITIONS)
    await go_back(mock, nats_server, route)
    done = await roll(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "removed the record of offset 5,")
    assert done.problems == []
    assert all(it.after == it.high for it in done.partitions)


@pytest.mark.parametrize("at", [2, 4], ids=["behind-others", "next"])
async def test_a_tombstone_removed_before_the_group_handled_it_in_kafka_refuses_the_cut_over(
    nats_server: Server, mock: Kafka, topic: str, at: int
) -> None:
    route = await fill_beside_tombstones(mock, nats_server, topic, last=True)
    await expire(nats_server, route, filter="flights.*.K")
    commit(mock, topic, topic, ALL_AT[at])

    refused = await cut(mock, nats_server, route, topic, apply=True)
    commit(mock, topic, topic, ALL_AT[5])
    done = await cut(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "removed the record of offset 4,")
    assert done.problems == []


async def keyed(
    kafka: Kafka, server: Server, topic: str, *values: bytes | None, **more: Any
) -> Route:
    """In each partition records of key K, tombstones among them that may expire, all of them moved.

    Nothing else removes any, unless there are ``more`` limits.
    """
    kafka.create_topic(topic, PARTITIONS)
    route = a_route(topic, tombstone_ttl_s=86_400, shared=True, **more)
    for value in values:
        records = [{"partition": n, "key": b"K", "value": value} for n in range(PARTITIONS)]
        kafka.produce(topic, records)
    await move_all(kafka.bootstrap, server.url, route)
    return route


async def expire_at(server: Server, route: Route, offset: int) -> None:
    """Remove the record of an offset in each partition, as its own lifetime would."""
    connection = await Connection.open(server.url, name="age")
    try:
        for seq, record in await stored_messages(server.url, route):
            if record.offset == offset:
                body = json.dumps({"seq": seq}).encode()
                await connection.request(f"$JS.API.STREAM.MSG.DELETE.{route.stream}", body)
    finally:
        await connection.close()


async def test_a_tombstone_that_ran_out_is_missed_where_nothing_else_is_removed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await keyed(mock, nats_server, topic, b"v", None, b"v")
    await expire_at(nats_server, route, 1)
    commit(mock, topic, topic, ALL_AT[1])

    refused = await cut(mock, nats_server, route, topic, apply=True)
    commit(mock, topic, topic, ALL_AT[2])
    done = await cut(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "removed the record of offset 1,")
    assert done.problems == []
    assert len(await handled_by(nats_server, route, topic, PARTITIONS)) == PARTITIONS


async def test_a_tombstone_that_a_newer_record_of_its_subject_replaced_is_not_missed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Where the stream keeps the newest of each, as the topic does."""
    route = await keyed(mock, nats_server, topic, b"v", None, b"v", None, max_msgs_per_subject=1)
    commit(mock, topic, topic, ALL_AT[0])

    done = await cut(mock, nats_server, route, topic, apply=True)
    await expire_at(nats_server, route, 3)
    refused = await cut(mock, nats_server, route, topic, apply=True)

    assert done.problems == []
    assert_refused(refused, "removed the record of offset 1,")


async def test_a_tombstone_that_ran_out_between_handled_records_may_not_be_handled(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its key was waited for, while those of others were handled beyond it."""
    route = await keyed(mock, nats_server, topic, b"v", b"v", None, b"v")
    commit(mock, topic, topic, ALL_AT[1])
    await cut(mock, nats_server, route, topic, apply=True)
    handled = {}
    for partition in range(PARTITIONS):
        seqs = [
            seq
            for seq, record in await stored_messages(nats_server.url, route)
            if record.kafka_partition == partition
        ]
        handled[partition] = Handled(seqs[1], ((seqs[3], seqs[3]),))

    async def progress(_: TakeOver) -> Progress:
        return Progress(handled, [])

    await expire_at(nats_server, route, 2)
    monkeypatch.setattr(TakeOver, "progress", progress)

    refused = await roll(mock, nats_server, route, topic, apply=True)

    assert_refused(refused, "removed the record of offset 2,")


@pytest.mark.parametrize("more", [SHARED, DENSE], ids=["shared", "dense"])
async def test_what_was_removed_before_the_group_handled_it_in_kafka_refuses_the_cut_over(
    nats_server: Server, mock: Kafka, topic: str, more: dict[str, Any]
) -> None:
    route = await fill(mock, nats_server, topic, **more)
    commit(mock, topic, topic, {0: 1, 1: 4, 2: 4})
    await expire(nats_server, route)

    refused = await cut(mock, nats_server, route, topic, apply=True)
    await four_more(mock, nats_server, route, count=1)
    again = await cut(mock, nats_server, route, topic, apply=True)
    commit(mock, topic, topic, ALL_AT[4])
    done = await cut(mock, nats_server, route, topic, apply=True)

    for proof in (refused, again):
        assert not proof.applied
        (problem,) = proof.problems
        assert "partition 0" in problem
        assert "removed the record of offset 1, which Kafka still has" in problem
    assert done.problems == []
    assert len(await handled_by(nats_server, route, topic, 3)) == 3


async def test_a_record_that_is_only_marked_was_not_removed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, PARTITIONS)
    mock.produce(topic, [TOO_MANY_HEADERS, {"partition": 0, "value": b"v"}])
    route = a_route(topic, max_age_s=3_600, shared=True, on_poison="skip")
    await move_all(mock.bootstrap, nats_server.url, route)

    proof = await cut(mock, nats_server, route, topic, apply=True, uncommitted="earliest")

    assert proof.problems == []
    assert len(await handled_by(nats_server, route, topic, 1)) == 1


@pytest.mark.kafka
async def test_a_message_of_nats_removed_before_the_group_handled_it_in_kafka_refuses_the_cut_over(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """It is back in Kafka, behind the group's place there, and in the stream no more."""
    kafka = a_real_kafka
    route = await fill(kafka, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    await go_back(kafka, nats_server, route)
    await expire(nats_server, route)
    commit(kafka, topic, topic, ALL_AT[4])

    refused = await cut(kafka, nats_server, route, topic, apply=True)
    had = await asyncio.to_thread(rest_of, kafka, topic, topic)
    commit(kafka, topic, topic, {it.partition: it.high for it in refused.partitions})
    done = await cut(kafka, nats_server, route, topic, apply=True)

    assert_refused(refused, "let it catch up in Kafka first", OF_NATIVES)
    assert len(had) == 10
    assert done.problems == []


async def test_a_message_of_nats_that_is_still_there_is_no_reason_for_one_that_is_not(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    await go_back(kafka, nats_server, route)
    await expire(nats_server, route)
    await publish(nats_server, range(10, 20))
    await go_back(kafka, nats_server, route)
    commit(kafka, topic, topic, ALL_AT[4])

    refused = await cut(kafka, nats_server, route, topic, apply=True)

    assert_refused(refused, "let it catch up in Kafka first", OF_NATIVES)


async def test_a_message_of_nats_handled_and_removed_is_not_given_to_the_kafka_group_again(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """Kafka has it behind a record that is not handled, as both bridges were at work."""
    route = await switched(kafka, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    kafka.produce(topic, [{"partition": p, "value": b"late"} for p in range(PARTITIONS)])
    await back(kafka, nats_server, route)
    assert len(await handled_by(nats_server, route, topic, 19)) == 19
    await move_all(kafka.bootstrap, nats_server.url, route)
    await expire_natives(nats_server, route)

    refused = await roll(kafka, nats_server, route, topic, apply=True)

    assert_refused(refused, "offset 4 is not handled, and offset ", OF_NATIVES)


async def test_a_message_of_nats_removed_before_it_was_handled_is_left_to_the_kafka_group(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await switched(kafka, nats_server, topic, **SHARED)
    await handled_by(nats_server, route, topic, 9)
    await publish(nats_server, range(10))
    await go_back(kafka, nats_server, route)
    await four_more(kafka, nats_server, route, count=1)
    await expire_natives(nats_server, route)

    proof = await roll(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    rest = await asyncio.to_thread(rest_of, kafka, topic, topic)
    assert sorted(rest) == sorted([*(b"native %d" % n for n in range(10)), *[b"v"] * 3])


async def test_what_is_back_in_kafka_is_known_where_kafka_has_forgotten_the_way_back(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """As after a week without it: what it brought is not handled once more."""
    route = await fill(kafka, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    await go_back(kafka, nats_server, route)
    ends = {it.kafka_partition: it.offset + 1 for it in all_records(kafka, topic)}
    commit(kafka, topic, topic, ends)
    if kafka.kind == REAL:  # the mock never knew it
        forget_position(kafka, route)
    await publish(nats_server, range(10, 13))

    proof = await cut(kafka, nats_server, route, topic, apply=True)

    assert proof.problems == []
    seen = await handled_by(nats_server, route, topic, 3)
    assert sorted(data for _, data in seen) == [b"native 10", b"native 11", b"native 12"]


@pytest.mark.kafka
async def test_a_message_of_nats_handled_and_removed_from_kafka_is_not_waited_for(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """It was back in Kafka, whose own limits have removed it: nobody is given it again."""
    kafka = a_real_kafka
    route = await switched(kafka, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    assert len(await handled_by(nats_server, route, topic, 19)) == 19
    await back(kafka, nats_server, route)
    ends = {it.kafka_partition: it.offset + 1 for it in all_records(kafka, topic)}
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    gone = [TopicPartition(topic, partition, end) for partition, end in ends.items()]
    for removed in admin.delete_records(gone).values():
        removed.result(20)

    proof = await roll(kafka, nats_server, route, topic, apply=True, timeout_s=1.0)

    assert proof.problems == []
    assert proof.applied
    assert await asyncio.to_thread(rest_of, kafka, topic, topic) == []


@pytest.mark.kafka
async def test_a_message_of_nats_removed_before_it_was_brought_back_is_not_waited_for_without_end(
    nats_server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ones expire when the stream has been read, and before the way back reads it."""
    kafka = a_real_kafka
    route = await switched(kafka, nats_server, topic, **SHARED)
    await publish(nats_server, range(10))
    assert len(await handled_by(nats_server, route, topic, 19)) == 19

    async def expired(*_: object) -> bool:
        await expire_natives(nats_server, route)
        return True

    with monkeypatch.context() as patched:
        patched.setattr(rollback._RollBack, "_may_bring", expired)
        async with asyncio.timeout(60):
            refused = await roll(
                kafka, nats_server, route, topic, apply=True, bring_back=True, timeout_s=1.0
            )
    again = await roll(kafka, nats_server, route, topic, apply=True, bring_back=True)

    assert_refused(refused, "let the way back catch up first", OF_NATIVES)
    assert again.problems == []
