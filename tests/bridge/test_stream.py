"""Reading positions from the stream, against a model that answers as JetStream does."""

import base64
import json
from typing import Any, cast

import pytest

from millstream_bridge import ConfigurationError
from millstream_bridge.errors import ConnectionLost
from millstream_bridge.jetstream.connection import Connection, Message
from millstream_bridge.jetstream.stream import Stream
from millstream_bridge.model import Record, TimestampType
from millstream_bridge.records.mapping import Mapping
from millstream_coordinator.partitioning.pattern import covers
from tests.bridge.moves import a_route


class ModelServer:
    """Answers STREAM.INFO and STREAM.MSG.GET over messages it is given; None is a deleted one."""

    url = "nats://model"
    api_prefix = "$JS.API"

    def __init__(self) -> None:
        self.mapping = Mapping(a_route("flights"))
        self.messages: list[tuple[str, bytes, bytes] | None] = []
        self.config: dict[str, Any] = {"subjects": ["flights.>"]}
        self.level = 5

    def store(self, kafka_partition: int, offset: int, topic: str = "flights") -> None:
        mapping = Mapping(a_route(topic))
        record = Record(kafka_partition, offset, 1, TimestampType.CREATE, b"k", b"v")
        block = f"NATS/1.0\r\n{mapping.header_lines(record)}\r\n".encode()
        self.messages.append((mapping.subject(record), block, b"v"))

    def stray(self, subject: str, payload: bytes = b"stray") -> None:
        self.messages.append((subject, b"", payload))

    async def request(self, subject: str, payload: bytes = b"") -> Message:
        answer = self._answer(subject, json.loads(payload) if payload else {})
        return Message("", "", b"", json.dumps(answer).encode())

    def _answer(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        if subject == "$JS.API.INFO":
            return {"api": {"level": self.level}}
        if subject.startswith("$JS.API.STREAM.INFO."):
            return {"config": self.config, "state": {"last_seq": len(self.messages)}}
        seqs = range(len(self.messages), 0, -1)
        if "seq" in body:
            seqs = range(body["seq"], body["seq"] - 1, -1)
        for seq in seqs:
            message = self.messages[seq - 1]
            if message and covers(body.get("last_by_subj", ">"), message[0]):
                data, block = base64.b64encode(message[2]), base64.b64encode(message[1])
                found = {"subject": message[0], "seq": seq, "data": data.decode()}
                return {"message": {**found, "hdrs": block.decode()}}
        return {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}

    def stream(self, shared: bool = False) -> Stream:
        connection = cast(Connection, self)
        return Stream(connection, Mapping(a_route("flights", shared=shared)))


async def test_a_position_is_one_past_the_newest_record_of_its_partition() -> None:
    server = ModelServer()
    for partition, offset in [(0, 7), (1, 3), (0, 8), (2, 0)]:
        server.store(partition, offset)

    positions = [await server.stream().position(partition) for partition in range(4)]

    assert positions == [9, 4, 1, None]


@pytest.mark.parametrize("strays", [1, 63, 64, 65, 300])
async def test_a_position_is_found_behind_any_number_of_stray_messages(strays: int) -> None:
    server = ModelServer()
    server.store(0, 41)
    server.store(1, 5)
    for n in range(strays):
        if n % 3 == 0:
            server.messages.append(None)
        server.stray("flights.0.stray")

    assert await server.stream().position(0) == 42


async def test_stray_messages_alone_give_no_position() -> None:
    server = ModelServer()
    for _ in range(100):
        server.stray("flights.0.stray")

    assert await server.stream().position(0) is None


async def test_a_record_of_another_topic_is_a_stray_message() -> None:
    server = ModelServer()
    server.store(0, 5)
    server.store(0, 99, topic="other")

    assert await server.stream().position(0) == 6


async def test_a_checkpoint_says_the_position_and_its_sequence() -> None:
    server = ModelServer()
    mark = b'{"schema":"millstream.checkpoint/1","topic":"flights","kafka_partition":2,'
    server.stray("flights._checkpoint.2", mark + b'"next_offset":17}')

    seq, checkpoint = await server.stream(shared=True).checkpoint(2)

    assert seq == 1
    assert checkpoint is not None
    assert checkpoint.next_offset == 17
    assert await server.stream(shared=True).checkpoint(3) == (0, None)


async def test_something_else_under_a_checkpoints_subject_is_refused() -> None:
    server = ModelServer()
    server.stray("flights._checkpoint.2", b"hello")

    with pytest.raises(ConfigurationError, match=r"seq 1: flights._checkpoint.2 is no checkpoint"):
        await server.stream(shared=True).checkpoint(2)


async def test_a_shared_route_needs_a_server_with_atomic_batches() -> None:
    server = ModelServer()
    server.level = 1

    with pytest.raises(ConfigurationError, match=r"API level 1: .* \(nats-server 2\.12"):
        await server.stream(shared=True).ensure()


async def test_a_cluster_without_a_leader_is_no_fault_of_the_stream() -> None:
    class Leaderless(ModelServer):
        async def request(self, subject: str, payload: bytes = b"") -> Message:
            error = {"err_code": 10008, "description": "JetStream system temporarily unavailable"}
            return Message("", "", b"", json.dumps({"error": error}).encode())

    server = Leaderless()

    with pytest.raises(ConnectionLost, match="temporarily unavailable"):
        await Stream(cast(Connection, server), server.mapping).ensure()


async def test_a_stream_that_was_just_made_may_not_be_found_for_a_moment() -> None:
    """Of a cluster that makes many at once."""
    not_found = {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
    server = ModelServer()
    left = iter([True, False, True, True])  # to be made, made, and twice not heard of

    def answer(subject: str, body: dict[str, Any]) -> dict[str, Any]:
        if subject != "$JS.API.INFO" and next(left, False):
            return not_found
        if ".CREATE." in subject:
            return {"config": body}
        return ModelServer._answer(server, subject, body)

    server._answer = answer  # type: ignore[method-assign]
    stream = server.stream()
    await stream.ensure()

    assert await stream.last_seq() == 0
    assert next(left, None) is None
