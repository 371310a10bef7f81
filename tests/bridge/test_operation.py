"""What a running bridge tells: metrics, health, logs, status."""

import asyncio
import json
import logging
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from millstream_bridge import ConfigurationError, Unreachable
from millstream_bridge.back.position import StreamFacts
from millstream_bridge.back.progress import BackProgress
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.moving.progress import State, route_at_work
from millstream_bridge.moving.runner import Bridge
from millstream_bridge.operation.figures import back_figures, partition_figures
from millstream_bridge.operation.fleet import Fleet
from millstream_bridge.operation.logs import log_json
from millstream_bridge.operation.metrics import FleetMetrics
from millstream_bridge.operation.status import (
    BACK_SCHEMA,
    SCHEMA,
    SUBJECT,
    answering,
    ask,
    fleet_status,
)
from millstream_bridge.operation.web import health, serving
from millstream_bridge.project.file import Project
from millstream_bridge.project.rule import Rule
from tests.bridge.moves import a_route, until
from tests.bridge.test_back import fill, publish
from tests.bridge.test_cli import arguments, ready, run, started
from tests.bridge.topics import transactional
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


def serve(fleet: Fleet, address: str = "127.0.0.1:0") -> AbstractAsyncContextManager[str]:
    return serving(address, FleetMetrics(fleet).page, lambda: health(fleet.health))


def tells(fleet: Fleet, target: NatsTarget) -> AbstractAsyncContextManager[None]:
    return answering(target, lambda: fleet_status(fleet))


async def answers_of(target: NatsTarget) -> list[dict[str, Any]]:
    """What is answered to the first question that anybody answers."""
    async with asyncio.timeout(60):
        while not (found := await ask(target, wait_s=0.2)):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.05)  # it is not waited for where nobody listens yet
        return found


