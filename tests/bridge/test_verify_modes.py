"""The proof's modes and what it tells apart, on servers: sample, online, dense, large, parked."""

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from millstream_bridge import ConfigurationError, Record, verify, verify_online
from millstream_bridge.jetstream.api import call, stored_message
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.kafka.source import source_of
from millstream_bridge.moving.chain import ChainPublisher
from millstream_bridge.proof.check import Check
from millstream_bridge.proof.sides import Bounds, LiveSides, Part
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.test_back import back, publish
from tests.bridge.test_cli import arguments, run, started
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

SPOILED = 3_210


class Spoiler(ChainPublisher):
    """Changes one record on the way."""

    async def send(self, records: Sequence[Record]) -> None:
        await super().send(
            [it._replace(value=b"leg x") if it.offset == SPOILED else it for it in records]
        )


def fill(kafka: Kafka, topic: str, partitions: int, each: int) -> None:
    kafka.create_topic(topic, partitions)
    kafka.produce(
        topic,
        [
            {"partition": p, "key": b"N%d" % (n % 7), "value": b"leg %d" % n}
            for n in range(each)
            for p in range(partitions)
        ],
    )


async def test_a_sample_looks_at_some_blocks_and_finds_what_is_in_them(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 2, 6_000)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic), make_publisher=Spoiler)

    ends = await verify(
        kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic), sample_blocks=0
    )
    wide = await verify(
        kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic), sample_blocks=4
    )

    assert (ends.mode, ends.equal, ends.records) == ("sample", True, 4_000)
    assert wide.records > ends.records
    assert wide.difference is not None
    assert (wide.difference.offset, wide.difference.what) == (SPOILED, "different value")


async def test_online_each_round_proves_what_came_since_the_one_before(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 2, 100)
    route = a_route(topic)
    await move_all(mock.bootstrap, nats_server.url, route)

    rounds = verify_online(kafka=mock.bootstrap, nats=nats_server.url, route=route, round_s=0)
    async with aclosing(rounds) as proofs:
        first = await anext(proofs)
        mock.produce(topic, [{"partition": 1, "key": b"k", "value": b"new"}])
        await move_all(mock.bootstrap, nats_server.url, route)
        second = await anext(proofs)

    assert (first.equal, first.records) == (True, 200)
    assert (second.equal, second.records, second.mode) == (True, 1, "online")


async def test_a_dense_route_is_proven_stream_by_stream(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 3, 1_200)
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(mock.bootstrap, nats_server.url, route)

    whole = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    some = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route, sample_blocks=1)
    mock.produce(topic, [{"partition": 2, "key": b"k", "value": b"not moved"}])
    after = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert (whole.equal, whole.records) == (True, 3_600)
    assert some.equal
    assert after.difference is not None
    assert (after.difference.kafka_partition, after.difference.offset) == (2, 1_200)


async def delete_stream(url: str, name: str) -> None:
    connection = await Connection.open(url, name="test")
    await call(connection, f"STREAM.DELETE.{name}")
    await connection.close()


async def test_a_partition_that_is_new_has_no_dense_stream_yet(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 2)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(mock.bootstrap, nats_server.url, route)
    await delete_stream(nats_server.url, "FLIGHTS-1")

    rounds = verify_online(kafka=mock.bootstrap, nats=nats_server.url, route=route, round_s=0)
    async with aclosing(rounds) as proofs:
        first = await anext(proofs)
    whole = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    mock.produce(topic, [{"partition": 1, "value": b"v"}])

    assert [(it.equal, it.records) for it in (first, whole)] == [(True, 1), (True, 1)]
    with pytest.raises(ConfigurationError, match="stream FLIGHTS-1: stream not found"):
        await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    await delete_stream(nats_server.url, "FLIGHTS-0")
    with pytest.raises(ConfigurationError, match="stream FLIGHTS-0: stream not found"):
        await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)


@pytest.mark.parametrize(
    "more",
    [{"shared": True}, {"mode": "dense", "stream": "FLIGHTS-{partition}", "name": "flights"}],
)
async def test_what_came_back_is_compared_with_its_messages(
    nats_server: Server, kafka: Kafka, topic: str, more: dict[str, Any]
) -> None:
    fill(kafka, topic, 1, 5)
    route = a_route(topic, **more)
    stream = route.stream.replace("{partition}", "0")
    await move_all(kafka.bootstrap, nats_server.url, route)
    await publish(nats_server, range(20), partitions=1)
    await back(kafka, nats_server, route)

    whole = await verify(kafka=kafka.bootstrap, nats=nats_server.url, route=route)
    rounds = verify_online(kafka=kafka.bootstrap, nats=nats_server.url, route=route)
    async with aclosing(rounds) as proofs:
        first = await anext(proofs)
    await publish(nats_server, range(20, 22), partitions=1)
    connection = await Connection.open(nats_server.url, name="test")
    newest = await stored_message(connection, stream, last_of="flights.0.*")
    assert newest is not None
    await call(connection, f"STREAM.MSG.DELETE.{stream}", {"seq": newest.seq - 2})
    await connection.close()
    fewer = await verify(kafka=kafka.bootstrap, nats=nats_server.url, route=route)
    headers = [("Millstream-Origin", route.name.encode())]
    headers.append(("Millstream-Source", f"{stream} {newest.seq}".encode()))
    kafka.produce(topic, [{"partition": 0, "key": b"N1", "value": b"other", "headers": headers}])
    other = await verify(kafka=kafka.bootstrap, nats=nats_server.url, route=route)

    for proof in (whole, first):
        assert proof.equal, proof.difference
        assert (proof.apart.returned, proof.apart.unpaired, proof.foreign) == (20, 0, 20)
    assert (fewer.equal, fewer.apart.unpaired) == (True, 1), fewer.difference
    assert other.difference is not None
    assert (other.difference.seq, other.difference.nats is None) == (newest.seq, False)
    assert "it came back from NATS with different value" in other.difference.what


