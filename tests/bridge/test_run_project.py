"""A whole project at once: many routes, topics by pattern, new ones too; one failure alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest

from millstream_bridge import ConfigurationError, Route
from millstream_bridge.moving.sharing import Members
from millstream_bridge.operation.fleet import Fleet
from millstream_bridge.project.file import Project, load_project
from millstream_coordinator import Membership, Target
from tests.bridge.moves import move_all, offsets, stored_records, until
from tests.bridge.test_cli import ready, run, started, told_to_end
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


def a_file(folder: Path, kafka: str, nats: str, *more: str) -> Path:
    file = folder / "project.toml"
    file.write_text(
        f'[kafka]\nbootstrap = "{kafka}"\n[nats]\nurl = "{nats}"\n'
        "[[route]]\ntopics = 'orders\\..*'\nstream = '{topic}'\n"
        "subject = '{topic}.{partition}.{key}'\n" + "\n".join(more)
    )
    return file


def route_of(topic: str) -> Route:
    return Route(topic=topic, stream=topic.replace(".", "-"), subject="{topic}.{partition}.{key}")


def fill(kafka: Kafka, topic: str, count: int) -> None:
    kafka.create_topic(topic, 2)
    kafka.produce(topic, [{"partition": n % 2, "key": b"k", "value": b"v"} for n in range(count)])


def one_good_one_gone(folder: Path, kafka: Kafka, server: Server) -> Path:
    """A project of two topics, of which one is not there."""
    fill(kafka, "orders.eu", 4)
    gone = '[[route]]\ntopic = "gone"\nstream = "GONE"\nsubject = "gone.{partition}"\n'
    return a_file(folder, kafka.bootstrap, server.url, gone)


async def test_a_project_is_run_waited_for_and_proven(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders.eu", "orders.us", "else"):
        fill(mock, name, 4)
    file = a_file(tmp_path, mock.bootstrap, nats_server.url)
    project = ("--project", str(file))

    moved = await asyncio.to_thread(run, "run", *project, "--stop-at-end", "--json")
    waited = await asyncio.to_thread(run, "barrier", *project, "--json")
    one = ("--route", "orders-us", "--json")
    proven = await asyncio.to_thread(run, "verify", *project, *one)

    assert (moved.returncode, waited.returncode, proven.returncode) == (0, 0, 0), moved.stderr
    told = json.loads(moved.stdout)
    assert (told["schema"], told["failed"]) == ("millstream.bridge.run-project/1", 0)
    assert [(it["topic"], it["records"]) for it in told["routes"]] == [
        ("orders.eu", 4),
        ("orders.us", 4),
    ]
    assert [it["positions"] for it in json.loads(waited.stdout)["routes"]] == [
        {"0": 2, "1": 2},
        {"0": 2, "1": 2},
    ]
    proof = json.loads(proven.stdout)
    assert (proof["schema"], proof["equal"]) == ("millstream.bridge.verify-project/1", True)
    assert [it["topic"] for it in proof["routes"]] == ["orders.us"]


async def test_a_route_that_cannot_go_on_is_told_and_the_others_do(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    file = one_good_one_gone(tmp_path, mock, nats_server)

    done = await asyncio.to_thread(
        run, "run", "--project", str(file), "--stop-at-end", "--report", str(tmp_path / "report")
    )

    assert done.returncode == 2
    assert "bridge gone → GONE stopped: topic gone at " in done.stderr
    assert done.stderr.splitlines()[-1].startswith("millstream bridge: topic gone")
    eu, failed = sorted(
        json.loads((tmp_path / "report").read_text())["routes"], key=lambda it: it["ended"]
    )
    assert (eu["topic"], eu["records"]) == ("orders.eu", 4)
    assert (failed["topic"], failed["ended"]) == ("gone", "error")


async def test_a_route_that_cannot_be_proven_is_told_and_the_others_are_proven(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    file = one_good_one_gone(tmp_path, mock, nats_server)
    await move_all(mock.bootstrap, nats_server.url, route_of("orders.eu"))

    shown = await asyncio.to_thread(run, "verify", "--project", str(file))
    told = await asyncio.to_thread(run, "verify", "--project", str(file), "--json")

    assert (shown.returncode, told.returncode) == (2, 2)
    assert "gone → GONE NOT PROVEN: topic gone at " in shown.stdout
    assert "orders.eu → orders-eu equal: 4 records" in shown.stdout
    assert shown.stderr.startswith("millstream bridge: topic gone at ")
    document = json.loads(told.stdout)
    assert document["equal"] is False
    assert [(it["topic"], it["equal"], "error" in it) for it in document["routes"]] == [
        ("gone", False, True),
        ("orders.eu", True, False),
    ]


async def test_a_route_that_is_not_stored_in_time_leaves_what_the_others_have_reached(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders.eu", "orders.us"):
        fill(mock, name, 4)
        await move_all(mock.bootstrap, nats_server.url, route_of(name))
    mock.produce("orders.us", [{"partition": 0, "value": b"late"}])
    file = a_file(tmp_path, mock.bootstrap, nats_server.url)
    words = ("--project", str(file), "--timeout", "0.3")

    shown, told = await asyncio.gather(
        asyncio.to_thread(run, "barrier", *words),
        asyncio.to_thread(run, "barrier", *words, "--json"),
    )

    assert (shown.returncode, told.returncode) == (1, 1)
    assert shown.stdout.splitlines() == [
        "barrier orders.eu → orders-eu: all stored; next offsets by partition: 0: 2, 1: 2"
    ]
    assert "partition 0: 2 of 3" in shown.stderr
    eu, us = json.loads(told.stdout)["routes"]
    assert (eu["stored"], eu["positions"]) == (True, {"0": 2, "1": 2})
    assert (us["stored"], "positions" in us) == (False, False)
    assert "partition 0: 2 of 3" in us["error"]


async def test_online_a_route_that_cannot_be_proven_leaves_the_others_rounds(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    file = one_good_one_gone(tmp_path, mock, nats_server)
    await move_all(mock.bootstrap, nats_server.url, route_of("orders.eu"))
    report = tmp_path / "report.json"
    words = ("--project", str(file), "--online", "--every", "0.01", "--report", str(report))
    lines: list[str] = []

    with started("verify", *words) as process:
        assert process.stderr is not None
        while not any("NOT PROVEN" in it for it in lines[:-1]) or "equal" not in lines[-1]:
            lines.append(await asyncio.to_thread(process.stderr.readline))
            assert lines[-1], lines
        told_to_end(process, "SIGTERM")
    document = json.loads(report.read_text())
    alone = await asyncio.to_thread(run, "verify", *words, "--route", "gone")

    assert (process.returncode, alone.returncode) == (2, 2)
    assert sum("gone → GONE NOT PROVEN: topic gone at " in it for it in lines) == 1
    assert [(it["topic"], "error" in it) for it in document["routes"]] == [
        ("gone", True),
        ("orders.eu", False),
    ]
    assert alone.stderr.splitlines()[-1].startswith("millstream bridge: topic gone at ")


async def test_online_a_difference_in_one_route_ends_all(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders.eu", "orders.us"):
        fill(mock, name, 4)
        await move_all(mock.bootstrap, nats_server.url, route_of(name))
    client = await nats.connect(nats_server.url)
    try:
        source = {"Millstream-Source": "orders.us 0 1 1357034400000 c"}
        await client.jetstream().publish("orders.us.0.k", b"again", headers=source)
    finally:
        await client.close()
    file = a_file(tmp_path, mock.bootstrap, nats_server.url)

    done = await asyncio.to_thread(run, "verify", "--project", str(file), "--online", "--json")

    assert done.returncode == 1, done.stderr
    verdicts = {it["topic"]: it["equal"] for it in json.loads(done.stdout)["routes"]}
    assert verdicts["orders.us"] is False


@pytest.mark.parametrize("command", ["run", "back"])
async def test_a_ready_file_that_cannot_be_written_ends_all_routes(
    real_nats_server: Server, mock: Kafka, tmp_path: Path, command: str
) -> None:
    """As on a disk that is full by then: whoever waits for the file would wait for ever."""
    for name in ("orders.eu", "orders.us"):
        fill(mock, name, 4)
        await move_all(mock.bootstrap, real_nats_server.url, route_of(name))
    file = a_file(tmp_path, mock.bootstrap, real_nats_server.url)
    too_long = tmp_path / ("r" * 252)  # with what is put before it to be renamed

    words = ("--project", str(file), "--ready-file", str(too_long))
    done = await asyncio.to_thread(run, command, *words)

    assert done.returncode == 2
    assert "stopped: " not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"millstream bridge: cannot write {too_long}: ")


async def test_who_is_told_to_end_while_it_joins_leaves_its_group(
    real_nats_server: Server, mock: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as it takes, and nobody has to find out by its silence."""
    fill(mock, "orders.eu", 4)
    project = load_project(a_file(tmp_path, mock.bootstrap, real_nats_server.url))
    fleet = Fleet(project, tell=lambda _: None, on_ready=lambda _: None, group="movers")
    begin, stop = Members._begin, Membership.stop
    joining: list[Members] = []

    async def told_to_end_then(self: Members) -> None:
        joining.append(self)
        await begin(self)
        await until(lambda: len(self.held) > 0)
        fleet.stop()
        await asyncio.Event().wait()

    async def slow_stop(self: Membership) -> None:
        await asyncio.sleep(0.2)  # longer than one is let alone who is cancelled
        await stop(self)

    monkeypatch.setattr(Members, "_begin", told_to_end_then)
    monkeypatch.setattr(Membership, "stop", slow_stop)
    async with asyncio.timeout(60):
        outcomes = await fleet.run(stop_at_end=False)

    client = await nats.connect(real_nats_server.url)
    try:
        view = await Target(client, "movers").view()
    finally:
        await client.close()
        await joining[0].leave()  # should it not have
    assert (outcomes, dict(view.members)) == ([], {})


