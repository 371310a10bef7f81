"""A project file from an assessment: every line with the reason it is there. Pure."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError
from ..jetstream.target import NatsTarget
from ..model import ROUTE_NAME_MAX, Route, counted, default_name
from ..records.headers import HEADER_BLOCK_BYTES_MAX
from .file import GROUP_NAME_MAX
from .findings import TopicFacts, Verdict, findings

RATE_PER_S: Final = 80_000
"""Records a second of a backfill, for the estimate of its time."""
_REPLICAS_MAX: Final = 3
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_SECRET: Final = re.compile(r"password|secret|token|jaas|\.key$|\.pem$")
_PLANNED: Final = (
    "cleanup.policy",
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "message.timestamp.type",
    "delete.retention.ms",
)


class Names(NamedTuple):
    """What is named after a topic: its route, its stream, and the ``head`` of its subjects."""

    route: str
    stream: str
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A key of a route's table and why it has this value. ``is_open``: left to the reader."""

    key: str
    value: str | int
    reason: str
    is_open: bool = False

    def __str__(self) -> str:
        """As the file has it."""
        mark = "# " if self.is_open else ""
        reason = f"  # {self.reason}" if self.reason else ""
        return f"{mark}{self.key} = {toml(self.value)}{reason}"


def plan_text(
    topics: Sequence[TopicFacts],
    *,
    kafka: str,
    nats: NatsTarget,
    pattern: str,
    is_cluster: bool,
    kafka_options: Mapping[str, str] = NOTHING,
    notes: Sequence[str] = (),
) -> str:
    """The project file for these topics, without secrets.

    ``is_cluster``: several NATS servers keep a stream.
    """
    names = names_of([it.topic.name for it in topics])
    parts = [_head(pattern, topics, notes), _kafka(kafka, kafka_options), _nats(nats)]
    parts += [_route(it, names[it.topic.name], is_cluster) for it in topics]
    parts += _groups(topics, names)
    return "\n".join(parts)


def planned(facts: TopicFacts) -> dict[str, str]:
    """What of a topic is written down, so that drift from it is seen."""
    values = {"partitions": str(facts.topic.partitions), "replicas": str(facts.topic.replicas)}
    if facts.config is not None:
        known = facts.config.values
        values |= {name: known[name] for name in _PLANNED if name in known}
    return values


def names_of(topics: Iterable[str]) -> dict[str, Names]:
    """What is named after each topic; all apart.

    Topic ``a`` takes the subjects ``a.>``, which would hold those of topic ``a.b``: that one then
    gets ``a-b``.
    """
    all_topics = set(topics)
    routes: set[str] = set()
    streams: set[str] = set()
    heads: set[str] = set()
    names: dict[str, Names] = {}
    for topic in sorted(all_topics):
        tokens = topic.split(".")
        above = {".".join(tokens[:n]) for n in range(1, len(tokens))}
        head = topic
        if "" in tokens or above & all_topics:
            others = (all_topics | heads) - {topic}
            dashed = re.sub(r"\.+", "-", topic)
            head = _numbered(dashed, partial(_is_apart, others=others))
        stream = re.sub(r"[^A-Za-z0-9_-]+", "-", topic).upper()
        stream = _numbered(stream, partial(_is_none_of, others=streams))
        route = _numbered(default_name(topic), partial(_is_none_of, others=routes), ROUTE_NAME_MAX)
        routes.add(route)
        streams.add(stream)
        heads.add(head)
        names[topic] = Names(route, stream, head)
    return names


def _is_apart(head: str, others: Iterable[str]) -> bool:
    """Whether no other's subjects are under ``head``."""
    return not any(it == head or it.startswith(f"{head}.") for it in others)


def _is_none_of(name: str, others: Iterable[str]) -> bool:
    return name not in others


