"""Kafka for tests: librdkafka's mock cluster, a real Apache Kafka, or one that is already there.

    with mock_kafka({"flights": 4}) as kafka: ...       # in this process, a millisecond
    with real_kafka() as kafka:                         # about three seconds
        kafka.create_topic("flights", 4)

A real Kafka is, in this order: the address in ``KAFKA_BOOTSTRAP``; a single node started here
from the jars in ``KAFKA_JARS`` or ``.cache/kafka`` of the checkout (with java on PATH); a container
where a Docker daemon answers. Nothing is downloaded by a test. The jars come with Maven by

    python -m tests.helpers.kafka --fetch DIR

What the mock cannot do, and so only a real Kafka is asked for: abort transactions, compact, expire
by time, look up timestamps, grow a topic, and be written by Kafka's own console producer (a matter
of having Java).
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from millstream_bridge import MockKafka
from tests.helpers.require import MissingError, missing

KAFKA_VERSION = "4.3.1"
MOCK, REAL = "mock", "real"
START_TIMEOUT_S = 120.0
_CHECKOUT = Path(__file__).parents[2]

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>millstream</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{version}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId>
<version>{version}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId>
<version>1.7.36</version></dependency>
</dependencies></project>
"""

_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
group.initial.rebalance.delay.ms=0
"""

# The last of two lines for one setting counts.
_SECURED = """listeners=SASL_PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
inter.broker.listener.name=SASL_PLAINTEXT
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=\
  org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" \
  password="admin-secret" user_admin="admin-secret" user_bridge="bridge-secret";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """A Kafka to test against; ``kind`` is mock or real."""

    kind: str
    bootstrap: str
    mock: MockKafka | None = None

    def create_topic(
        self, topic: str, partitions: int, config: Mapping[str, str] | None = None
    ) -> None:
        """Make a topic and return when it can be used; ``config`` is for a real Kafka only."""
        if self.mock is not None:
            self.mock.create_topic(topic, partitions)
            return
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        made = admin.create_topics([NewTopic(topic, partitions, 1, config=dict(config or {}))])
        made[topic].result(timeout=20)

        def is_known() -> bool:
            with contextlib.suppress(KafkaException):  # it has not answered in time
                return bool(admin.list_topics(topic, timeout=5).topics[topic].partitions)
            return False

        await_true(is_known)

    def produce(self, topic: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Produce records (keywords of confluent-kafka's ``produce``); all are acked then."""
        failed: list[object] = []

        def note(error: object, _: object) -> None:
            if error is not None:
                failed.append(error)

        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "linger.ms": 5,
                "message.max.bytes": 8_000_000,
                "message.timeout.ms": 20_000,
            }
        )
        for record in records:
            while True:
                try:
                    producer.produce(topic, on_delivery=note, **record)
                    break
                except BufferError:
                    producer.poll(0.1)
        left = producer.flush(60)
        assert left == 0, f"{left} records were not acked in time"
        assert not failed, f"{len(failed)} records failed, the first with {failed[0]}"


@contextmanager
def mock_kafka(topics: Mapping[str, int] | None = None) -> Iterator[Kafka]:
    """librdkafka's mock cluster in this process."""
    with MockKafka(dict(topics or {})) as mock:
        yield Kafka(kind=MOCK, bootstrap=mock.bootstrap, mock=mock)


