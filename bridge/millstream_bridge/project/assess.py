"""Looking at a Kafka cluster before anything moves: what each topic is, and how it would move.

Of each topic the newest records are read (a sample), its settings asked for, and the positions of
all consumer groups. Nothing is changed on either side.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..back.runner import WAY_BACK
from ..errors import BridgeError, ConfigurationError, OffsetGone, RecordError
from ..jetstream.connection import Connection
from ..jetstream.target import NatsTarget
from ..kafka.admin import Denied, KafkaAdmin, KafkaGroup, Topic, TopicConfig, Unsupported
from ..kafka.reading import records_between
from ..kafka.source import KafkaSource
from ..model import Watermarks
from .findings import GroupLag, TopicFacts, facts_json, findings, group_lag, verdict
from .shape import Shape, newest

SAMPLE_RECORDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What was found. ``notes`` are what could not be asked, one line each.

    ``is_cluster``: the NATS server that was looked at is one of several.
    """

    kafka: str
    topics: Sequence[TopicFacts]
    notes: Sequence[str]
    is_cluster: bool = False

    def as_json(self) -> dict[str, Any]:
        """Schema ``millstream.bridge.assess/1``."""
        return {
            "schema": "millstream.bridge.assess/1",
            "kafka": self.kafka,
            "notes": list(self.notes),
            "topics": [facts_json(it) for it in self.topics],
        }

    def verdict_of(self, facts: TopicFacts) -> str:
        """The word for a topic."""
        return str(verdict(findings(facts)))


async def assess(
    *,
    kafka: str,
    topics: str = ".*",
    nats: str | NatsTarget | None = None,
    kafka_options: Mapping[str, str] | None = None,
    sample_records: int = SAMPLE_RECORDS,
    may_be_empty: bool = False,
) -> Assessment:
    """Look at the topics whose whole name matches the pattern ``topics``; at ``nats`` for limits.

    ``sample_records``: how many of a topic are read; 0 for none, -1 for all. ConfigurationError:
    no topic matches (unless ``may_be_empty``), or the pattern is none. Unreachable.
    """
    pattern = compiled(topics)
    server = await _server(nats) if nats is not None else {}
    admin = KafkaAdmin(kafka, options=kafka_options)
    try:
        found = await admin.topics()
        chosen = [it for it in found.values() if pattern.fullmatch(it.name) and not it.is_internal]
        if not chosen and not may_be_empty:
            raise ConfigurationError(f"no topic at {kafka} matches {topics!r}, or none may be seen")
        look = _Look(admin, kafka, kafka_options, sample_records, server)
        return await look.run(chosen)
    finally:
        await admin.close()


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of topic names; ConfigurationError if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"{pattern!r} is no pattern of topic names: {error}") from error


async def _server(nats: str | NatsTarget) -> Mapping[str, Any]:
    """What the server says of itself."""
    connection = await Connection.open(nats, name="millstream assess")
    try:
        return connection.info
    finally:
        await connection.close()


def _place(error: RecordError) -> str:
    return f"topic {error.topic} partition {error.kafka_partition} offset {error.offset}"


class _Look:
    """One look at some topics."""

    def __init__(
        self,
        admin: KafkaAdmin,
        kafka: str,
        options: Mapping[str, str] | None,
        sample_records: int,
        server: Mapping[str, Any],
    ) -> None:
        self._admin = admin
        self._kafka = kafka
        self._options = dict(options or {})
        self._sample_records = sample_records
        self._server = server
        self._notes: list[str] = []

    async def run(self, topics: Sequence[Topic]) -> Assessment:
        names = [it.name for it in topics]
        try:
            groups = await self._groups()
            configs = await self._admin.configs(names)
        except Unsupported as error:
            # Asked for groups it refuses at once, for settings only when time is up.
            self._note([error])
            groups, configs = [], dict.fromkeys(names, error)
        self._note(it for it in configs.values() if isinstance(it, BridgeError))
        facts = [await self._topic(it, configs[it.name], groups) for it in topics]
        return Assessment(
            kafka=self._kafka,
            topics=facts,
            notes=self._notes,
            is_cluster=bool(self._server.get("cluster")),
        )

    async def _groups(self) -> list[KafkaGroup]:
        groups = []
        try:
            for name in await self._admin.group_names():
                if name.startswith(WAY_BACK):
                    continue  # its positions are sequences
                try:
                    groups.append(await self._admin.group(name))
                except Denied as error:
                    self._note([error])
        except Denied as error:
            self._note([error])
        return groups

    async def _topic(
        self, topic: Topic, config: TopicConfig | BridgeError, groups: Sequence[KafkaGroup]
    ) -> TopicFacts:
        known = None if isinstance(config, BridgeError) else config
        shape, lags = Shape(), list[GroupLag]()
        marks: dict[int, Watermarks] = {}
        problem = topic.error
        unreadable: str | None = None
        if problem is None:
            try:
                marks = (await self._admin.watermarks({topic.name: topic.partitions}))[topic.name]
                await self._sample(topic.name, marks, shape)
            except (Denied, ConfigurationError) as error:
                problem = str(error)
            except OffsetGone as error:  # retention was at work meanwhile
                self._note([f"{_place(error)}: gone while the sample was read, which ends there"])
            except RecordError as error:
                unreadable = str(error)
        for group in groups:
            lag = group_lag(group, topic.name, marks)
            if lag is not None:
                lags.append(lag)
        return TopicFacts(
            topic=topic,
            marks=marks,
            config=known,
            shape=shape,
            groups=lags,
            problem=problem,
            unreadable=unreadable,
            message_bytes_max=self._server.get("max_payload"),
        )

    async def _sample(self, topic: str, marks: dict[int, Watermarks], shape: Shape) -> None:
        if not self._sample_records:
            return
        bounds = marks if self._sample_records < 0 else newest(marks, self._sample_records)
        source = KafkaSource(self._kafka, topic, options=self._options)
        try:
            async for records in records_between(source, bounds):
                shape.add(records)
        finally:
            await source.close()

    def _note(self, errors: Any) -> None:
        """One line per kind of trouble, not one per topic."""
        for error in errors:
            text = str(error)
            if isinstance(error, Unsupported):
                text = (
                    f"Kafka at {self._kafka} describes neither topics nor groups (librdkafka's mock"
                    " cluster does not): compaction, retention, limits and groups are unknown"
                )
            if text not in self._notes:
                self._notes.append(text)
