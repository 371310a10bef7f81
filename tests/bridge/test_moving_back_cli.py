"""back, cutover and rollback as commands: reports, exit codes, one line per error, dry runs.

On nats-server alone: most of what the commands call is tried on both servers elsewhere.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nats
import pytest

from millstream_bridge import NatsTarget
from millstream_bridge.operation.group_moves import moves_of
from millstream_bridge.project.file import GroupMove, Project
from tests.bridge.test_back import PARTITIONS, fill, publish
from tests.bridge.test_cli import arguments, ready, run, started
from tests.bridge.test_cutover import commit, handled_by
from tests.bridge.test_operation import get, status_that_tells
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


async def test_a_group_moves_there_and_home_by_commands_with_proofs(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    route = await fill(mock, real_nats_server, topic)
    commit(mock, topic, topic, dict.fromkeys(range(PARTITIONS), 1))
    common = [*arguments(mock, real_nats_server, topic), "--shared"]
    group = ["--kafka-group", topic, "--group-is-stopped"]
    proof_file = tmp_path / "proof.json"

    dry = run("cutover", *common, *group)
    done = run("cutover", *common, *group, "--yes", "--report", str(proof_file))
    await handled_by(real_nats_server, route, topic, 9)
    await publish(real_nats_server, range(6))
    early = run("rollback", *common, *group, "--yes", "--timeout", "0", "--json")
    back = run("back", *common, "--stop-at-end", "--json")
    home = run("rollback", *common, *group, "--yes", "--json")

    assert dry.returncode == 0, dry.stderr
    assert "exact; nothing was changed: --yes does it" in dry.stdout
    assert done.returncode == 0, done.stderr
    assert "done and read back" in done.stdout
    proof = json.loads(proof_file.read_text())
    assert proof["schema"] == "millstream.bridge.cutover/1"
    assert (proof["exact"], proof["applied"], proof["problems"]) == (True, True, [])
    for cut in proof["partitions"].values():
        assert cut["records"]["handled_last"]["offset"] == 0
        assert cut["records"]["open_first"]["offset"] == cut["offset"] == 1
        assert cut["after"] == cut["next_seq"] == cut["records"]["open_first"]["seq"]
    assert early.returncode == 1
    refused = json.loads(early.stdout)
    assert (refused["exact"], refused["applied"]) == (False, False)
    assert "not in Kafka yet" in refused["problems"][0]
    told = json.loads(back.stdout)
    assert (told["schema"], told["records"], told["ended"]) == (
        "millstream.bridge.back/1",
        6,
        "end",
    )
    assert home.returncode == 0, home.stderr
    moved = json.loads(home.stdout)
    assert moved["schema"] == "millstream.bridge.rollback/1"
    assert {cut["after"] for cut in moved["partitions"].values()} == {4}


def write_project(file: Path, kafka: Kafka, server: Server, topic: str, *groups: str) -> None:
    """Two routes, of which only the first has its stream, and the groups: 'kafka group routes'."""
    text = f'[kafka]\nbootstrap = "{kafka.bootstrap}"\n[nats]\nurl = "{server.url}"\n'
    for name, stream, subject in ((topic, "FLIGHTS", "flights"), ("other", "OTHER", "other")):
        text += (
            f'[[route]]\ntopic = "{name}"\nstream = "{stream}"\nshared = true\n'
            f'subject = "{subject}.{{partition}}.{{key}}"\n'
        )
    for group in groups:
        old, new, *routes = group.split()
        text += f'[[group]]\nkafka = "{old}"\ngroup = "{new}"\nroutes = {json.dumps(routes)}\n'
    file.write_text(text)


async def test_a_project_moves_its_groups(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    await fill(mock, real_nats_server, topic)
    commit(mock, "old", topic, dict.fromkeys(range(PARTITIONS), 2))
    project = tmp_path / "millstream.toml"
    write_project(project, mock, real_nats_server, topic, f"old new {topic}")

    done = run("cutover", "--project", str(project), "--group-is-stopped", "--yes", "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "millstream.bridge.cutover-project/1"
    (route,) = found["routes"]
    assert (route["kafka_group"], route["group"], route["applied"]) == ("old", "new", True)


async def test_what_was_moved_beside_an_error_is_written_down(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    await fill(mock, real_nats_server, topic)
    mock.create_topic("other", 1)
    commit(mock, "old", topic, dict.fromkeys(range(PARTITIONS), 2))
    project, report = tmp_path / "millstream.toml", tmp_path / "report.json"
    write_project(project, mock, real_nats_server, topic, f"old new {topic}", "old2 new2 other")

    done = run(
        *("cutover", "--project", str(project), "--group-is-stopped", "--yes"),
        *("--report", str(report)),
    )

    assert done.returncode == 2
    assert "stream OTHER" in done.stderr
    assert "done and read back" in done.stdout
    (moved,) = json.loads(report.read_text())["routes"]
    assert (moved["kafka_group"], moved["applied"]) == ("old", True)


async def test_no_group_is_moved_if_one_has_no_route_of_its_own(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    await fill(mock, real_nats_server, topic)
    mock.create_topic("other", 1)
    commit(mock, "old", topic, dict.fromkeys(range(PARTITIONS), 2))
    project, report = tmp_path / "millstream.toml", tmp_path / "report.json"
    write_project(project, mock, real_nats_server, topic, f"old new {topic}", "old2 new2")

    done = run(
        *("cutover", "--project", str(project), "--group-is-stopped", "--yes"),
        *("--report", str(report)),
    )

    assert done.returncode == 2
    assert "group new2 would read 2 routes" in done.stderr
    assert (done.stdout, report.exists()) == ("", False)


async def test_without_a_group_the_missing_option_is_named(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)

    done = run("cutover", *arguments(mock, real_nats_server, topic))

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "millstream bridge: --kafka-group is missing, and there is no [[group]] in a project"
    ]


async def test_a_stream_that_is_not_there_is_one_line(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    common = arguments(mock, real_nats_server, topic)

    back = run("back", *common, "--stop-at-end")
    cut = run("cutover", *common, "--kafka-group", "g")

    for done in (back, cut):
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "stream FLIGHTS" in line
        assert "not found" in line


async def test_a_route_that_cannot_go_on_ends_alone(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    project = tmp_path / "project.toml"
    good, bad = f"{topic}-good", f"{topic}-bad"
    text = f'[kafka]\nbootstrap = "{mock.bootstrap}"\n[nats]\nurl = "{real_nats_server.url}"\n'
    client = await nats.connect(real_nats_server.url)
    try:
        for name, partition in ((bad, 9), (good, 0)):
            mock.create_topic(name, 1)
            await client.jetstream().add_stream(name=name, subjects=[f"{name}.>"])
            await client.jetstream().publish(f"{name}.{partition}.N1", b"native")
            subject = f"{name}.{{partition}}.{{key}}"
            text += f'[[route]]\ntopic = "{name}"\nstream = "{name}"\nsubject = "{subject}"\n'
    finally:
        await client.close()
    project.write_text(text)
    words = ["--project", str(project)]
    ready_file = tmp_path / "ready"

    done = run("back", *words, "--stop-at-end", "--json")
    with started(
        *("back", *words, "--http", "127.0.0.1:0", "--ready-file", str(ready_file)),
        "--end-with-stdin",
    ) as process:
        begun = await ready(ready_file, process)
        code, healthz = 200, ""
        async with asyncio.timeout(60):
            while code == 200:
                code, healthz = await asyncio.to_thread(get, f"{begun['http']}/healthz")
                await asyncio.sleep(0.05)
        _, page = await asyncio.to_thread(get, f"{begun['http']}/metrics")
        status = await status_that_tells(good, "--nats", real_nats_server.url, "--json")

    told = json.loads(done.stdout)
    reports = {it["topic"]: it for it in told["routes"]}
    reason = "partition 9, and the topic has 1 partitions"
    assert done.returncode == 1
    assert told["failed"] == 1
    assert (reports[good]["ended"], reports[good]["records"]) == ("end", 1)
    assert reports[bad]["ended"] == "error"
    assert reason in reports[bad]["error"]
    assert f"back {bad} → {bad} stopped: " in done.stderr
    assert reason in done.stderr.splitlines()[-1]
    states = json.loads(healthz)["routes"]
    assert (states[good]["state"], states[bad]["state"]) == ("moving", "ended")
    assert reason in states[bad]["error"]
    for name, failed in ((good, "0.0"), (bad, "1.0")):
        assert f'millstream_bridge_back_failed{{route="{name}"}} {failed}' in page
    assert status.returncode == 1
    errors = {it["route"]: it["error"] for it in json.loads(status.stdout)["backs"]}
    assert errors[good] is None
    assert reason in errors[bad]


def test_a_kafka_that_is_not_there_is_one_line_and_exit_code_3() -> None:
    common = ["--topic", "t", "--stream", "S", "--subject", "s.{partition}.{key}"]
    nowhere = ["--kafka", "127.0.0.1:1", "--nats", "nats://127.0.0.1:1"]

    with ThreadPoolExecutor() as both:  # as each waits for a Kafka that might come yet
        back = both.submit(run, "back", *common, *nowhere)
        cutover = both.submit(run, "cutover", *common, *nowhere, "--kafka-group", "g")

    for done in (back.result(), cutover.result()):
        assert done.returncode == 3, done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("kafka_group", "group", "moves"),
    [
        (None, None, [("old", "new", ("r",)), ("old2", "new2", ()), ("old2", "more", ("s",))]),
        ("old2", None, [("old2", "new2", ()), ("old2", "more", ("s",))]),
        ("old2", "more", [("old2", "more", ("s",))]),
        ("old", None, [("old", "new", ("r",))]),
        ("old", "new", [("old", "new", ("r",))]),
        ("old", "else", [("old", "else", ())]),
        ("other", None, [("other", "other", ())]),
        (None, "both", [("both", "both", ())]),
    ],
)
def test_a_group_that_is_named_is_the_projects_or_one_of_its_own(
    kafka_group: str | None, group: str | None, moves: list[tuple[str, str, tuple[str, ...]]]
) -> None:
    known = (
        GroupMove(kafka="old", group="new", routes=("r",)),
        GroupMove(kafka="old2", group="new2", routes=()),
        GroupMove(kafka="old2", group="more", routes=("s",)),
    )
    project = Project(kafka="k", nats=NatsTarget(), rules=(), groups=known)

    found = moves_of(project, kafka_group, group)

    assert [(it.kafka, it.group, it.routes) for it in found] == moves
