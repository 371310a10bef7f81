"""Every example runs, says what it is there to show, and leaves nothing on the servers."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers import require
from tests.helpers.kafka import Kafka, await_true, real_kafka
from tests.helpers.servers import REAL, Server

EXAMPLES = Path(__file__).parents[2] / "examples"

SAID = {
    "01_publish_subscribe_request": """\
linux.debian.packages.xz: xz 5.4.1 is in the archive
linux.debian.kernel: 6.1 is out
of these, 1 is about packages.xz
no responders, known at once
the late responder says: rain, then sun
""",
    "02_record_stream": """\
300 prices published, 3 are kept
the newest of each: AAA 199, BBB 199, CCC 199
once more: nothing, they were read
after two changes: BBB 206
""",
    "03_worker_on_your_connection": """\
ann: orders 1 2 3 4 5 6 7 8, owes 36
bob: orders 1 2 3 4 5 6 7 8, owes 36
cem: orders 1 2 3 4 5 6 7 8, owes 36
dora: orders 1 2 3 4 5 6 7 8, owes 36
eve: orders 1 2 3 4 5 6 7 8, owes 36
your connection is still open
""",
    "04_bridge_a_topic": """\
1002 records moved
a second run finds its place in the stream: 0 moved
both sides have the same 1002 records: True
sensor%2E5: 143 messages, the newest is 999 mm
sensor%2E3: 144 messages, the newest is empty, flags n
%null: 1 messages, the newest is nobody's, flags k
""",
    "05_half_moved_producer": """\
the barrier is passed: all that was in Kafka is in the stream
ann: 100 clicks in order, over Kafka
bob: 100 clicks in order, over Kafka
cem: 100 clicks in order, half over Kafka, half by NATS
dora: 100 clicks in order, half over Kafka, half by NATS
eve: 100 clicks in order, half over Kafka, half by NATS
""",
    "06_dead_letters": """\
handled: order 1 and order 3
given up after 2 calls: order 2
because of OSError: the bank is closed
handled: order 2
""",
    "07_sql_sink": """\
order 5 came twice, the second time it was a repeat
ann owes 55
""",
    "08_exactly_once_nats_to_nats": """\
lines: 1 2 3 4 5
total: 15
refused as repeats: 1
""",
    "09_membership": """\
first alone has report, cleanup, backup
with second, first has 2 and second has 1
second left, first has report, cleanup, backup
""",
    "10_test_your_worker": """\
20 legs in order, one worker crashed, no server was there
""",
}
WITHOUT_SERVER = ("10_test_your_worker",)
WITH_KAFKA = ("04_bridge_a_topic", "05_half_moved_producer")


def run(
    name: str, environment: Mapping[str, str], timeout_s: float = 90
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env={**os.environ, **environment},
    )


def test_every_numbered_example_has_a_test() -> None:
    assert {file.stem for file in EXAMPLES.glob("[0-9]*.py")} == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_an_example_shows_what_it_says_on_embedded_servers(name: str) -> None:
    done = run(name, {})
    assert (done.returncode, done.stdout) == (0, SAID[name]), done.stderr


@pytest.mark.parametrize("name", [name for name in SAID if name not in WITHOUT_SERVER])
def test_an_example_without_a_server_is_one_line(name: str) -> None:
    done = run(name, {"NATS_URL": "nats://127.0.0.1:1"}, timeout_s=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("no NATS server at nats://127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.real_server
@pytest.mark.parametrize("name", [name for name in SAID if name not in WITHOUT_SERVER])
def test_an_example_shows_the_same_on_a_nats_server(name: str, tmp_path: Path) -> None:
    require.need("nats")
    with Server(REAL, tmp_path) as server:
        done = run(name, {"NATS_URL": server.url})
        assert (done.returncode, done.stdout) == (0, SAID[name]), done.stderr
        # The server removes the folder of a deleted stream a moment later.
        await_true(lambda: not list(tmp_path.glob("jetstream/*/streams/*")), 30)


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """A real one, for all examples: it takes seconds to start."""
    require.need("kafka")
    with real_kafka() as kafka:
        yield kafka


@pytest.mark.kafka
@pytest.mark.parametrize("name", WITH_KAFKA)
def test_an_example_shows_the_same_on_a_real_kafka(kafka: Kafka, name: str) -> None:
    done = run(name, {"KAFKA_BOOTSTRAP": kafka.bootstrap})
    assert (done.returncode, done.stdout) == (0, SAID[name]), done.stderr
