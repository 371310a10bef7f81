"""Other peers in the place of those that the bridge's tests mostly have: a real Kafka, clusters.

``--kafka real`` and ``--kafka cluster`` (three brokers) put it in the mock's place, ``--nats
cluster`` (three nodes, of which a test gets one) in that of every server. `python -m
tests.compat.clusters` runs all of them so. Left out are the tests of `ABOUT_THE_MOCK` and
`ABOUT_ONE_SERVER`, which ask for what only those have.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import nats
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.helpers.cluster import NatsCluster
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA, Kafka, await_true
from tests.helpers.servers import EMBEDDED, Server

CLUSTER = "cluster"
AS_A_MOCK = {"max.message.bytes": "8000000", "retention.ms": "-1"}
"""What a real topic needs to take what the mock takes: large records, and old ones."""
ABOUT_THE_MOCK = {
    "test_the_mock_says_in_one_line_what_it_cannot_tell": "it is about the mock",
    "test_a_mock_does_not_tell_and_so_is_asked_for_a_word": "it is about the mock",
    "test_the_stream_is_read_before_anybody_is_told_to_stop": "of a group whose state is untold",
    "test_what_drifted_is_said_with_a_remedy_and_exit_1": "what the mock cannot tell is a note",
    "test_records_that_kafka_dropped_before_they_were_moved_are_missed": "the mock keeps 5 MiB",
    "test_a_route_may_go_on_behind_what_kafka_dropped_and_counts_it": "the mock keeps 5 MiB",
    "test_a_partition_whose_log_begins_later_begins_at_its_sequence": "the mock keeps 5 MiB",
    "test_a_corrupt_batch_stops_after_all_before_it_are_stored": "Kafka takes no corrupt batch",
    "test_a_batch_that_cannot_be_read_is_said_of_its_topic_and_the_others_are_assessed": (
        "Kafka takes no corrupt batch"
    ),
    "test_a_partition_without_a_leader_is_waited_for": "its leader is taken away by a call",
    "test_who_is_still_away_when_time_is_up_is_named": "its leader is taken away by a call",
    "test_a_clock_that_jumps_while_records_are_moved": "Kafka takes no timestamps of next year",
    "test_what_kafka_keeps_for_itself_is_meant_by_no_pattern": "it makes Kafka's own topics",
}
ABOUT_ONE_SERVER = {
    "test_a_server_that_restarts_costs_a_session_and_nothing_else": "a producer meets the restart",
    "test_a_server_whose_disk_is_full_is_not_taken_for_a_rival": "two nodes have room",
    "test_where_most_is_wanted_all_is_asked_for_and_the_rest_dropped": "its fill waits for nobody",
    "test_all_messages_are_read_once_and_in_order": "its fill waits for nobody",
    "test_a_filter_and_a_first_sequence_are_kept_to": "its fill waits for nobody",
    "test_a_consumer_that_the_node_has_not_heard_of_is_asked_again": "its fill waits for nobody",
}


def add_options(parser: pytest.Parser) -> None:
    """The two options."""
    parser.addoption("--kafka", choices=[REAL_KAFKA, CLUSTER], help="in the mock's place")
    parser.addoption("--nats", choices=[CLUSTER], help="in the place of every server")


def is_for(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether a test is to run with these options: each once, and those about others not at all."""
    name = getattr(item, "originalname", item.name)
    taken: list[str] = []
    if config.getoption("--kafka", None):
        taken.append(MOCK)
        if name in ABOUT_THE_MOCK:
            return False
    if config.getoption("--nats", None):
        taken.append(EMBEDDED)
        if name in ABOUT_ONE_SERVER:
            return False
    given = getattr(item, "callspec", None)
    peers = {"kafka", "nats_server"}
    return given is None or not any(given.params[it] in taken for it in peers & given.params.keys())


@dataclass(frozen=True, slots=True, kw_only=True)
class RealInstead(Kafka):
    """A real Kafka; ``replicas`` is how many a topic has, ``config`` what a test may change."""

    replicas: int = 1
    config: Mapping[str, str] = field(default_factory=dict)

    def create_topic(
        self, topic: str, partitions: int, config: Mapping[str, str] | None = None
    ) -> None:
        new = NewTopic(topic, partitions, self.replicas, config={**self.config, **(config or {})})
        admin = self._admin()
        admin.create_topics([new])[topic].result(timeout=60)
        await_true(lambda: topic in self._topics())

    def as_a_mock(self) -> "RealInstead":
        """The same, with topics that take what the mock's do."""
        return replace(self, config=AS_A_MOCK)

    def delete_topics(self) -> None:
        """Delete all topics but Kafka's own, and return when they are gone."""
        if topics := self._topics():
            admin = self._admin()
            for deleted in admin.delete_topics(topics).values():
                deleted.result(timeout=60)
        await_true(lambda: not self._topics())

    def _topics(self) -> list[str]:
        """Those that have leaders."""
        admin = self._admin()
        topics = admin.list_topics(timeout=20).topics
        return [
            name
            for name, it in topics.items()
            if not name.startswith("__") and all(p.leader >= 0 for p in it.partitions.values())
        ]

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap})


@asynccontextmanager
async def a_node(cluster: NatsCluster) -> AsyncIterator[Server]:
    """One of the nodes, which hold nothing; in the end all of them run again, and are empty."""
    client = await nats.connect(cluster.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        await cluster.until_ready(client)
        yield cluster.nodes["n1"]
        for node in cluster.nodes.values():
            if not node.is_running:
                await node.restart()
        await cluster.clear(client)
    finally:
        await client.close()