async def status_that_tells(of: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``status`` when it has heard of something: who is busy answers too late now and then."""
    async with asyncio.timeout(60):
        while True:
            done = await asyncio.to_thread(run, "status", "--wait", "0.3", *words)
            if of in done.stdout:
                return done


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
        serve(fleet) as url,
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
        serve(fleet) as url,
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
    progress.ends = {0: 100, 1: 50, 2: 7, 3: 9, 4: 100, 5: 100}
    progress.positions.update({0: 90, 1: 50, 4: 98, 5: 98})
    progress.read = {0: 100, 1: 50, 2: 4, 3: 9, 4: 100, 5: 100}
    progress.due = {0: 100, 1: 50, 2: 4, 3: 9, 4: 98, 5: 99}
    progress.newest_ms = dict.fromkeys((0, 1, 4, 5), 1_000_000)

    found = partition_figures(bridge, now_s=1_005.0)

    lags = {p: (it.lag, it.lag_bytes, it.lag_seconds) for p, it in found.items()}
    assert lags == {
        0: (10, 2_000, 5.0),
        1: (0, 0, 0.0),
        2: (3, 600, None),
        3: (0, 0, 0.0),
        4: (0, 0, 0.0),  # behind its newest record there is none
        5: (2, 400, 5.0),  # there is none behind one that is not stored yet
    }


async def test_status_is_told_to_whoever_asks(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x"} for _ in range(5)])
    target = NatsTarget(url=real_nats_server.url)

    assert await ask(target, wait_s=0.1) == []
    async with running(mock, real_nats_server, topic) as fleet, tells(fleet, target):
        await until(lambda: topic in fleet.bridges and fleet.bridges[topic].progress.records == 5)
        found = await answers_of(target)

    [answer] = found
    assert (answer["route"], answer["state"], answer["records"]) == (topic, "moving", 5)
    assert answer["partitions"]["0"]["position"] == 5
    assert answer["lag"] == 0


def an_answer(**other: Any) -> dict[str, Any]:
    """As a bridge gives one, but for what a test has otherwise."""
    return {
        "schema": SCHEMA,
        "process": {"host": "h", "pid": 1, "run": "a", "uptime_s": 1.0},
        "route": "r",
        "topic": "t",
        "state": "moving",
        "error": None,
        "records": 7,
        "lag": 0,
        "partitions": {},
    } | other


@asynccontextmanager
async def answering_with(
    server: Server, answer: Callable[[Msg], Awaitable[None]]
) -> AsyncIterator[None]:
    """Somebody who answers whoever asks how bridges stand."""
    client = await nats.connect(server.url)
    try:
        await client.subscribe(SUBJECT, cb=answer)
        await client.flush()
        yield
    finally:
        await client.close()


async def test_who_answers_otherwise_is_passed_over(real_nats_server: Server) -> None:
    """Anybody may listen on a subject."""
    answers = [b"hello", b"[1]", b"3", b"\xff", b'{"schema":"else/1"}', b"[" * 100_000]
    bare = {"schema": SCHEMA, "route": "r", "process": {"host": "h", "pid": 1}}
    otherwise: list[dict[str, Any]] = [
        {"records": "x"},
        {"route": 3},
        {"partitions": {"0": 1}},
        {"schema": BACK_SCHEMA},
        {"process": {"host": "h", "pid": 1, "member": 5}},
    ]
    answers.append(json.dumps(an_answer(route="b?d")).encode().replace(b"?", b"\xff"))
    answers += [json.dumps(it).encode() for it in (bare, *(an_answer(**it) for it in otherwise))]

    async def answer(message: Msg) -> None:
        for data in (*answers, json.dumps(an_answer()).encode()):
            await message.respond(data)

    async with answering_with(real_nats_server, answer):
        found = await answers_of(NatsTarget(url=real_nats_server.url))

    assert [{**it, "records_per_second": None} for it in found] == [
        {**an_answer(), "records_per_second": None}
    ]


async def test_where_nobody_listens_nothing_is_waited_for(nats_server: Server) -> None:
    async with asyncio.timeout(30):
        assert await ask(NatsTarget(url=nats_server.url), wait_s=60) == []


async def test_the_rate_is_what_came_between_two_answers(nats_server: Server) -> None:
    """By the clock of who answers; who answers once is not known to have one."""
    asked = 0

    async def answer(message: Msg) -> None:
        nonlocal asked
        asked += 1
        process = {"host": "h", "pid": 1, "run": "a", "uptime_s": 10.0 + 2.0 * asked}
        for route in ("both", "first")[: 3 - asked]:
            document = an_answer(route=route, records=1_000 * asked, process=process)
            await message.respond(json.dumps(document).encode())

    async with answering_with(nats_server, answer):
        found = await ask(NatsTarget(url=nats_server.url), wait_s=1.0)

    assert asked == 2
    assert [(it["route"], it["records"]) for it in found] == [("both", 2_000), ("first", 1_000)]
    assert [it["records_per_second"] for it in found] == [500.0, None]


async def test_processes_of_one_name_and_number_are_told_apart(nats_server: Server) -> None:
    """As of containers that share a host's name: each of them is process 1."""

    async def answer(message: Msg) -> None:
        for name, records in (("a", 100), ("b", 90_000)):
            process = {"host": "h", "pid": 1, "run": name, "uptime_s": 1.0}
            document = an_answer(records=records, process=process)
            await message.respond(json.dumps(document).encode())

    async with answering_with(nats_server, answer):
        found = await ask(NatsTarget(url=nats_server.url), wait_s=0.5)

    assert [(it["records"], it["records_per_second"]) for it in found] == [
        (100, None),
        (90_000, None),
    ]


async def test_who_answers_and_leaves_counts(nats_server: Server) -> None:
    """The server then says of the second question that nobody listens."""
    client = await nats.connect(nats_server.url)

    async def answer(message: Msg) -> None:
        await message.respond(json.dumps(an_answer()).encode())

    try:
        subscription = await client.subscribe(SUBJECT, cb=answer)
        await subscription.unsubscribe(limit=1)
        await client.flush()
        found = await ask(NatsTarget(url=nats_server.url), wait_s=0.5)
    finally:
        await client.close()

    assert [it["route"] for it in found] == ["r"]


@pytest.mark.kafka
async def test_the_end_of_a_transaction_is_no_lag(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    """It takes an offset that no record ever has; while reading and at a start behind it."""
    a_real_kafka.create_topic(topic, 1)
    producer = transactional(a_real_kafka, topic)
    producer.begin_transaction()
    producer.produce(topic, b"x", partition=0)
    producer.commit_transaction(20)

    for _ in range(2):
        async with running(a_real_kafka, real_nats_server, topic) as fleet:
            await until(partial(is_read_to, fleet, topic, 2))
            [figures] = partition_figures(fleet.bridges[topic], now_s=time.time()).values()

        assert (figures.position, figures.end) == (1, 2)
        assert (figures.lag, figures.lag_seconds) == (0, 0.0)


def is_read_to(fleet: Fleet, topic: str, end: int) -> bool:
    """Whether the topic's one partition was read to this end, and something of it is stored."""
    bridge = fleet.bridges.get(topic)
    return (
        bridge is not None and bridge.progress.read == {0: end} and 0 in bridge.progress.positions
    )


async def test_a_way_back_tells_its_metrics_health_and_status(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    """By the command: what it serves, what it answers, and what ``status`` shows of it."""
    await fill(mock, real_nats_server, topic)
    await publish(real_nats_server, range(20))
    connection = await Connection.open(real_nats_server.url, name="test")
    end = (await StreamFacts.read(connection, "FLIGHTS")).last_seq
    await connection.close()
    ready_file = tmp_path / "ready"
    words = [
        *(*arguments(mock, real_nats_server, topic), "--shared", "--log-json"),
        *("--http", "127.0.0.1:0", "--ready-file", str(ready_file), "--end-with-stdin"),
    ]
    with started("back", *words) as process:
        url = (await ready(ready_file, process))["http"]
        page = ""
        async with asyncio.timeout(60):
            while f'millstream_bridge_back_records_total{{route="{topic}"}} 20.0' not in page:
                _, page = await asyncio.to_thread(get, f"{url}/metrics")
                await asyncio.sleep(0.05)
        code, told = await asyncio.to_thread(get, f"{url}/healthz")
        target = NatsTarget(url=real_nats_server.url)
        found = await answers_of(target)
        look = ["--nats", real_nats_server.url]
        shown = await status_that_tells(topic, *look)
        missing = await asyncio.to_thread(run, "status", *look, "--wait", "0.1", "--route", topic)
        other = await asyncio.to_thread(run, "status", *look, "--wait", "2", "--route", "other")
        _, logged = await asyncio.to_thread(process.communicate)

    lines = page.splitlines()
    for line in (
        f'millstream_bridge_back_from_kafka_total{{route="{topic}"}} 12.0',
        f'millstream_bridge_back_lag_messages{{route="{topic}"}} 0.0',
        f'millstream_bridge_back_lag_seconds{{route="{topic}"}} 0.0',
        f'millstream_bridge_back_position_seq{{route="{topic}",stream="FLIGHTS"}} {end + 1}.0',
        f'millstream_bridge_back_state{{route="{topic}",state="moving"}} 1.0',
    ):
        assert line in lines
    assert code == 200
    assert json.loads(told)["routes"] == {topic: {"state": "moving", "error": None}}
    (answer,) = found
    assert (answer["schema"], answer["route"], answer["state"]) == (BACK_SCHEMA, topic, "moving")
    assert (answer["records"], answer["from_kafka"], answer["lag"]) == (20, 12, 0)
    assert answer["positions"] == {"FLIGHTS": end + 1}
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[1].split()[2:6] == ["moving", topic, "20", "FLIGHTS"]
    assert missing.returncode == 1  # nobody moves it there
    assert "no running bridge moves it" in missing.stdout
    assert other.stdout == "other: no running bridge moves it\n"  # but there is one
    events = [json.loads(line) for line in logged.splitlines()]
    assert {it["event"] for it in events} == {"told"}


def test_a_way_backs_lag_is_told_in_messages_bytes_and_seconds() -> None:
    progress = BackProgress(records=10, payload_bytes=2_000, lag=3, newest_ns=1_000_000_000_000)

    behind = back_figures(progress, now_s=1_005.0)
    progress.newest_ns = progress.records = 0
    unknown = back_figures(progress, now_s=1_005.0)
    progress.lag = 0

    assert behind == (3, 600, 5.0)
    assert unknown == (3, None, None)
    assert back_figures(progress, now_s=1_005.0) == (0, None, 0.0)


async def test_status_of_a_server_that_is_not_there() -> None:
    with pytest.raises(Unreachable):
        await ask(NatsTarget(url="nats://127.0.0.1:1"), wait_s=0.1)


async def test_an_address_that_is_none_is_refused(mock: Kafka) -> None:
    project = Project(kafka=mock.bootstrap, nats=NatsTarget(), rules=())
    fleet = Fleet(project, tell=lambda line: None, on_ready=lambda routes: None)
    for address in ("nowhere", "127.0.0.1:99999"):
        with pytest.raises(ConfigurationError, match="--http"):
            async with serve(fleet, address):
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
