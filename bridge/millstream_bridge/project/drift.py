"""What has changed since a project was written: in Kafka, in NATS, in what the file can know.

Kafka's side is compared with what each rule noted (``planned``); a stream that is there, with what
the route would make. A stream that is not there yet is no drift.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..errors import ConnectionLost, Unreachable
from ..jetstream.api import stream_info
from ..jetstream.connection import Connection
from ..jetstream.stream import find_problem
from ..model import Route
from ..records.mapping import Mapping as SubjectMapping
from .assess import Assessment, assess, compiled
from .file import Project
from .findings import TopicFacts, Verdict, findings
from .plan import planned
from .routes import check_together
from .rule import Rule, routes_of

_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One thing that is no longer as the project says, and what can be done."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.what} → {self.remedy}"


class Checked(NamedTuple):
    """What drifted, empty if all is as written; ``notes`` on what is unknown, or may be meant."""

    drifts: list[Drift]
    notes: list[str]


async def check(project: Project, *, sample_records: int) -> Checked:
    """Everything that drifted. Changes nothing.

    ConfigurationError: two routes get in each other's way. Unreachable.
    """
    named = [re.escape(rule.topic) for rule in project.rules if rule.topic is not None]
    meant = [rule.topics.pattern for rule in project.rules if rule.topics is not None]
    patterns = [*named, *meant, *filter(None, [project.topics_planned])]
    found = await assess(
        kafka=project.kafka,
        topics="|".join(f"(?:{it})" for it in patterns),
        nats=project.nats,
        kafka_options=project.kafka_options,
        sample_records=sample_records,
        may_be_empty=True,
    )
    routes = routes_of(project.rules, [it.topic.name for it in found.topics])
    warnings = check_together(routes)
    drifts = kafka_drift(project, found)
    partitions = {it.topic.name: it.topic.partitions for it in found.topics}
    drifts += await _stream_drifts(project, routes, partitions)
    return Checked(drifts, [*found.notes, *(f"{it.topic}: {it.what}" for it in warnings)])


def kafka_drift(project: Project, found: Assessment) -> list[Drift]:
    """What drifted on Kafka's side. Pure."""
    topics = {it.topic.name: it for it in found.topics}
    drifts = []
    for rule in project.rules:
        if rule.topic is None:
            continue
        facts = topics.get(rule.topic)
        if facts is None:
            what = "the topic is not there (any more), or may not be seen"
            drifts.append(Drift(where=rule.topic, what=what, remedy="remove its route"))
        else:
            drifts += _of_topic(rule, facts)
    moved = {route.topic for route in routes_of(project.rules, topics)}
    for name in _planned_topics(project, topics):
        if name not in moved:
            what = "a topic that no route moves"
            drifts.append(Drift(where=name, what=what, remedy="add a [[route]], or narrow [plan]"))
    return drifts + _of_groups(project, topics, moved)


def _planned_topics(project: Project, topics: Mapping[str, TopicFacts]) -> list[str]:
    if not project.topics_planned:
        return []
    pattern = compiled(project.topics_planned)
    return [name for name in topics if pattern.fullmatch(name)]


def _of_topic(rule: Rule, facts: TopicFacts) -> list[Drift]:
    drifts = []
    now, where = planned(facts), facts.topic.name
    for name, before in rule.planned.items():
        if name in now and now[name] != before:
            what = f"{name} was {before}, is {now[name]} now"
            drifts.append(Drift(where=where, what=what, remedy=_remedy(name)))
    takes_large = rule.settings.get("large", "refuse") != "refuse"
    goes_on = rule.settings.get("on_poison", "stop") != "stop"
    for it in findings(facts):
        is_answered = it.about == "size" and takes_large
        is_answered |= it.about in ("size", "headers") and goes_on
        grave = it.verdict is Verdict.CANNOT or (
            it.about == "size" and it.verdict is Verdict.CHOICE
        )
        if grave and not is_answered:
            drifts.append(Drift(where=where, what=it.what, remedy=it.remedy))
    return drifts


def _remedy(name: str) -> str:
    if name == "partitions":
        return "nothing for a grouped route: it takes new partitions up; then note the number"
    if name in ("cleanup.policy", "delete.retention.ms"):
        return "look at max_msgs_per_subject and tombstone_ttl_s, then note the new value"
    if name.startswith("retention"):
        return "see that the bridge keeps ahead of it, look at max_age_s, then note the new value"
    return "see that the route still fits, then note the new value in planned"


def _of_groups(project: Project, topics: Mapping[str, TopicFacts], moved: set[str]) -> list[Drift]:
    drifts = []
    known = {it.kafka for it in project.groups}
    there = {group.group: name for name in moved if name in topics for group in topics[name].groups}
    for name, topic in sorted(there.items()):
        if known and name not in known:
            what = f"Kafka group {name} reads topic {topic}, and the project does not have it"
            drifts.append(Drift(where=f"group {name}", what=what, remedy="add a [[group]]"))
    for name in sorted(known - there.keys()):
        what = "has no position in any topic of the project"
        drifts.append(Drift(where=f"group {name}", what=what, remedy="remove its [[group]]"))
    return drifts


async def _stream_drifts(
    project: Project, routes: Sequence[Route], partitions: Mapping[str, int]
) -> list[Drift]:
    drifts = []
    connection = await Connection.open(project.nats, name="millstream plan")
    try:
        for route in routes:
            mapping = SubjectMapping(route)
            is_dense = route.mode == "dense"
            for p in range(partitions.get(route.topic, 0)) if is_dense else [None]:
                info = await stream_info(connection, mapping.stream_name(p or 0))
                if info is not None:
                    drifts += stream_drift(mapping, info.config, p)
    except ConnectionLost as lost:
        raise Unreachable("JetStream", str(project.nats), str(lost)) from lost
    finally:
        await connection.close()
    return drifts


def stream_drift(
    mapping: SubjectMapping, config: Mapping[str, Any], kafka_partition: int | None = None
) -> list[Drift]:
    """What of a stream that is there is not as its route says. Pure.

    ``kafka_partition``: of a dense route, whose stream it is.
    """
    route = mapping.route
    where = f"stream {mapping.stream_name(kafka_partition or 0)}"
    problem = find_problem(config, mapping, kafka_partition)
    if problem is not None:
        return [Drift(where=where, what=problem, remedy="mend the stream, or take another name")]
    wanted: dict[str, tuple[object, object]] = {
        "num_replicas": (route.replicas, config.get("num_replicas", 1)),
        "storage": (route.storage, config.get("storage", "file")),
        "max_age": (round((route.max_age_s or 0) * _NANOSECONDS), config.get("max_age", 0)),
        "max_bytes": (route.max_bytes or -1, config.get("max_bytes", -1)),
        "max_msgs_per_subject": (
            route.max_msgs_per_subject or -1,
            config.get("max_msgs_per_subject", -1),
        ),
    }
    return [
        Drift(
            where=where,
            what=f"{name} is {has}, the route says {says}",
            remedy="change the route or, with `nats stream edit`, the stream",
        )
        for name, (says, has) in wanted.items()
        if says != has
    ]
