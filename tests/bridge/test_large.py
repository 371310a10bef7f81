"""Records over one message: moved in pieces, put together again, and nothing in their way."""

import json

import nats
import pytest
from hypothesis import given, strategies as st

from millstream_bridge import Record, open_large_values
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.model import TimestampType
from millstream_bridge.records.chunks import CHUNKS_MAX, Reference, is_chunk, pieces, reference_in
from millstream_bridge.records.headers import HeaderError, SourceHeader, parse_block
from millstream_bridge.records.mapping import Mapping
from millstream_coordinator.partitioning.pattern import covers
from tests.bridge.moves import a_route, move_all, offsets, some_records, stored_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

MESSAGE_MAX = 1 << 20
DIGEST_OF_ABC = "cf4ab791c62b8d2b2109c90275287816"


def value(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + b"x" * (size % 256)


@pytest.mark.parametrize("large_as", ["chunks", "object-store"])
@pytest.mark.parametrize("shared", [False, True])
async def test_large_records_arrive_as_they_were_among_the_others(
    nats_server: Server, mock: Kafka, topic: str, shared: bool, large_as: str
) -> None:
    mock.create_topic(topic, 2)
    sizes = [MESSAGE_MAX - 100, MESSAGE_MAX, 3 * MESSAGE_MAX + 17]
    small = some_records(30, 2)
    large = [
        {"partition": n % 2, "key": b"large", "value": value(size), "headers": [("a", b"b")] * 2}
        for n, size in enumerate(sizes)
    ]
    mock.produce(topic, [*small[:10], *large, *small[10:]])
    route = a_route(topic, large=large_as, shared=shared)

    report = await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_records(nats_server.url, route)
    assert offsets(stored) == {0: list(range(17)), 1: list(range(16))}
    found = [r.value for p in stored.values() for r in p if r.key == b"large"]
    assert sorted(map(len, (v for v in found if v))) == sizes
    assert set(found) == {value(size) for size in sizes}
    assert report.records == 33
    assert report.sessions == 1
    assert report.positions == {0: 17, 1: 16}


async def test_any_clients_message_gives_its_whole_value(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    route = a_route(topic, large="chunks")
    sizes = [5, 1_200_000]
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": value(n)} for n in sizes])
    await move_all(mock.bootstrap, nats_server.url, route)
    client = await nats.connect(nats_server.url)
    subscription = await client.jetstream().subscribe("flights.0.*", ordered_consumer=True)

    async with open_large_values(nats_server.url, route) as large:
        for size in sizes:
            message = await subscription.next_msg(timeout=10)
            seq = message.metadata.sequence.stream
            assert await large.value(seq, message.headers, message.data) == value(size)
    await client.close()


async def test_the_next_run_goes_on_after_a_large_record(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    route = a_route(topic, large="chunks")
    large = {"partition": 0, "key": b"k", "value": value(2 * MESSAGE_MAX)}
    mock.produce(topic, [large])
    await move_all(mock.bootstrap, nats_server.url, route)
    mock.produce(topic, [large, {"partition": 0, "value": b"small"}])

    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert report.records == 2
    assert offsets(await stored_records(nats_server.url, route)) == {0: [0, 1, 2]}


async def test_a_stream_of_newest_records_keeps_the_pieces_of_the_newest_only(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    route = a_route(topic, large="chunks", max_msgs_per_subject=1)
    mock.produce(
        topic,
        [
            {"partition": 0, "key": b"k", "value": value(size)}
            for size in (1_200_000, 2_200_000, 1_200_000)
        ],
    )

    await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_records(nats_server.url, route)
    assert [(r.offset, len(r.value or b"")) for r in stored[0]] == [(2, 1_200_000)]
    connection = await Connection.open(nats_server.url, name="test")
    answer = await connection.request("$JS.API.STREAM.INFO.FLIGHTS")
    await connection.close()
    # The newest record, its two pieces, and the third of the one before.
    assert json.loads(answer.payload)["state"]["messages"] == 4


async def test_a_piece_that_is_gone_is_named(nats_server: Server, mock: Kafka, topic: str) -> None:
    mock.create_topic(topic, 1)
    route = a_route(topic, large="chunks")
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": value(2 * MESSAGE_MAX)}])
    await move_all(mock.bootstrap, nats_server.url, route)
    connection = await Connection.open(nats_server.url, name="test")
    await connection.request("$JS.API.STREAM.MSG.DELETE.FLIGHTS", b'{"seq": 2}')
    await connection.close()

    with pytest.raises(HeaderError, match=r"seq 2 of stream FLIGHTS .* partition 0 offset 0"):
        await stored_records(nats_server.url, route)


@pytest.mark.parametrize("spoil", ["digest", "size", "missing"])
async def test_a_value_that_is_not_the_one_stored_is_refused(spoil: str) -> None:
    reference = Reference(3, DIGEST_OF_ABC, chunks=1)
    value = {"digest": b"xyz", "size": b"abcd", "missing": b""}[spoil]

    with pytest.raises(HeaderError, match="not the one"):
        reference.check(value)


@given(st.integers(1, 30_000), st.integers(2_100, 5_000), st.binary(max_size=200))
def test_pieces_together_are_the_value(size: int, limit: int, key: bytes) -> None:
    mapping = Mapping(a_route("flights"))
    record = Record(3, 7, 1, TimestampType.CREATE, key, value(size), (("a", b"1"), ("a", None)))

    found = pieces(mapping, record, limit)

    assert found is not None
    *chunks, last = found
    headers = parse_block(f"NATS/1.0\r\n{last.lines}\r\n".encode())[1]
    reference = reference_in(headers)
    assert reference is not None
    assert reference == Reference.parse(reference.text)
    assert (reference.chunks, reference.check(value(size))) == (len(chunks), value(size))
    assert b"".join(chunk.payload for chunk in chunks) == record.value
    assert all(len(chunk.lines) + len(chunk.payload) <= limit for chunk in chunks)
    assert not any(covers(mapping.partition_filter(3), chunk.subject) for chunk in chunks)
    assert all(mapping.is_beside(chunk.subject) for chunk in chunks)
    assert last.subject == mapping.subject(record)
    with pytest.raises(HeaderError, match="large"):
        mapping.record(last.subject, headers, b"")


def test_pieces_push_out_those_of_an_older_record_of_their_key_and_no_others() -> None:
    """In a stream that keeps one message per subject."""
    mapping = Mapping(a_route("flights"))

    def subjects(offset: int, key: bytes) -> list[str]:
        record = Record(3, offset, 1, TimestampType.CREATE, key, value(5_000))
        found = pieces(mapping, record, 2_100)
        assert found is not None
        return [piece.subject for piece in found]

    assert subjects(7, b"k") == subjects(8, b"k")
    assert not set(subjects(7, b"k")) & set(subjects(8, b"other"))


def test_a_piece_is_of_one_record() -> None:
    mapping = Mapping(a_route("flights"))
    found = pieces(mapping, Record(3, 7, 1, TimestampType.CREATE, b"k", value(5_000)), 2_100)
    assert found is not None
    headers = parse_block(f"NATS/1.0\r\n{found[0].lines}\r\n".encode())[1]

    def is_piece_of(kafka_partition: int, offset: int) -> bool:
        source = SourceHeader("flights", kafka_partition, offset, 1, TimestampType.CREATE, "")
        return is_chunk(headers, source)

    assert is_piece_of(3, 7)
    assert not is_piece_of(3, 8)
    assert not is_piece_of(2, 7)


def test_more_pieces_than_a_batch_takes_are_none() -> None:
    mapping = Mapping(a_route("flights"))
    record = Record(0, 0, 0, TimestampType.CREATE, b"", b"x" * (76 * CHUNKS_MAX + 1))

    assert pieces(mapping, record, 1_100) is None
    assert pieces(mapping, record, 1_101) is not None


@pytest.mark.parametrize("text", ["", "chunks 0 1 " + "a" * 32, "object b c", "chunks 1 1 x"])
def test_a_damaged_reference_is_refused(text: str) -> None:
    with pytest.raises(HeaderError, match="Millstream-Large"):
        Reference.parse(text)