async def test_large_records_are_put_together_and_parked_ones_counted(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    huge = {"partition": 0, "key": b"k", "value": bytes(range(256)) * 6_000}
    bad = {"partition": 0, "key": b"k", "value": b"v", "headers": [("n", b"\x00" * 60_000)]}
    small = {"partition": 0, "key": b"k", "value": b"v"}
    mock.produce(topic, [small, huge, bad, small])
    route = a_route(topic, large="chunks", on_poison="skip")
    await move_all(mock.bootstrap, nats_server.url, route)

    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert proof.equal, proof.difference
    assert (proof.records, proof.apart.skipped, proof.foreign) == (3, 1, 0)


async def test_a_stream_that_keeps_the_newest_per_subject_is_proven_in_full_only(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 2, 50)
    route = a_route(topic, max_msgs_per_subject=1)
    await move_all(mock.bootstrap, nats_server.url, route)

    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert proof.equal, proof.difference
    kafka, stored = proof.partitions[0].kafka, proof.partitions[0].nats
    assert (kafka.count, kafka.first_offset, kafka.last_offset) == (50, 0, 49)
    assert (stored.count, stored.first_offset, stored.last_offset) == (7, 43, 49)
    with pytest.raises(ConfigurationError, match="can only be verified in full"):
        await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route, sample_blocks=1)


async def test_what_a_bridge_at_work_pushes_out_meanwhile_is_not_missing(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = a_route(topic, max_msgs_per_subject=1)
    keys = [b"k%d" % n for n in range(5)]

    async def store() -> None:
        mock.produce(topic, [{"partition": 0, "key": key, "value": b"v"} for key in keys])
        await move_all(mock.bootstrap, nats_server.url, route)

    class Busy(LiveSides):
        """All that is in the stream is pushed out once somebody has looked."""

        async def parts(self, bounds: Bounds) -> list[Part]:
            found = await super().parts(bounds)
            await store()
            return found

    mock.create_topic(topic, 1)
    await store()
    source = source_of(None, mock.bootstrap, topic, None)
    connection = await Connection.open(nats_server.url, name="verify")
    try:
        marks, mapping = await source.watermarks(), Mapping(route)
        sides = Busy(source, connection, mapping, marks, mock.bootstrap, None)
        proof = await Check(sides, mapping).full()
    finally:
        await source.close()
        await connection.close()

    assert proof.equal, proof.difference
    assert (proof.records, proof.partitions[0].nats.count) == (5, 0)


@pytest.mark.parametrize(
    "more",
    [
        {"shared": True, "max_age_s": 3_600},
        {"mode": "dense", "stream": "FLIGHTS-{partition}", "max_age_s": 3_600},
        {"mode": "dense", "stream": "FLIGHTS-{partition}", "max_bytes": 1 << 20},
    ],
)
async def test_records_not_moved_yet_are_not_taken_for_removed_by_the_streams_limits(
    nats_server: Server, mock: Kafka, topic: str, more: dict[str, Any]
) -> None:
    mock.create_topic(topic, 2)
    route = a_route(topic, **more)
    await move_all(mock.bootstrap, nats_server.url, route)  # makes the streams
    mock.produce(topic, [{"partition": 1, "value": b"v"}])

    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert (proof.equal, proof.apart.expired) == (False, 0)
    assert proof.difference is not None
    assert proof.difference.what == "the stream does not have this record"


async def test_the_command_shows_both_records_side_by_side(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 1, 4_000)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic), make_publisher=Spoiler)
    words = arguments(mock, nats_server, topic)

    shown = await asyncio.to_thread(run, "verify", *words)
    told = await asyncio.to_thread(run, "verify", *words, "--json")

    assert (shown.returncode, told.returncode) == (1, 1)
    assert f"first difference: partition 0 offset {SPOILED} (seq 3211): different value" in (
        shown.stdout
    )
    assert shown.stdout.splitlines()[-1].split("  ") == [
        *("value", "'leg 3210' (8 bytes)", "'leg x' (5 bytes)"),
    ]
    difference = json.loads(told.stdout)["difference"]
    assert (difference["kafka"]["value"], difference["nats"]["value"]) == (
        "bGVnIDMyMTA=",
        "bGVnIHg=",
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_online_the_command_tells_each_round_until_stopped(
    nats_server: Server, mock: Kafka, topic: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    fill(mock, topic, 1, 10)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    report = tmp_path / "report.json"
    words = (*arguments(mock, nats_server, topic), "--online", "--every", "0.01")

    with started("verify", *words, "--report", str(report)) as process:
        assert process.stderr is not None
        first = await asyncio.to_thread(process.stderr.readline)
        process.send_signal(number)
        await until(lambda: process.poll() is not None)

    assert process.returncode == code
    assert f"{topic} → FLIGHTS equal: 10 records since the last round" in first
    assert json.loads(report.read_text())["mode"] == "online"
