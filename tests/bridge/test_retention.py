"""What a stream made for a route keeps, and for how long; positions outlive the messages."""

import asyncio
import json
from typing import Any

import pytest

from millstream_bridge import verify
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.stream import find_problem
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, offsets, stored_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

DENSE = {"mode": "dense", "stream": "FLIGHTS-{partition}"}


async def info(url: str, stream: str) -> dict[str, Any]:
    connection = await Connection.open(url, name="test")
    try:
        answer = await connection.request(f"$JS.API.STREAM.INFO.{stream}")
        found: dict[str, Any] = json.loads(answer.payload)
        return found
    finally:
        await connection.close()


async def test_a_stream_is_made_as_the_route_says(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    route = a_route(
        topic,
        **DENSE,
        storage="memory",
        max_age_s=3600.5,
        max_bytes=1 << 30,
        max_msgs_per_subject=1,
    )

    await move_all(mock.bootstrap, nats_server.url, route)

    config = (await info(nats_server.url, "FLIGHTS-0"))["config"]
    assert config["storage"] == "memory"
    assert config["max_age"] == 3_600_500_000_000
    assert config["max_bytes"] == 1 << 30
    assert config["max_msgs_per_subject"] == 1
    assert config["num_replicas"] == 1


async def test_a_compacted_topic_becomes_a_stream_of_the_newest_records(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(
        topic, [{"partition": 0, "key": b"%d" % (n % 3), "value": b"%d" % n} for n in range(10)]
    )
    route = a_route(topic, max_msgs_per_subject=1)

    await move_all(mock.bootstrap, nats_server.url, route)
    again = await move_all(mock.bootstrap, nats_server.url, route)

    assert again.records == 0
    assert offsets(await stored_records(nats_server.url, route)) == {0: [7, 8, 9]}


@pytest.mark.parametrize(
    ("changes", "left"),
    [({"shared": True}, 2), (DENSE, 0)],
    ids=["shared: its checkpoint and mark", "dense"],
)
async def test_a_tombstone_goes_after_its_time_and_is_not_moved_again(
    nats_server: Server, mock: Kafka, topic: str, changes: dict[str, Any], left: int
) -> None:
    mock.create_topic(topic, 1)
    record = {"partition": 0, "key": b"k", "value": b"v"}
    mock.produce(topic, [record, {**record, "value": None}])
    route = a_route(topic, tombstone_ttl_s=1, max_msgs_per_subject=1, **changes)
    name = route.stream.replace("{partition}", "0")
    report = await move_all(mock.bootstrap, nats_server.url, route)

    async with asyncio.timeout(30):
        while (await info(nats_server.url, name))["state"]["messages"] > left:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    again = await move_all(mock.bootstrap, nats_server.url, route)
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert (report.records, again.records) == (2, 0)
    assert (proof.equal, proof.apart.expired) == (True, 1), proof.difference
    assert (await info(nats_server.url, name))["state"]["messages"] == left
    mock.produce(topic, [record])
    assert (await move_all(mock.bootstrap, nats_server.url, route)).positions == {0: 3}


@pytest.mark.parametrize(
    ("changes", "config", "complaint"),
    [
        (
            {"shared": True, "tombstone_ttl_s": 60},
            {"allow_atomic": True, "allow_rollup_hdrs": True},
            "allow_msg_ttl",
        ),
        (
            {"on_poison": "park"},
            {"subjects": ["flights.*.*"]},
            r"does not listen to flights._poison",
        ),
        ({"large": "chunks"}, {"subjects": ["flights.*.*"]}, r"does not listen to flights._chunk"),
    ],
)
def test_a_stream_that_cannot_keep_what_the_route_writes_is_refused(
    changes: dict[str, Any], config: dict[str, Any], complaint: str
) -> None:
    mapping = Mapping(a_route("flights", **changes))

    assert complaint in str(find_problem({"subjects": ["flights.>"], **config}, mapping))