async def test_a_run_goes_on_when_nobody_reads_what_it_says(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    fill(mock, "orders.eu", 4)
    file = a_file(tmp_path, mock.bootstrap, nats_server.url)
    ready_file = tmp_path / "ready.json"

    with started("run", "--project", str(file), "--ready-file", str(ready_file)) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        await ready(ready_file, process)
        out, _ = told_to_end(process, "SIGTERM")

    assert process.returncode == 0
    assert out.startswith("bridge orders.eu → orders-eu: stopped; ")


@asynccontextmanager
async def running(project: Project, ready: list[str]) -> AsyncIterator[Fleet]:
    fleet = Fleet(
        project,
        tell=lambda _: None,
        on_ready=lambda routes: ready.extend(it.topic for it in routes),
        look_for_topics_s=0.05,
    )
    work = asyncio.create_task(fleet.run(stop_at_end=False))
    try:
        yield fleet
    finally:
        fleet.stop()
        outcomes = await work
        assert [it.error for it in outcomes] == [None] * len(outcomes)


async def test_a_topic_that_comes_while_running_gets_its_bridge(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    fill(mock, "orders.eu", 4)
    ready: list[str] = []
    project = load_project(a_file(tmp_path, mock.bootstrap, nats_server.url))

    async with running(project, ready) as fleet:
        await until(lambda: ready == ["orders.eu"])
        fill(mock, "orders.us", 6)
        await until(
            lambda: (
                "orders.us" in fleet.bridges and fleet.bridges["orders.us"].progress.records == 6
            )
        )

    assert offsets(await stored_records(nats_server.url, route_of("orders.us"))) == {
        0: [0, 1, 2],
        1: [0, 1, 2],
    }


async def test_a_project_without_topics_yet_says_so(
    nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    project = load_project(a_file(tmp_path, mock.bootstrap, nats_server.url))
    fleet = Fleet(project, tell=lambda _: None, on_ready=lambda _: None)

    with pytest.raises(ConfigurationError, match=r"no topic at .* matches any route"):
        await fleet.run(stop_at_end=True)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--topic", "t"], "--topic is the project's to say"),
        (["--shared"], "--shared is the project's to say"),
        (["--route", "none"], "no route none (there are: orders-eu)"),
    ],
)
def test_options_that_do_not_go_with_a_project_are_named(
    mock: Kafka, tmp_path: Path, words: list[str], complaint: str
) -> None:
    fill(mock, "orders.eu", 1)
    file = a_file(tmp_path, mock.bootstrap, "nats://127.0.0.1:1")

    done = run("run", "--project", str(file), *words)

    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert complaint in done.stderr