def _numbered(name: str, is_free: Callable[[str], bool], longest: int | None = None) -> str:
    """The name, or the first of name-2, name-3, … that is free; cut to be no longer than that."""
    ends = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    candidates = (name[: longest and longest - len(end)] + end for end in ends)
    return next(it for it in candidates if is_free(it))


def lines_of(facts: TopicFacts, names: Names, *, is_cluster: bool) -> list[Line]:
    """The keys of a topic's route."""
    config, shape, topic = facts.config, facts.shape, facts.topic
    lines = [
        Line(key="topic", value=topic.name, reason=""),
        Line(key="stream", value=names.stream, reason=""),
        Line(key="subject", value=f"{names.head}.{{partition}}.{{key}}", reason=""),
    ]
    if names.route != default_name(topic.name):
        reason = f"{default_name(topic.name)} is another topic's"
        lines.append(Line(key="name", value=names.route, reason=reason))
    if topic.replicas > 1:
        wanted = min(topic.replicas, _REPLICAS_MAX)
        reason = f"the topic's replication factor is {topic.replicas}"
        if not is_cluster:
            reason += "; this NATS server stands alone"
        lines.append(Line(key="replicas", value=wanted, reason=reason, is_open=not is_cluster))
    if config is not None and config.is_compacted:
        reason = f"cleanup.policy = {config.values.get('cleanup.policy')}"
        lines.append(Line(key="max_msgs_per_subject", value=1, reason=reason))
        ttl_ms = config.number("delete.retention.ms")
        if ttl_ms > 0:
            reason = f"delete.retention.ms = {ttl_ms}; wants shared = true or dense"
            ttl = Line(
                key="tombstone_ttl_s", value=max(1, ttl_ms // 1_000), reason=reason, is_open=True
            )
            lines.append(ttl)
    if config is not None and config.expires and config.number("retention.ms") > 0:
        age_ms = config.number("retention.ms")
        reason = (
            f"retention.ms = {age_ms}; counts from the import; wants shared = true or dense,"
            " for else the position would expire"
        )
        age = Line(key="max_age_s", value=max(1, age_ms // 1_000), reason=reason, is_open=True)
        lines.append(age)
    if facts.message_bytes_max is not None and shape.largest_bytes > facts.message_bytes_max:
        reason = f"one record makes {shape.largest_bytes} bytes, max_payload is"
        reason += f" {facts.message_bytes_max}"
        lines.append(Line(key="large", value="chunks", reason=reason))
    if shape.header_block_max > HEADER_BLOCK_BYTES_MAX:
        reason = f"headers of {shape.header_block_max} bytes fit no message"
        lines.append(Line(key="on_poison", value="park", reason=reason))
    return [_as_usable(line, lines) for line in lines]


def _as_usable(line: Line, lines: Sequence[Line]) -> Line:
    """The line, left open if a route would not take it."""
    if line.is_open or line.key in ("topic", "stream", "subject"):
        return line
    values: dict[str, Any] = {it.key: it.value for it in lines[:3]}
    try:
        Route(**values, **{line.key: line.value})  # type: ignore[arg-type]
    except ConfigurationError:
        return Line(key=line.key, value=line.value, reason=line.reason, is_open=True)
    return line


def _head(pattern: str, topics: Sequence[TopicFacts], notes: Sequence[str]) -> str:
    offsets = sum(it.offsets for it in topics)
    size = sum(it.bytes_estimate for it in topics)
    return "\n".join(
        [
            "# What is moved from Kafka to NATS, and how. Written by `millstream bridge plan`;",
            "# lines behind a # are choices left to you. `plan --check` says what drifted since.",
            (
                f"# {len(topics)} topics, {offsets:,} offsets, about {size / 1e6:,.1f} MB as"
                f" messages; {_duration(offsets)} at {RATE_PER_S:,} records/s."
            ),
            *(f"# note: {note}" for note in notes),
            "",
            "[plan]",
            f"topics = {toml(pattern)}",
            "",
        ]
    )


def _kafka(bootstrap: str, options: Mapping[str, str]) -> str:
    lines = ["[kafka]", f"bootstrap = {toml(bootstrap)}", ""]
    if not options:
        example = '# "sasl.password" = { env = "KAFKA_PASSWORD" }    # or { file = "…" }'
        return "\n".join([*lines, "# [kafka.options]    # librdkafka's settings, as", example, ""])
    lines.append("[kafka.options]")
    for name, value in options.items():
        if _SECRET.search(name):
            where = re.sub(r"[^A-Z0-9]+", "_", name.upper())
            lines.append(f'# {toml(name)} = {{ env = "{where}" }}    # a secret: say where it is')
        else:
            lines.append(f"{toml(name)} = {toml(value)}")
    return "\n".join([*lines, ""])


def _nats(target: NatsTarget) -> str:
    lines = ["[nats]", f"url = {toml(str(target))}"]
    if "…@" in str(target):
        lines[1] = f"url = {toml(str(target).replace('…@', ''))}"
        lines.append("# user, password = { env = … }    # or token: they were in the URL")
    paths = {it: getattr(target, it) for it in ("creds", "nkey", "tls_ca", "tls_cert", "tls_key")}
    lines += [f"{it} = {toml(str(path.resolve()))}" for it, path in paths.items() if path]
    lines += [f"domain = {toml(target.domain)}"] if target.domain else []
    if len(lines) == 2:
        lines.append('# creds = "bridge.creds"    # or nkey, user and password, token, tls_ca, …')
    return "\n".join([*lines, ""])


def _route(facts: TopicFacts, names: Names, is_cluster: bool) -> str:
    found = findings(facts)
    comments = [
        (
            f"# {facts.offsets:,} offsets in {facts.topic.partitions} partitions, about"
            f" {facts.bytes_estimate / 1e6:,.1f} MB as messages; {_duration(facts.offsets)}"
        )
    ]
    for it in found:
        remedy = f" → {it.remedy}" if it.remedy else ""
        comments.append(f"# {it.about}: {it.what}{remedy}")
    lines = ["[[route]]", *map(str, lines_of(facts, names, is_cluster=is_cluster))]
    values = ", ".join(f"{toml(k)} = {toml(v)}" for k, v in planned(facts).items())
    lines.append(f"planned = {{ {values} }}")
    if facts.problem is not None or any(
        it.verdict is Verdict.CANNOT and it.about == "reading" for it in found
    ):
        lines = [f"# {line}" for line in lines]
    return "\n".join([*comments, *lines, ""])


def _groups(topics: Sequence[TopicFacts], names: Mapping[str, Names]) -> list[str]:
    """One for each topic that a Kafka group reads, as a coordinator group reads one."""
    reads = [(group.group, it.topic.name, group) for it in topics for group in it.groups]
    of_several = Counter(kafka for kafka, _, _ in reads)
    taken: set[str] = set()
    parts = []
    for kafka, topic, group in sorted(reads, key=lambda it: it[:2]):
        route = names[topic].route
        name = kafka if of_several[kafka] == 1 else f"{kafka}-{route}"
        target = re.sub(r"[^A-Za-z0-9_-]", "-", name)
        target = _numbered(target, partial(_is_none_of, others=taken), GROUP_NAME_MAX)
        taken.add(target)
        parts.append(
            "\n".join(
                [
                    f"# {group.state}, {counted(group.members, 'member')}; behind by {group.lag:,}",
                    "[[group]]",
                    f"kafka = {toml(kafka)}",
                    f"group = {toml(target)}",
                    f"routes = [{toml(route)}]",
                    "",
                ]
            )
        )
    return parts


def _duration(offsets: int) -> str:
    seconds = offsets / RATE_PER_S
    if seconds < 60:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7_200 else f"{seconds / 3_600:,.1f} h"


def toml(value: str | int) -> str:
    """A value as TOML writes it; JSON's texts are TOML's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
