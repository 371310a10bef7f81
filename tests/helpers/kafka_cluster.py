"""Apache Kafka as three combined nodes from its jars, whose brokers can be killed. ::

with KafkaCluster(folder) as cluster:       # each node in a rack of its own: rack1, rack2, rack3
    cluster.create_topic("flights", 8)      # three replicas, two must have a record
    cluster.leader("flights", 0).kill()     # another takes over
    cluster.nodes[2].start()
"""

import contextlib
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from .kafka import _ending_with_us, _run_java, await_true, class_path, free_ports, new_cluster_id

START_S_MAX = 120.0

_PROPERTIES = """process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
broker.rack=rack{number}
replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector
auto.create.topics.enable=false
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=5000
"""


class Node:
    """One of the nodes; ``number`` is its id in Kafka."""

    def __init__(self, number: int, folder: Path, port: int) -> None:
        self.number, self.port = number, port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def properties(self) -> Path:
        """Its configuration."""
        return self._folder / "server.properties"

    @property
    def data(self) -> Path:
        """Where its replicas are."""
        return self._folder / "data"

    def start(self) -> None:
        """Start it; it may take a while until it takes part."""
        options = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                _ending_with_us(
                    "java", *options, "-cp", class_path(), "kafka.Kafka", str(self.properties)
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """SIGKILL and reap."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class KafkaCluster:
    """A context manager; ``folder`` is the caller's and stays."""

    def __init__(self, folder: Path, size: int = 3) -> None:
        ports = free_ports(2 * size)
        controllers = ports[size:]
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, 1))
        self.nodes: dict[int, Node] = {}
        cluster = new_cluster_id()
        for number, (port, controller) in enumerate(zip(ports[:size], controllers, strict=True), 1):
            home = folder / f"kafka{number}"
            home.mkdir()
            node = Node(number, home, port)
            node.properties.write_text(
                _PROPERTIES.format(
                    number=number,
                    voters=voters,
                    port=port,
                    controller=controller,
                    data=node.data,
                )
            )
            _run_java(
                "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(node.properties)
            )
            self.nodes[number] = node
        self._admin: AdminClient | None = None

    @property
    def bootstrap(self) -> str:
        """All brokers; the same over restarts."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes.values())

    def create_topic(self, topic: str, partitions: int) -> None:
        """Make a topic with a replica on each node, and return when all know it and its leaders.

        Each does when it has made a folder for its replicas. Another way to ask one broker alone
        there is not, and on Kafka 4.0 a follower hears of a topic up to half a second late.
        """

        def is_made() -> bool:
            # A fresh client loses a question where it learns meanwhile which node it has asked.
            made = self._client().create_topics([NewTopic(topic, partitions, len(self.nodes))])
            try:
                made[topic].result(timeout=60)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError._DESTROY_BROKER:
                    return False
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            return True

        await_true(is_made, START_S_MAX)
        all_of_it = set(range(partitions))
        await_true(lambda: self._leaders(topic).keys() == all_of_it, START_S_MAX)
        replicas = [
            node.data / f"{topic}-{number}" for node in self.nodes.values() for number in all_of_it
        ]
        await_true(lambda: all(one.is_dir() for one in replicas), START_S_MAX)

    def leader(self, topic: str, partition: int) -> Node:
        """The node that leads a partition now; waits while none does."""
        found: list[Node] = []

        def is_led() -> bool:
            found.extend(it for p, it in self._leaders(topic).items() if p == partition)
            return bool(found)

        await_true(is_led, START_S_MAX)
        return found[0]

    def coordinator(self, group: str) -> Node:
        """The node that coordinates a group now; waits while none does."""
        found: list[Node] = []

        def is_coordinated() -> bool:
            with contextlib.suppress(KafkaException):
                asked = self._client().describe_consumer_groups([group], request_timeout=5)
                node = asked[group].result().coordinator
                found.extend([self.nodes[node.id]] if node is not None else [])
            return bool(found)

        await_true(is_coordinated, START_S_MAX)
        return found[0]

    def await_whole(self, topic: str) -> None:
        """Wait until every replica of the topic is in sync."""

        def is_whole() -> bool:
            with contextlib.suppress(KafkaException, KeyError):
                found = self._client().list_topics(topic, timeout=5).topics[topic].partitions
                wholes = [len(one.isrs) == len(self.nodes) for one in found.values()]
                return bool(wholes) and all(wholes)
            return False

        await_true(is_whole, START_S_MAX)

    def open(self) -> Self:
        """Start all nodes and wait until they know of each other."""
        for node in self.nodes.values():
            node.start()
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        deadline = time.monotonic() + START_S_MAX

        def all_there() -> bool:
            assert time.monotonic() < deadline, "the Kafka nodes did not find each other"
            with contextlib.suppress(KafkaException):
                return len(self._client().list_topics(timeout=2).brokers) == len(self.nodes)
            return False

        await_true(all_there, START_S_MAX)
        return self

    def close(self) -> None:
        """End every node."""
        for node in self.nodes.values():
            node.kill()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _client(self) -> AdminClient:
        assert self._admin is not None, "the cluster is not open"
        return self._admin

    def _leaders(self, topic: str) -> dict[int, Node]:
        """Who leads each partition that is led; a broker may not know of the topic yet."""
        with contextlib.suppress(KafkaException, KeyError):
            found = self._client().list_topics(topic, timeout=5).topics[topic].partitions
            return {
                number: self.nodes[one.leader]
                for number, one in found.items()
                if one.leader in self.nodes
            }
        return {}
