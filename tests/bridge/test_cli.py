"""The command as a user runs it: exit codes, one line on stderr, ready file, report, signals."""

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bridge.moves import a_route, move_all, until
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PROGRAM = [sys.executable, "-m", "millstream_bridge"]
SUBJECT = "flights.{partition}.{key}"


def arguments(kafka: Kafka, server: Server, topic: str) -> list[str]:
    return [
        *("--kafka", kafka.bootstrap, "--nats", server.url, "--topic", topic),
        *("--stream", "FLIGHTS", "--subject", SUBJECT),
    ]


def run(command: str, *rest: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, command, *rest], capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def started(command: str, *rest: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*PROGRAM, command, *rest],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def ready(path: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    await until(lambda: os.path.exists(path) or process.poll() is not None)  # noqa: PTH110
    assert process.poll() is None, process.communicate()
    facts: dict[str, Any] = json.loads(await asyncio.to_thread(path.read_text))
    return facts


async def test_run_verify_and_barrier_report_what_they_did_as_json(
    nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    mock.create_topic(topic, 2)
    mock.produce(topic, [{"partition": n % 2, "value": b"%d" % n} for n in range(10)])
    common = arguments(mock, nats_server, topic)
    report = tmp_path / "report.json"

    moved = run("run", *common, "--stop-at-end", "--report", str(report))
    proof = run("verify", *common, "--json")
    waited = run("barrier", *common, "--json")
    told_people = run("barrier", *common).stdout

    assert (moved.returncode, proof.returncode, waited.returncode) == (0, 0, 0)
    told = json.loads(report.read_text())
    assert told["schema"] == "millstream.bridge.run/1"
    assert (told["records"], told["ended"], told["positions"]) == (10, "end", {"0": 5, "1": 5})
    proved = json.loads(proof.stdout)
    assert proved["schema"] == "millstream.bridge.verify/1"
    assert (proved["equal"], proved["records"], proved["difference"]) == (True, 10, None)
    assert proved["partitions"]["0"]["kafka"] == proved["partitions"]["0"]["nats"]
    assert json.loads(waited.stdout) == {
        "schema": "millstream.bridge.barrier/1",
        "topic": topic,
        "stream": "FLIGHTS",
        "stored": True,
        "positions": {"0": 5, "1": 5},
    }
    done = "all stored; next offsets by partition: 0: 5, 1: 5"
    assert told_people == f"barrier {topic} → FLIGHTS: {done}\n"


async def test_verify_exits_with_1_and_locates_the_first_difference(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"1"}])
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    mock.produce(topic, [{"partition": 0, "value": b"2"}])

    proof = run("verify", *arguments(mock, nats_server, topic))

    assert proof.returncode == 1
    assert "partition 0 offset 1: the stream does not have this record" in proof.stdout


