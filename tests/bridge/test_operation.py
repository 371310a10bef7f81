"""What a running bridge tells: metrics, health, logs, status."""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

import pytest

from millstream_bridge import ConfigurationError, Unreachable
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.moving.runner import Bridge, State, route_at_work
from millstream_bridge.operation.figures import partition_figures
from millstream_bridge.operation.fleet import Fleet
from millstream_bridge.operation.logs import log_json
from millstream_bridge.operation.status import answering, ask
from millstream_bridge.operation.web import serving
from millstream_bridge.project.file import Project
from millstream_bridge.project.rule import Rule
from tests.bridge.moves import a_route, until
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


@asynccontextmanager
async def running(kafka: Kafka, server: Server, *topics: str) -> AsyncIterator[Fleet]:
    """A fleet beside the block, with a route for each topic."""
    rules = tuple(
        Rule.of(a_route(topic, stream=topic.upper(), subject=f"{topic}.{{partition}}.{{key}}"))
        for topic in topics
    )
    project = Project(
        kafka=kafka.bootstrap, nats=NatsTarget(url=server.url), rules=rules, where="f"
    )
    ready = asyncio.Event()
    fleet = Fleet(project, tell=lambda line: None, on_ready=lambda routes: ready.set())
    run = asyncio.create_task(fleet.run(stop_at_end=False))
    try:
        yield fleet
    finally:
        fleet.stop()
        await run


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_metrics_and_health_of_every_route(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 2)
    mock.produce(topic, [{"partition": n % 2, "key": b"k", "value": b"x" * 100} for n in range(30)])

    async with (
        running(mock, real_nats_server, topic, "not-there") as fleet,
        serving(fleet, "127.0.0.1:0") as url,
    ):
        await until(lambda: topic in fleet.bridges and fleet.bridges[topic].progress.records == 30)
        await until(lambda: "not-there" in fleet.outcomes)
        _, page = await asyncio.to_thread(get, f"{url}/metrics")
        code, health = await asyncio.to_thread(get, f"{url}/healthz")

    lines = page.splitlines()
    assert f'millstream_bridge_records_total{{route="{topic}"}} 30.0' in lines
    assert f'millstream_bridge_payload_bytes_total{{route="{topic}"}} 3000.0' in lines
    assert f'millstream_bridge_lag_records{{partition="1",route="{topic}"}} 0.0' in lines
    assert f'millstream_bridge_lag_seconds{{partition="1",route="{topic}"}} 0.0' in lines
    assert f'millstream_bridge_position_offset{{partition="0",route="{topic}"}} 15.0' in lines
    assert f'millstream_bridge_state{{route="{topic}",state="moving"}} 1.0' in lines
    assert 'millstream_bridge_failed{route="not-there"} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
    assert code == 503  # one of two has failed
    routes = json.loads(health)["routes"]
    assert routes[topic] == {"state": "moving", "error": None}
    assert "not-there" in routes["not-there"]["error"]


async def test_all_is_well_while_every_route_is_moved(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)

    async with (
        running(mock, real_nats_server, topic) as fleet,
        serving(fleet, "127.0.0.1:0") as url,
    ):
        await until(
            lambda: topic in fleet.bridges and fleet.bridges[topic].progress.state is State.MOVING
        )
        code, health = await asyncio.to_thread(get, f"{url}/healthz")

    assert code == 200
    assert json.loads(health)["status"] == "ok"


def test_lag_is_told_in_records_bytes_and_seconds() -> None:
    bridge = Bridge(kafka="127.0.0.1:1", nats="nats://127.0.0.1:1", route=a_route("t"))
    progress = bridge.progress
    progress.records, progress.payload_bytes = 10, 2_000
    progress.ends = {0: 100, 1: 50, 2: 7, 3: 9}
    progress.positions.update({0: 90, 1: 50})
    progress.read = {2: 4, 3: 9}
    progress.newest_ms = {0: 1_000_000, 1: 1_000_000}

    found = partition_figures(bridge, now_s=1_005.0)

    assert {p: it.lag for p, it in found.items()} == {0: 10, 1: 0, 2: 3, 3: 0}
    assert {p: it.lag_bytes for p, it in found.items()} == {0: 2_000, 1: 0, 2: 600, 3: 0}
    assert {p: it.lag_seconds for p, it in found.items()} == {0: 5.0, 1: 0.0, 2: None, 3: 0.0}


async def test_status_is_told_to_whoever_asks(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x"} for _ in range(5)])
    target = NatsTarget(url=real_nats_server.url)

    assert await ask(target, wait_s=0.1) == []
    async with running(mock, real_nats_server, topic) as fleet, answering(fleet, target):
        await until(lambda: topic in fleet.bridges and fleet.bridges[topic].progress.records == 5)
        found: list[dict[str, Any]] = []
        while not found:
            found = await ask(target, wait_s=0.2)

    [answer] = found
    assert (answer["route"], answer["state"], answer["records"]) == (topic, "moving", 5)
    assert answer["partitions"]["0"]["position"] == 5
    assert answer["lag"] == 0


async def test_status_of_a_server_that_is_not_there() -> None:
    with pytest.raises(Unreachable):
        await ask(NatsTarget(url="nats://127.0.0.1:1"), wait_s=0.1)


async def test_an_address_that_is_none_is_refused(mock: Kafka) -> None:
    project = Project(kafka=mock.bootstrap, nats=NatsTarget(), rules=())
    fleet = Fleet(project, tell=lambda line: None, on_ready=lambda routes: None)
    for address in ("nowhere", "127.0.0.1:99999"):
        with pytest.raises(ConfigurationError, match="--http"):
            async with serving(fleet, address):
                pass


def test_a_log_line_is_one_json_object_that_names_its_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = StringIO()
    monkeypatch.setattr("sys.stderr", written)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    token = route_at_work.set("flights")
    try:
        root.handlers = []
        log_json()
        logging.getLogger("millstream_bridge.test").warning(
            "gap of %d", 3, extra={"event": "gap", "partition": 1}
        )
    finally:
        route_at_work.reset(token)
        root.handlers, root.level = handlers, level

    line = json.loads(written.getvalue())
    assert (line["event"], line["route"], line["partition"]) == ("gap", "flights", 1)
    assert line["message"] == "gap of 3"
    assert line["level"] == "warning"
