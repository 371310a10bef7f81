"""The command as a user runs it: exit codes, one line on stderr, ready file, report, signals."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
        "positions": {"0": 5, "1": 5},
    }


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

    waited = run("barrier", *arguments(mock, nats_server, topic), "--timeout", "0.3")

    assert waited.returncode == 1
    assert waited.stderr.count("\n") == 1
    assert "partition 0: 0 of 1" in waited.stderr


@pytest.mark.parametrize("end", ["sigterm", "sigint", "stdin"])
async def test_run_says_when_it_is_ready_and_ends_cleanly(
    nats_server: Server, mock: Kafka, topic: str, tmp_path: Path, end: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(100)])
    file = tmp_path / "ready.json"
    common = arguments(mock, nats_server, topic)

    with started("run", *common, "--ready-file", str(file), "--end-with-stdin") as process:
        facts = await ready(file, process)
        if end == "stdin":
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        else:
            process.send_signal(signal.SIGTERM if end == "sigterm" else signal.SIGINT)
        _, said = process.communicate(timeout=20)

    assert process.returncode == 0
    assert "is ready and goes on after 0 offsets stored before\n" in said
    assert facts == {
        "pid": process.pid,
        "kafka": mock.bootstrap,
        "nats": nats_server.url,
        "topic": topic,
        "stream": "FLIGHTS",
    }


async def test_kafka_mock_serves_its_topics_until_its_input_ends(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    topics = ["--topic", "flights:3", "--topic", "other:1"]

    with started("kafka-mock", *topics, "--ready-file", str(file), "--end-with-stdin") as process:
        facts = await ready(file, process)
        Kafka(kind="mock", bootstrap=facts["kafka"]).produce(
            "flights", [{"partition": 2, "value": b"v"}]
        )
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        out, _ = process.communicate(timeout=20)

    assert process.returncode == 0
    assert facts == {"pid": process.pid, "kafka": facts["kafka"]}
    assert facts["kafka"] in out


@pytest.mark.parametrize(
    ("rest", "code", "complaint"),
    [
        (["run"], 2, "--kafka is missing (or MILLSTREAM_BRIDGE_KAFKA)"),
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
        (["kafka-mock", "--topic", "flights"], 2, "is not NAME:PARTITIONS"),
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


@pytest.mark.parametrize("end", ["sigterm", "stdin"])
def test_a_run_that_waits_for_a_dead_kafka_ends_at_once_when_told_to(end: str) -> None:
    """Its first question to Kafka would take five seconds to give up."""
    silent = socket.create_server(("127.0.0.1", 0))
    address = "{}:{}".format(*silent.getsockname())
    route = ("--topic", "t", "--stream", "S", "--subject", SUBJECT)

    with silent, started("run", "--kafka", address, *route, "--end-with-stdin") as process:
        silent.settimeout(20)
        peer, _ = silent.accept()  # it has come as far as asking
        with peer:
            begun = time.monotonic()
            if end == "stdin":
                assert process.stdin is not None
                process.stdin.close()
                process.stdin = None
            else:
                process.terminate()
            process.communicate(timeout=20)

    assert process.returncode == 0
    assert time.monotonic() - begun < 4


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