async def test_barrier_exits_with_1_when_time_is_up(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    mock.produce(topic, [{"partition": 0, "value": b"1"}])

    waited = run("barrier", *arguments(mock, nats_server, topic), "--timeout", "0.3", "--json")

    assert waited.returncode == 1
    assert waited.stderr.count("\n") == 1
    assert "partition 0: 0 of 1" in waited.stderr
    told = json.loads(waited.stdout)
    assert (told["topic"], told["stored"]) == (topic, False)
    assert waited.stderr == f"millstream bridge: {told['error']}\n"


ROUTE = ("--topic", "t", "--stream", "T", "--subject", SUBJECT)


@pytest.mark.parametrize(
    "words", [("permissions", "--kafka", "k", *ROUTE), ("--help",), ("run", "--help")]
)
def test_an_output_that_is_full_is_one_line(words: Sequence[str]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")

    with full.open("w") as output:
        done = subprocess.run(
            [*PROGRAM, *words],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 2
    assert done.stderr == (
        "millstream bridge: the output cannot be written: No space left on device\n"
    )


def told_to_end(process: subprocess.Popen[str], end: str) -> tuple[str, str]:
    """End it in one way; what it said on standard output and on standard error.

    Its standard input stays open when it is not the way: ``communicate`` would close it at once.
    """
    assert process.stdin is not None
    if end == "stdin":
        process.stdin.close()
        process.stdin = None
    else:
        process.send_signal(signal.Signals[end])
    process.wait(timeout=20)
    return process.communicate()


@pytest.mark.parametrize(("end", "code"), [("SIGTERM", 0), ("SIGINT", 130), ("stdin", 0)])
@pytest.mark.parametrize(
    ("command", "begins"),
    [
        ("run", "is ready and goes on after 0 offsets stored before\n"),
        ("back", "is ready and begins with FLIGHTS sequence 1\n"),
    ],
)
async def test_a_long_command_says_when_it_is_ready_and_ends_cleanly(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    tmp_path: Path,
    command: str,
    begins: str,
    end: str,
    code: int,
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(100)])
    file = tmp_path / "ready.json"
    common = arguments(mock, nats_server, topic)
    if command == "back":
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    with started(command, *common, "--ready-file", str(file), "--end-with-stdin") as process:
        facts = await ready(file, process)
        out, said = told_to_end(process, end)

    assert process.returncode == code
    assert begins in said
    assert ": stopped; " in out
    assert facts == {
        "pid": process.pid,
        "kafka": mock.bootstrap,
        "nats": nats_server.url,
        "topic": topic,
        "stream": "FLIGHTS",
    }


@pytest.mark.parametrize(("end", "code"), [("SIGTERM", 0), ("SIGINT", 130), ("stdin", 0)])
async def test_kafka_mock_serves_its_topics_until_it_is_told_to_end(
    tmp_path: Path, end: str, code: int
) -> None:
    file = tmp_path / "ready.json"
    topics = ["--topic", "flights:3", "--topic", "other:1"]

    with started("kafka-mock", *topics, "--ready-file", str(file), "--end-with-stdin") as process:
        facts = await ready(file, process)
        Kafka(kind="mock", bootstrap=facts["kafka"]).produce(
            "flights", [{"partition": 2, "value": b"v"}]
        )
        out, _ = told_to_end(process, end)

    assert process.returncode == code
    assert facts == {"pid": process.pid, "kafka": facts["kafka"]}
    assert facts["kafka"] in out


@pytest.mark.parametrize(
    ("rest", "code", "complaint"),
    [
        (["run"], 2, "--kafka is missing (or MILLSTREAM_BRIDGE_KAFKA); or name a file"),
        (["run", "--kafka", "k", "--topic", "t"], 2, "--stream is missing"),
        (
            ["run", "--kafka", "k", "--topic", "t", "--stream", "S", "--subject", "a.{key}"],
            2,
            "needs {partition} once",
        ),
        (
            [
                *("verify", "--kafka", "127.0.0.1:1", "--topic", "t", "--stream", "S"),
                *("--subject", SUBJECT),
            ],
            3,
            "Kafka at 127.0.0.1:1 is unreachable",
        ),
        (
            ["barrier", "--kafka", "k", "--route", "a", "--route", "b"],
            2,
            "--route: more than one route needs a --project",
        ),
        (
            [
                *("verify", "--kafka", "k", "--topic", "t", "--stream", "S"),
                *("--subject", SUBJECT, "--online", "--sample", "3"),
            ],
            2,
            "--sample does not go with --online",
        ),
        (
            [
                *("run", "--kafka", "127.0.0.1:1", "--topic", "t", "--stream", "S"),
                *("--subject", SUBJECT, "--group", "g", "--stop-at-end"),
            ],
            2,
            "--stop-at-end does not go with --group",
        ),
        (["plan", "--check", "p.toml", "--kafka", "k"], 2, "plan --check takes all from the file"),
        (["plan", "--check", "p.toml", "--topics", "a"], 2, "plan --check takes all from the file"),
        (["plan", "--kafka", "127.0.0.1:1", "--out", "/nowhere/p"], 2, "cannot write /nowhere/p"),
        (["kafka-mock", "--topic", "flights"], 2, "is not NAME:PARTITIONS"),
        (["kafka-mock", "--topic", "flights:99999999999"], 2, "with 1 to 9999 partitions"),
        (["kafka-mock", "--topic", "a:1", "--topic", "a:2"], 2, "--topic a is given twice"),
        (["run", "--ready-file", "/nowhere/r"], 2, "cannot write /nowhere/r: no files can be made"),
        (["verify", "--report", "/dev/null"], 2, "cannot write /dev/null: it is no file"),
        (["verify", "--report", "r" * 300], 2, "File name too long"),
        (
            ["kafka-mock", "--topic", "a:1", "--ready-file", "/nowhere/ready"],
            2,
            "cannot write /nowhere/ready",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_its_exit_code(
    rest: list[str], code: int, complaint: str
) -> None:
    done = run(rest[0], *rest[1:])

    assert done.returncode == code
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "end", "code"),
    [
        ("run", "SIGTERM", 0),
        ("run", "SIGINT", 130),
        ("run", "stdin", 0),
        ("back", "SIGINT", 130),
        ("back", "stdin", 0),
    ],
)
def test_a_command_that_waits_for_a_dead_kafka_ends_at_once_when_told_to(
    tmp_path: Path, command: str, end: str, code: int
) -> None:
    """Its first question to Kafka would give up after five seconds, with another exit code."""
    silent = socket.create_server(("127.0.0.1", 0))
    address = "{}:{}".format(*silent.getsockname())
    project = tmp_path / "project.toml"
    project.write_text(
        f'[kafka]\nbootstrap = "{address}"\n[nats]\nurl = "nats://127.0.0.1:1"\n'
        f'[[route]]\ntopics = "t.*"\nstream = "{{topic}}"\nsubject = "{{topic}}.{SUBJECT}"\n'
    )
    words = (command, "--project", str(project), "--end-with-stdin")

    with silent, started(*words) as process:
        silent.settimeout(20)
        peer, _ = silent.accept()  # it has come as far as asking
        with peer:
            told_to_end(process, end)

    assert process.returncode == code


@pytest.mark.parametrize("more", [[], ["--group", "movers"]])
def test_a_run_that_waits_for_a_silent_nats_ends_at_once_when_told_to(
    mock: Kafka, topic: str, more: list[str]
) -> None:
    mock.create_topic(topic, 1)
    silent = socket.create_server(("127.0.0.1", 0))
    url = "nats://{}:{}".format(*silent.getsockname())
    route = ["--topic", topic, "--stream", "S", "--subject", SUBJECT]

    with silent, started("run", "--kafka", mock.bootstrap, "--nats", url, *route, *more) as process:
        silent.settimeout(20)
        peers = [silent.accept()[0] for _ in range(2)]  # who tells the status, and who moves
        told_to_end(process, "SIGTERM")
        for peer in peers:
            peer.close()

    assert process.returncode == 0


def test_without_a_command_the_help_is_shown_and_nothing_done() -> None:
    done = subprocess.run(PROGRAM, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "verify" in done.stdout
    assert done.stderr == ""


def test_kafka_options_that_are_no_json_name_the_variable() -> None:
    done = subprocess.run(
        [*PROGRAM, "run", "--kafka", "k", "--topic", "t", "--stream", "S", "--subject", SUBJECT],
        env={"MILLSTREAM_BRIDGE_KAFKA_OPTIONS": "{bad"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert "MILLSTREAM_BRIDGE_KAFKA_OPTIONS is no JSON object" in done.stderr
    assert done.stderr.count("\n") == 1


def test_options_come_from_the_environment_too() -> None:
    done = subprocess.run(
        [*PROGRAM, "run"],
        env={"MILLSTREAM_BRIDGE_KAFKA": "k:1", "MILLSTREAM_BRIDGE_TOPIC": "bad topic"}
        | {"MILLSTREAM_BRIDGE_STREAM": "S", "MILLSTREAM_BRIDGE_SUBJECT": SUBJECT},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert "'bad topic' is no Kafka topic name" in done.stderr


@pytest.mark.parametrize("more", [[], ["--log-json"]])
def test_a_level_that_is_none_is_one_line(more: list[str]) -> None:
    route = ["--topic", "t", "--stream", "S", "--subject", SUBJECT]

    done = subprocess.run(
        [*PROGRAM, "run", "--kafka", "127.0.0.1:1", *route, *more],
        env={"MILLSTREAM_LOG": "loud"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stderr == (
        "millstream bridge: MILLSTREAM_LOG: 'LOUD' is none of DEBUG, INFO, WARNING, ERROR\n"
    )


def test_on_a_terminal_one_hears_that_kafka_is_still_asked() -> None:
    reading, writing = pty.openpty()
    try:
        done = subprocess.run(
            [*PROGRAM, "barrier", "--kafka", "127.0.0.1:1", *ROUTE],
            stderr=writing,
            check=False,
            timeout=60,
        )
        lines = os.read(reading, 10_000).decode().splitlines()
    finally:
        os.close(reading)
        os.close(writing)

    assert done.returncode == 3
    assert "Kafka at 127.0.0.1:1 has not answered yet" in lines[0]
    assert "Connection refused" in lines[0]
    assert lines[1].startswith("millstream bridge: Kafka at 127.0.0.1:1 is unreachable")
    assert len(lines) == 2
