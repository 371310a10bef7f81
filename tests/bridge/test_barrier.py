"""The barrier waits through restarts and elections within its time limit, and says for what."""

import asyncio
import logging
from typing import Any

import pytest

from millstream_bridge import Route, Unreachable, barrier
from millstream_bridge.errors import ConfigurationError, ConnectionLost
from millstream_bridge.jetstream.api import call
from millstream_bridge.jetstream.connection import Connection, Message
from tests.bridge.moves import a_route, move_all, until
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


async def moved(mock: Kafka, server: Server, topic: str) -> Route:
    """Two records in partition 1, of which one is stored; the route."""
    mock.create_topic(topic, 2)
    route = a_route(topic)
    mock.produce(topic, [{"partition": 1, "value": b"1"}])
    await move_all(mock.bootstrap, server.url, route)
    mock.produce(topic, [{"partition": 1, "value": b"2"}])
    return route


def waits(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What it said that it waits for."""
    events = [
        record for record in caplog.records if getattr(record, "event", "") == "barrier_waits"
    ]
    assert all(record.levelno == logging.WARNING for record in events)
    return [record.getMessage() for record in events]


async def test_it_says_which_partition_is_behind_when_time_is_up(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await moved(mock, nats_server, topic)

    with pytest.raises(TimeoutError, match=r"after 0.5 s \(partition 1: 1 of 2\)"):
        await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=0.5)


async def test_without_time_it_looks_once(nats_server: Server, mock: Kafka, topic: str) -> None:
    route = await moved(mock, nats_server, topic)

    with pytest.raises(TimeoutError, match=r"partition 1: 1 of 2"):
        await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=0)
    await move_all(mock.bootstrap, nats_server.url, route)
    goal = await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=0)

    assert goal == {0: 0, 1: 2}


async def test_a_dense_partition_without_a_stream_yet_has_nothing_stored(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """As where it was added a moment ago; but some stream of the route has to be there."""
    mock.create_topic(topic, 2)
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    mock.produce(topic, [{"partition": 0, "value": b"1"}])
    await move_all(mock.bootstrap, nats_server.url, route)
    connection = await Connection.open(nats_server.url, name="test")
    await call(connection, "STREAM.DELETE.FLIGHTS-1")
    mock.produce(topic, [{"partition": 1, "value": b"2"}])

    with pytest.raises(TimeoutError, match=r"partition 1: 0 of 1"):
        await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=0)
    await call(connection, "STREAM.DELETE.FLIGHTS-0")
    await connection.close()
    with pytest.raises(ConfigurationError, match="FLIGHTS-0: stream not found"):
        await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=0)


async def test_it_asks_again_while_the_stream_has_no_leader(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    route = await moved(mock, nats_server, topic)
    await move_all(mock.bootstrap, nats_server.url, route)
    silent = iter(range(3))
    request = Connection.request

    async def unanswered(self: Connection, subject: str, *rest: Any, **more: Any) -> Message:
        if "MSG.GET" in subject and next(silent, None) is not None:
            raise ConnectionLost(f"{self.url} gave no answer within 5 s")
        return await request(self, subject, *rest, **more)

    monkeypatch.setattr(Connection, "request", unanswered)
    goal = await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=30)

    assert goal == {0: 0, 1: 2}
    [told] = waits(caplog)
    assert f"the barrier of topic {topic} waits: JetStream at {nats_server.url}" in told
    assert "no answer within 5 s" in told


async def test_a_server_that_restarts_is_waited_for(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    route = await moved(mock, nats_server, topic)
    asked: list[str] = []
    request = Connection.request

    async def note(self: Connection, subject: str, *rest: Any, **more: Any) -> Message:
        asked.append(subject)
        return await request(self, subject, *rest, **more)

    monkeypatch.setattr(Connection, "request", note)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(
            barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route), name="barrier"
        )
        await until(lambda: len(asked) > 0)
        nats_server.kill()
        await until(lambda: len(waits(caplog)) > 0)
        await nats_server.restart()
        await move_all(mock.bootstrap, nats_server.url, route)

    assert waiting.result() == {0: 0, 1: 2}


async def test_a_partition_without_a_leader_is_waited_for(
    nats_server: Server, mock: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    route = await moved(mock, nats_server, topic)
    await move_all(mock.bootstrap, nats_server.url, route)
    assert mock.mock is not None
    mock.mock.set_leader(topic, 1, -1)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(
            barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route), name="barrier"
        )
        await until(lambda: len(waits(caplog)) > 0)
        mock.mock.set_leader(topic, 1, 1)

    assert waiting.result() == {0: 0, 1: 2}
    assert f"Kafka at {mock.bootstrap}" in waits(caplog)[0]


async def test_who_is_still_away_when_time_is_up_is_named(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route = await moved(mock, nats_server, topic)
    assert mock.mock is not None
    mock.mock.set_leader(topic, 1, -1)

    with pytest.raises(Unreachable, match=r"Kafka at .*; so still after 0.3 s"):
        await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=0.3)