@contextmanager
def real_kafka() -> Iterator[Kafka]:
    """A real Kafka; MissingError says why there is none."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        yield Kafka(kind=REAL, bootstrap=bootstrap)
    elif _java_problem() is None:
        with tempfile.TemporaryDirectory(prefix="millstream-kafka-") as folder:
            node = KafkaNode(Path(folder))
            node.start()
            try:
                yield Kafka(kind=REAL, bootstrap=node.bootstrap)
            finally:
                node.kill()
    elif missing("docker") is None:
        with _container() as bootstrap:
            yield Kafka(kind=REAL, bootstrap=bootstrap)
    else:
        raise MissingError(_reason())


def probe() -> None:
    """Return if `real_kafka` can work; MissingError says why not."""
    if not os.environ.get("KAFKA_BOOTSTRAP") and _java_problem() and missing("docker"):
        raise MissingError(_reason())


def _reason() -> str:
    return f"no real Kafka: {_java_problem()}; {missing('docker')}; KAFKA_BOOTSTRAP is not set"


class KafkaNode:
    """Apache Kafka as one combined node from its jars; ``folder`` is the caller's.

    ``secured``: its users are `ADMIN` and `BRIDGE` by SASL, and only ADMIN may do what no rule
    permits; ``options`` are then ADMIN's for a client. ``settings`` are more lines of its
    configuration, with {port} and {controller} to be filled in; ``scram`` the users it is made
    with, as its storage tool wants them; ``properties`` are Java's.
    """

    ADMIN, BRIDGE = "admin", "bridge"

    def __init__(
        self,
        folder: Path,
        *,
        secured: bool = False,
        settings: str = "",
        scram: Sequence[str] = (),
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.options = self.options_of(self.ADMIN) if secured else {}
        self._java = [f"-D{name}={value}" for name, value in (properties or {}).items()]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port, controller = free_ports(2)
        self._properties = folder / "server.properties"
        self._properties.write_text(
            (_PROPERTIES + (_SECURED if secured else "") + settings).format(
                port=self._port, controller=controller, data=folder / "data"
            )
        )
        users = [word for user in scram for word in ("--add-scram", user)]
        where = ("-t", new_cluster_id(), "-c", str(self._properties))
        _run_java("kafka.tools.StorageTool", "format", *where, *users)

    @property
    def bootstrap(self) -> str:
        """The address; the same over a restart."""
        return f"127.0.0.1:{self._port}"

    @staticmethod
    def options_of(user: str) -> dict[str, str]:
        """A client's settings for a user of a secured node."""
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": f"{user}-secret",
        }

    def start(self) -> None:
        """Start and wait until it answers."""
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *self._java]
        properties = str(self._properties)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                _ending_with_us("java", *options, "-cp", class_path(), "kafka.Kafka", properties),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **self.options})

        def answers() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"Kafka ended: {(self._folder / 'log').read_text()[-2000:]}")
            with contextlib.suppress(KafkaException):
                return bool(admin.list_topics(timeout=1).brokers)
            return False

        await_true(answers)

    def kill(self) -> None:
        """SIGKILL and reap."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def class_path() -> str:
    """All of Kafka's jars; MissingError if they or java are not here."""
    if (problem := _java_problem()) is not None:
        raise MissingError(problem)
    return os.pathsep.join(str(jar) for jar in sorted(_jars_folder().glob("*.jar")))


def run_tool(name: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run one of Kafka's own tools, ``org.apache.kafka.tools.<name>``; returns what it printed."""
    done = subprocess.run(
        ["java", "-Xmx256m", "-cp", class_path(), f"org.apache.kafka.tools.{name}", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout


def fetch(folder: Path, version: str = KAFKA_VERSION) -> None:
    """Let Maven copy Kafka's jars into ``folder`` (92 files, 54 MB)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pom = Path(scratch, "pom.xml")
        pom.write_text(_POM.format(version=version))
        target = f"-DoutputDirectory={folder.resolve()}"
        subprocess.run(
            ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", target], check=True
        )


def _jars_folder() -> Path:
    return Path(os.environ.get("KAFKA_JARS") or _CHECKOUT / ".cache" / "kafka")


def _java_problem() -> str | None:
    folder = _jars_folder()
    if shutil.which("java") is None:
        return "no java on PATH"
    if not any(folder.glob("kafka_2.13-*.jar")):
        return f"no Kafka jars in {folder} (python -m tests.helpers.kafka --fetch {folder})"
    return None


def new_cluster_id() -> str:
    """16 bytes in base64, as Kafka's tool would make one; never a dash first, as of an option."""
    return "M" + secrets.token_urlsafe(16)[1:]


def _run_java(main: str, *arguments: str) -> str:
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", class_path(), main, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _ending_with_us(*command: str) -> list[str]:
    """The command, on Linux so that it gets SIGKILL when this process is gone, however it went."""
    if sys.platform != "linux":
        return list(command)
    set_signal_and_become = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)});"
        " os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", set_signal_and_become, *command]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def await_true(is_true: Any, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll with the pauses a child's end would need; no clock of its own is set."""
    import threading
    import time

    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {timeout_s:g} s")
        pause.wait(0.05)


@contextmanager
def _container() -> Iterator[str]:
    """A Kafka container. Not exercised where this was written: no Docker daemon was there."""
    from testcontainers.kafka import KafkaContainer

    with KafkaContainer(f"confluentinc/cp-kafka:{'8.1.0'}").with_kraft() as container:
        yield container.get_bootstrap_server()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch Apache Kafka's jars with Maven.")
    parser.add_argument("--fetch", type=Path, metavar="DIR", required=True)
    fetch(parser.parse_args().fetch)
