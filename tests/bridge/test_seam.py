"""Where a run goes on, the last stored record is held against Kafka's of the same offset.

Two mock clusters with a topic of one name are what a log is before and after an unclean election
cut it off and it grew again, or a topic before and after it was made anew.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from millstream_bridge import ConfigurationError, Record, RecordError, Route
from millstream_bridge.errors import OffsetGone, SessionLost
from millstream_bridge.model import TimestampType, Watermarks
from millstream_bridge.moving.seam import Seam
from millstream_bridge.ports import Polled
from tests.bridge.moves import a_route, move_all, offsets, stored_records
from tests.helpers.kafka import Kafka, mock_kafka
from tests.helpers.servers import Server

PARTITIONS = 2
EACH = 5
MODES: dict[str, dict[str, Any]] = {
    "chain": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
}
DIFFERENT: list[tuple[str, Any]] = [
    ("timestamp", 1_357_034_400_001),
    ("key", b"other"),
    ("value", b"other"),
    ("value", None),
    ("headers", [("n", b"2"), ("n", b"1")]),
]


@pytest.fixture
def later() -> Iterator[Kafka]:
    """Another mock cluster."""
    with mock_kafka() as kafka:
        yield kafka


def fill(kafka: Kafka, topic: str, *, count: int = EACH, **of_partition_1: Any) -> None:
    """The same records each time; the fifth of partition 1 as told."""
    kafka.create_topic(topic, PARTITIONS)
    for partition in range(PARTITIONS):
        records: list[dict[str, Any]] = [
            {
                "partition": partition,
                "key": b"k%d" % n,
                "value": b"leg %d" % n,
                "timestamp": 1_357_034_400_000,
                "headers": [("n", b"1"), ("n", b"2")],
            }
            for n in range(count)
        ]
        if partition == 1:
            records[EACH - 1].update(of_partition_1)
        kafka.produce(topic, records)


async def has_stored(nats: str, route: Route) -> dict[int, list[int]]:
    return offsets(await stored_records(nats, route, dense_partitions=PARTITIONS))


@pytest.mark.parametrize(("what", "other"), DIFFERENT)
async def test_another_record_at_the_last_stored_offset_ends_the_run(
    nats_server: Server, mock: Kafka, later: Kafka, topic: str, what: str, other: Any
) -> None:
    route = a_route(topic)
    fill(mock, topic)
    await move_all(mock.bootstrap, nats_server.url, route)
    fill(later, topic, count=EACH + 3, **{what: other})

    told = (
        f"^topic {topic} partition 1 offset 4: Kafka has another record here than stream FLIGHTS"
        rf" \(seq \d+; not the same: {what}\)\."
    )
    for _ in range(2):
        with pytest.raises(RecordError, match=told):
            await move_all(later.bootstrap, nats_server.url, route)

    assert (await has_stored(nats_server.url, route))[1] == list(range(EACH))


@pytest.mark.parametrize("mode", MODES)
async def test_a_topic_with_just_as_many_records_is_not_taken_for_the_one_before(
    nats_server: Server, mock: Kafka, later: Kafka, topic: str, mode: str
) -> None:
    """There is nothing new to be moved, and it is told all the same."""
    route = a_route(topic, **MODES[mode])
    fill(mock, topic)
    await move_all(mock.bootstrap, nats_server.url, route)
    fill(later, topic, value=b"other")

    with pytest.raises(RecordError, match="partition 1 offset 4: Kafka has another record"):
        await move_all(later.bootstrap, nats_server.url, route)


@pytest.mark.parametrize("mode", MODES)
async def test_the_same_records_elsewhere_are_gone_on_with(
    nats_server: Server, mock: Kafka, later: Kafka, topic: str, mode: str
) -> None:
    """Also after a run that stored nothing: what it read again was not stored again."""
    route = a_route(topic, **MODES[mode])
    fill(mock, topic)
    await move_all(mock.bootstrap, nats_server.url, route)
    again = await move_all(mock.bootstrap, nats_server.url, route)
    fill(later, topic, count=EACH + 3)

    more = await move_all(later.bootstrap, nats_server.url, route)

    assert (again.records, again.sessions, more.records, more.sessions) == (0, 1, 6, 1)
    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {p: list(range(EACH + 3)) for p in range(PARTITIONS)}


@pytest.mark.parametrize("large", ["chunks", "object-store"])
@pytest.mark.parametrize("shared", [False, True])
async def test_a_large_record_is_known_by_the_hash_of_its_value(
    nats_server: Server, mock: Kafka, later: Kafka, topic: str, shared: bool, large: str
) -> None:
    route = a_route(topic, shared=shared, large=large)
    size = 1_200_000
    fill(mock, topic, value=b"x" * size)
    await move_all(mock.bootstrap, nats_server.url, route)
    assert (await move_all(mock.bootstrap, nats_server.url, route)).records == 0
    fill(later, topic, value=b"x" * (size - 1) + b"y")

    with pytest.raises(RecordError, match=r"partition 1 offset 4: .* not the same: value"):
        await move_all(later.bootstrap, nats_server.url, route)


async def test_of_a_record_that_was_left_out_the_timestamp_is_known(
    nats_server: Server, mock: Kafka, later: Kafka, topic: str
) -> None:
    route = a_route(topic, on_poison="skip")
    fill(mock, topic, value=b"x" * 1_048_500)
    await move_all(mock.bootstrap, nats_server.url, route)
    assert (await move_all(mock.bootstrap, nats_server.url, route)).records == 0
    fill(later, topic, timestamp=7)

    with pytest.raises(RecordError, match=r"partition 1 offset 4: .* not the same: timestamp"):
        await move_all(later.bootstrap, nats_server.url, route)


# one seam


def a_record(offset: int, partition: int = 0) -> Record:
    return Record(partition, offset, 1, TimestampType.CREATE, b"k", b"v")


def a_seam(seen: list[Record], **positions: int) -> Seam:
    """Of partitions whose logs are from offset 3 to 90; ``p0=5``: partition 0 goes on at 5."""
    at = {int(name[1:]): position for name, position in positions.items()}
    return Seam(at, {p: Watermarks(3, 90) for p in range(9)}, seen.append, set())


def test_a_partition_is_read_from_the_record_before_its_position_where_kafka_has_it() -> None:
    seam = a_seam([], p0=5, p1=4, p2=3)

    assert seam.starts == {0: 4, 1: 3, 2: 3}
    assert not seam.is_closed
    assert a_seam([], p2=3).is_closed


def test_a_record_before_its_position_is_looked_at_once_and_not_moved_again() -> None:
    seen: list[Record] = []
    seam = a_seam(seen, p0=5, p1=7)

    first = seam.look(Polled([a_record(4), a_record(5), a_record(30, 2)], {}))
    assert not seam.is_closed
    second = seam.look(Polled([a_record(6), a_record(6, 1)], {}))

    assert seen == [a_record(4), a_record(6, 1)]
    assert [first.records, second.records] == [[a_record(5), a_record(30, 2)], [a_record(6)]]
    assert seam.is_closed


@pytest.mark.parametrize("polled", [Polled([a_record(5)], {}), Polled([], {0: 5})])
def test_a_record_that_compaction_removed_leaves_nothing_to_look_at(polled: Polled) -> None:
    seen: list[Record] = []
    seam = a_seam(seen, p0=5)

    assert seam.look(polled) == polled
    assert (seen, seam.is_closed) == ([], True)


@pytest.mark.parametrize(
    "error",
    [OffsetGone("t", 0, -1, 5), RecordError("t", 0, 3, "the batch here cannot be read")],
    ids=["removed meanwhile", "spoilt meanwhile"],
)
def test_what_cannot_be_read_again_is_left_out_in_the_next_session(error: RecordError) -> None:
    unreadable: set[int] = set()
    marks = {p: Watermarks(0, 90) for p in range(2)}
    seam = Seam({0: 5, 1: 5}, marks, lambda _: None, unreadable)

    with pytest.raises(SessionLost):
        seam.look(Polled([], {}, error))

    assert Seam({0: 5, 1: 5}, marks, lambda _: None, unreadable).starts == {0: 5, 1: 4}


@pytest.mark.parametrize(
    "error",
    [OffsetGone("t", 1, 5, 9), RecordError("t", 0, 5, "the batch here cannot be read")],
    ids=["another partition's", "behind the seam"],
)
def test_what_is_wrong_elsewhere_is_told(error: RecordError) -> None:
    polled = Polled([], {}, error)

    assert a_seam([], p0=5).look(polled) == polled


# another template


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        ("chain", "{key}", "{key|hash8}"),
        ("shared", "{key}", "{key|lower}"),
        ("dense", "{key|lower}", "{key}"),
        ("chain", "{key|hash8}", "{key}"),
        ("chain", "{key}", "{header[n]}"),
        ("chain", "{key}", "{header[none]}"),
        ("chain", "{key}.{key|hash8}", "{key|hash8}.{key}"),
        ("chain", "{key}", "{value.tail}"),
    ],
)
async def test_a_template_that_makes_other_subjects_in_the_same_places_is_refused(
    nats_server: Server, mock: Kafka, topic: str, mode: str, before: str, after: str
) -> None:
    head = "flights.{partition}."
    mock.create_topic(topic, 1)
    record = {"partition": 0, "key": b"N14228", "value": b"v", "headers": [("n", b"1")]}
    mock.produce(topic, [record])
    old, new = (a_route(topic, subject=head + it, **MODES[mode]) for it in (before, after))
    await move_all(mock.bootstrap, nats_server.url, old)
    mock.produce(topic, [record])

    with pytest.raises(ConfigurationError, match=f"holds topic {topic} under other subjects"):
        await move_all(mock.bootstrap, nats_server.url, new)

    assert offsets(await stored_records(nats_server.url, old, dense_partitions=1)) == {0: [0]}
    assert (await move_all(mock.bootstrap, nats_server.url, old)).records == 1


async def test_another_null_token_is_refused(nats_server: Server, mock: Kafka, topic: str) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"no key"}])
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    with pytest.raises(ConfigurationError, match=r"under other subjects .* put the template and"):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic, null_token="nobody"))


async def test_a_template_written_in_another_way_is_taken(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    for key in (b"", b"x" * 300, b"a.b"):
        mock.produce(topic, [{"partition": 0, "key": key, "value": b"v"}])
        for subject in ("flights.{partition}.{key}", "flights.{partition}.{key|escape}"):
            await move_all(mock.bootstrap, nats_server.url, a_route(topic, subject=subject))

    assert offsets(await stored_records(nats_server.url, a_route(topic))) == {0: [0, 1, 2]}


async def test_a_large_record_whose_value_makes_its_subject_is_no_other_template(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    value = b'{"tail": "N1", "rest": "%s"}' % (b"x" * 1_100_000)
    mock.produce(topic, [{"partition": 0, "value": value}])
    route = a_route(topic, subject="flights.{partition}.{value.tail}", large="chunks")

    for expected in (1, 0):
        assert (await move_all(mock.bootstrap, nats_server.url, route)).records == expected


async def test_a_shared_route_that_was_moved_to_another_head_is_refused(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """The newest message is a checkpoint, and before it are those of other partitions."""
    fill(mock, topic)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic, shared=True))
    other = a_route(topic, shared=True, subject="flights.x.{partition}.{key}")

    with pytest.raises(ConfigurationError, match="under other subjects"):
        await move_all(mock.bootstrap, nats_server.url, other)
