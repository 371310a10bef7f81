"""What Kafka knows about itself: topics, their configurations, log ends, groups and positions.

The client blocks, so it has a thread of its own. librdkafka's mock cluster lists topics, log ends
and the positions of a named group; it does not answer for configurations, and lists no groups.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined] # theirs, not re-exported by name
    AdminClient,
    ConfigResource,
    ConfigSource,
    OffsetSpec,
)

from ..errors import BridgeError, ConfigurationError, Unreachable
from ..model import Positions, Watermarks
from .clients import LEADER_MOVES, SILENT, Complaints, admin_settings, client_logger, error_text
from .worker_thread import WorkerThread

_TOPIC_SOURCE = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
_DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
_COORDINATOR_COMES = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)
"""Said of a group for a moment, on a broker that has just started or taken the group over."""
COORDINATOR_S = 20.0
_AGAIN_S = 0.1


class Topic(NamedTuple):
    """A topic as the cluster lists it; ``error`` where it cannot be used."""

    name: str
    partitions: int
    replicas: int
    error: str | None = None

    @property
    def is_internal(self) -> bool:
        """Whether Kafka keeps it for itself."""
        return self.name.startswith("__")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """All settings of a topic as text; ``own`` names those set on the topic itself."""

    values: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    def number(self, name: str) -> int:
        """A setting that is a number; -1, Kafka's "no limit", where there is none."""
        try:
            return int(self.values.get(name, -1))
        except ValueError:
            return -1

    @property
    def is_compacted(self) -> bool:
        """Whether only the newest record of a key is kept for good."""
        return "compact" in self.values.get("cleanup.policy", "")

    @property
    def expires(self) -> bool:
        """Whether old records are deleted by age or size."""
        return "delete" in self.values.get("cleanup.policy", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaGroup:
    """A consumer group: its state in Kafka's word, how many members, and where it stands."""

    name: str
    state: str
    members: int
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nobody reads in its name."""
        return self.members == 0

    def of_topic(self, topic: str) -> Positions:
        """Its positions in one topic."""
        return {p: offset for (name, p), offset in self.positions.items() if name == topic}


class Denied(BridgeError):
    """Kafka does not permit a question; the text names the operation that is needed."""

    exit_code = 2


class Unsupported(BridgeError):
    """Kafka does not answer such a question (librdkafka's mock cluster is one)."""

    exit_code = 2


class KafkaAdmin:
    """Questions to one cluster. ``options`` are librdkafka's, for security and the like."""

    def __init__(
        self,
        bootstrap: str,
        *,
        options: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._thread = WorkerThread("kafka admin")
        self._closing = threading.Event()
        self._client: AdminClient | None = None
        self._complaints = Complaints()
        self._config = {
            **admin_settings(bootstrap, options),
            "error_cb": self._complaints.note,
        }

    async def topics(self) -> dict[str, Topic]:
        """Every topic this user may see, by name."""
        return await self._thread.run(self._topics)

    async def configs(self, topics: Collection[str]) -> dict[str, TopicConfig | BridgeError]:
        """Each topic's settings, or why they are not to be had (Denied, Unsupported)."""
        return await self._thread.run(lambda: self._configs(topics))

    async def watermarks(
        self, topics: Mapping[str, int], *, is_committed: bool = True
    ) -> dict[str, dict[int, Watermarks]]:
        """Log ends of topics (name to number of partitions), as one who reads what is committed.

        Not ``is_committed``: open transactions and such as end right now count too.
        """
        return await self._thread.run(lambda: self._watermarks(topics, is_committed))

    async def group_names(self) -> list[str]:
        """The consumer groups this user may see."""
        return await self._thread.run(self._group_names)

    async def group(self, name: str, places: Collection[tuple[str, int]] = ()) -> KafkaGroup:
        """A group with its positions; in ``places`` (topic, partition) only if any are given.

        One that nobody has heard of has the state Dead and no positions.
        """
        return await self._thread.run(lambda: self._group(name, places))

    async def set_positions(self, group: str, topic: str, positions: Positions) -> None:
        """Commit for a group that is empty; ConfigurationError: it is not, or Kafka refuses."""
        await self._thread.run(lambda: self._set_positions(group, topic, positions))

    async def close(self) -> None:
        """End the thread; the client goes with it."""
        self._closing.set()
        self._client = None
        self._thread.stop()

    # in the thread

    def _admin(self) -> AdminClient:
        if self._client is None:
            try:
                self._client = AdminClient(self._config, logger=client_logger)
            except KafkaException as error:
                raise ConfigurationError(f"Kafka client: {error_text(error)}") from error
        return self._client

    def _topics(self) -> dict[str, Topic]:
        try:
            metadata = self._complaints.metadata(
                self.bootstrap,
                lambda it: self._admin().list_topics(timeout=it),
                self._timeout_s,
                self._serve,
            )
        except KafkaException as error:
            raise self._complaints.unreachable(self.bootstrap, error, self._serve) from error
        return {
            name: Topic(
                name,
                len(topic.partitions),
                max((len(it.replicas) for it in topic.partitions.values()), default=0),
                None if topic.error is None else topic.error.str(),
            )
            for name, topic in sorted(metadata.topics.items())
        }

    def _serve(self) -> None:
        """Let the client tell what it has to."""
        self._admin().poll(0)

    def _configs(self, topics: Collection[str]) -> dict[str, TopicConfig | BridgeError]:
        if not topics:
            return {}
        asked = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics]
        answers = self._admin().describe_configs(asked, request_timeout=self._timeout_s)
        found: dict[str, TopicConfig | BridgeError] = {}
        for resource, answer in answers.items():
            try:
                entries = self._result(answer, f"DescribeConfigs on topic {resource.name}")
            except (Denied, Unsupported) as error:
                found[resource.name] = error
            else:
                found[resource.name] = TopicConfig(
                    values={name: it.value for name, it in entries.items() if it.value is not None},
                    own=frozenset(n for n, it in entries.items() if it.source == _TOPIC_SOURCE),
                )
        return found

    def _watermarks(
        self, topics: Mapping[str, int], is_committed: bool
    ) -> dict[str, dict[int, Watermarks]]:
        places = [(name, p) for name, count in topics.items() for p in range(count)]
        isolation = (
            IsolationLevel.READ_COMMITTED if is_committed else IsolationLevel.READ_UNCOMMITTED
        )
        lows = self._offsets(places, OffsetSpec.earliest(), isolation)  # type: ignore[no-untyped-call]
        highs = self._offsets(places, OffsetSpec.latest(), isolation)  # type: ignore[no-untyped-call]
        found: dict[str, dict[int, Watermarks]] = {name: {} for name in topics}
        for name, p in places:
            found[name][p] = Watermarks(lows[name, p], highs[name, p])
        return found

    def _offsets(
        self, places: list[tuple[str, int]], spec: OffsetSpec, isolation: IsolationLevel
    ) -> dict[tuple[str, int], int]:
        if not places:
            return {}
        answers = self._admin().list_offsets(
            {TopicPartition(*place): spec for place in places},
            isolation_level=isolation,
            request_timeout=self._timeout_s,
        )
        return {
            (it.topic, it.partition): int(self._result(answer, f"Describe on {it.topic}").offset)
            for it, answer in answers.items()
        }

    def _group_names(self) -> list[str]:
        answer = self._admin().list_consumer_groups(request_timeout=self._timeout_s)
        listed = self._result(answer, "Describe on groups")
        if not listed.valid and listed.errors:
            raise self._error(listed.errors[0], "Describe on groups")
        return sorted(it.group_id for it in listed.valid)

    def _group(self, name: str, places: Collection[tuple[str, int]]) -> KafkaGroup:
        admin, need = self._admin(), f"Describe on group {name}"
        try:
            described = self._of_group(
                lambda: admin.describe_consumer_groups([name], request_timeout=self._timeout_s),
                name,
                need,
            )
            state, members = described.state.name.title(), len(described.members)
            if state == "Unknown":  # a word the client does not know: Assigning, Reconciling
                state = "Rebalancing"
        except Unsupported:
            state, members = "Unknown", 0
        wanted = [TopicPartition(*place) for place in places] or None
        request = ConsumerGroupTopicPartitions(name, wanted)
        found = self._of_group(
            lambda: admin.list_consumer_group_offsets([request], request_timeout=self._timeout_s),
            name,
            need,
        )
        listed = found.topic_partitions or ()
        positions = {(it.topic, it.partition): it.offset for it in listed if it.offset >= 0}
        return KafkaGroup(name=name, state=state, members=members, positions=positions)

    def _set_positions(self, group: str, topic: str, positions: Positions) -> None:
        request = ConsumerGroupTopicPartitions(
            group, [TopicPartition(topic, p, offset) for p, offset in sorted(positions.items())]
        )
        admin = self._admin()
        self._of_group(
            lambda: admin.alter_consumer_group_offsets([request], request_timeout=self._timeout_s),
            group,
            f"Read on group {group} and topic {topic}",
        )

    def _of_group(
        self, ask: Callable[[], Mapping[str, "Future[Any]"]], name: str, need: str
    ) -> Any:
        """What the group's coordinator answers; asked again while it is only just coming."""
        give_up_at = time.monotonic() + COORDINATOR_S
        while True:
            try:
                return _sound(ask()[name].result(timeout=self._timeout_s + 1))
            except (KafkaException, TimeoutError) as error:
                detail = (*error.args, None)[0]
                is_coming = isinstance(detail, KafkaError) and detail.code() in _COORDINATOR_COMES
                is_late = time.monotonic() > give_up_at
                if not is_coming or is_late or self._closing.wait(_AGAIN_S):
                    raise self._error(error, need) from error

    def _result(self, answer: "Future[Any]", need: str) -> Any:
        try:
            return answer.result(timeout=self._timeout_s + 1)
        except (KafkaException, TimeoutError) as error:
            raise self._error(error, need) from error

    def _error(self, error: BaseException | KafkaError, need: str) -> BridgeError:
        detail = error if isinstance(error, KafkaError) else (*error.args, None)[0]
        if not isinstance(detail, KafkaError):
            return Unsupported(f"Kafka at {self.bootstrap} gave no answer: {need}")
        code = detail.code()
        if code in _DENIED:
            return Denied(f"Kafka at {self.bootstrap} permits no {need}: {detail.str()}")
        if code == KafkaError._UNSUPPORTED_FEATURE or (
            code == KafkaError._TIMED_OUT and "controller" in detail.str()
        ):
            return Unsupported(f"Kafka at {self.bootstrap} has no answer to it: {need}")
        if code in _COORDINATOR_COMES:
            return Unreachable("Kafka", self.bootstrap, f"{need}: {detail.name()}")
        if code in SILENT or code in LEADER_MOVES:
            return Unreachable("Kafka", self.bootstrap, detail.str())
        return ConfigurationError(f"Kafka at {self.bootstrap}: {need}: {detail.str()}")


def _sound(answer: Any) -> Any:
    """The answer; KafkaException: some partition has an error, though the whole has none."""
    for place in getattr(answer, "topic_partitions", None) or ():
        if place.error is not None:
            where = f"{place.topic} partition {place.partition}: {place.error.str()}"
            raise KafkaException(KafkaError(place.error.code(), where))
    return answer
