"""What is to be said about moving a topic: each finding with its reason and its remedy. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ..kafka.admin import KafkaGroup, Topic, TopicConfig
from ..model import Watermarks
from ..records.headers import HEADER_BLOCK_BYTES_MAX
from .shape import DISTINCT_MAX, Shape

SUBJECTS_MANY: Final = 1_000_000


class Verdict(StrEnum):
    """How a topic, or one thing about it, moves."""

    AS_IS = "as it is"
    CHOICE = "choice"
    CANNOT = "cannot"


_RANK = {Verdict.AS_IS: 0, Verdict.CHOICE: 1, Verdict.CANNOT: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know: ``what`` it is, and the ``remedy``, empty where nothing is to be done."""

    about: str
    verdict: Verdict
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLag:
    """A consumer group of the topic: how far behind, over how many partitions with a position."""

    group: str
    state: str
    members: int
    lag: int
    positions: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFacts:
    """Everything that was found out about a topic. ``config`` is None where Kafka does not tell.

    ``problem``: why the topic may not be read at all; ``unreadable``: the record at which reading
    it ended, and what can be done.
    """

    topic: Topic
    marks: Mapping[int, Watermarks] = field(default_factory=dict)
    config: TopicConfig | None = None
    shape: Shape = field(default_factory=Shape)
    groups: Sequence[GroupLag] = ()
    problem: str | None = None
    unreadable: str | None = None
    message_bytes_max: int | None = None

    @property
    def offsets(self) -> int:
        """Offsets between the log ends of all partitions: the records, and gaps."""
        return sum(mark.high - mark.low for mark in self.marks.values())

    @property
    def bytes_estimate(self) -> int:
        """What the records take as messages, by the mean of the sample."""
        return round(self.offsets * self.shape.mean_bytes)


def findings(facts: TopicFacts) -> list[Finding]:
    """All that is to be said about a topic, the gravest first."""
    if facts.problem is not None:
        return [_finding("reading", Verdict.CANNOT, facts.problem, "permit Read and Describe")]
    found = [
        *([_finding("reading", Verdict.CANNOT, facts.unreadable)] if facts.unreadable else []),
        *_of_name(facts.topic.name),
        *_of_sizes(facts),
        *_of_config(facts),
        *_of_offsets(facts),
        *_of_keys(facts.shape),
        *_of_content(facts.shape),
        *_of_groups(facts),
    ]
    return sorted(found, key=lambda it: -_RANK[it.verdict])


def verdict(found: Sequence[Finding]) -> Verdict:
    """The gravest of all."""
    return max((it.verdict for it in found), key=lambda it: _RANK[it], default=Verdict.AS_IS)


def group_lag(group: KafkaGroup, topic: str, marks: Mapping[int, Watermarks]) -> GroupLag | None:
    """How far a group is behind in a topic; None if it has no position there."""
    positions = {p: at for p, at in group.of_topic(topic).items() if p in marks}
    if not positions:
        return None
    return GroupLag(
        group=group.name,
        state=group.state,
        members=group.members,
        lag=sum(max(0, marks[p].high - at) for p, at in positions.items()),
        positions=positions,
    )


def _finding(about: str, verdict: Verdict, what: str, remedy: str = "") -> Finding:
    return Finding(about=about, verdict=verdict, what=what, remedy=remedy)


def _of_name(name: str) -> list[Finding]:
    if "" not in name.split("."):
        return []
    remedy = "name the topic's tokens in the subject template, without {topic}"
    return [_finding("name", Verdict.CHOICE, f"{name!r} has an empty token at a dot", remedy)]


def _of_sizes(facts: TopicFacts) -> list[Finding]:
    shape, limit = facts.shape, facts.message_bytes_max
    found = []
    if limit is not None and shape.largest_bytes > limit and shape.largest_at is not None:
        partition, offset = shape.largest_at
        found.append(
            _finding(
                "size",
                Verdict.CHOICE,
                f"partition {partition} offset {offset} makes a message of {shape.largest_bytes:,}"
                f" bytes, the server takes {limit:,} (max_payload)",
                'large = "chunks" or "object-store", or a larger max_payload',
            )
        )
    elif limit is not None and facts.config is not None:
        allowed = facts.config.number("max.message.bytes")
        is_near = shape.largest_bytes * 2 > limit
        if allowed > limit and (is_near or "max.message.bytes" in facts.config.own):
            found.append(
                _finding(
                    "size",
                    Verdict.AS_IS,
                    f"max.message.bytes permits records of {allowed:,} bytes, the server takes"
                    f" {limit:,}; the largest of the sample has {shape.largest_bytes:,}",
                )
            )
    if shape.header_block_max > HEADER_BLOCK_BYTES_MAX and shape.header_block_at is not None:
        partition, offset = shape.header_block_at
        found.append(
            _finding(
                "headers",
                Verdict.CANNOT,
                f"partition {partition} offset {offset} has headers of {shape.header_block_max:,}"
                f" bytes; a stream takes {HEADER_BLOCK_BYTES_MAX:,}",
                'on_poison = "park" or "skip" for such records',
            )
        )
    return found


def _of_config(facts: TopicFacts) -> list[Finding]:
    config = facts.config
    if config is None:
        what = "Kafka does not tell this topic's settings: compaction and retention are unknown"
        return [_finding("settings", Verdict.CHOICE, what, "permit DescribeConfigs, or look there")]
    found = []
    if config.is_compacted:
        found.append(
            _finding(
                "compaction",
                Verdict.AS_IS,
                "compacted: the newest record of each key stays",
                "max_msgs_per_subject = 1, {key} in the subject",
            )
        )
    age_ms, size = config.number("retention.ms"), config.number("retention.bytes")
    if config.expires and (age_ms >= 0 or size >= 0):
        limits = [f"{_days(age_ms)}"] if age_ms >= 0 else []
        limits += [f"{size:,} bytes a partition"] if size >= 0 else []
        found.append(
            _finding(
                "retention",
                Verdict.CHOICE,
                f"Kafka removes records after {' or '.join(limits)}",
                "nothing: the stream keeps all; or max_age_s (shared or dense route),"
                " which counts from the import",
            )
        )
    if config.values.get("remote.storage.enable") == "true":
        found.append(
            _finding("storage", Verdict.AS_IS, "old records are in remote storage: slow to read")
        )
    return found


def _of_offsets(facts: TopicFacts) -> list[Finding]:
    shape = facts.shape
    if not facts.offsets:
        return [_finding("records", Verdict.AS_IS, "empty")]
    if not shape.missing:
        return []
    return [
        _finding(
            "offsets",
            Verdict.AS_IS,
            f"{shape.missing:,} offsets of the sample have no record (transactions, compaction)",
            "a grouped route; in a dense one sequences would not be offset + 1",
        )
    ]


def _of_keys(shape: Shape) -> list[Finding]:
    found = []
    if shape.null_keys:
        part = f"{shape.null_keys:,} of {shape.records:,}"
        found.append(
            _finding(
                "keys",
                Verdict.AS_IS,
                f"{part} records of the sample have no key: one subject for all of a partition",
            )
        )
    if shape.hashed_keys:
        found.append(
            _finding(
                "keys",
                Verdict.AS_IS,
                f"keys of up to {shape.key_bytes_max:,} bytes: long ones become a prefix and a"
                " hash, the whole key travels in a header",
            )
        )
    if len(shape.distinct_keys) >= DISTINCT_MAX:
        found.append(
            _finding(
                "keys",
                Verdict.CHOICE,
                f"more than {DISTINCT_MAX:,} keys in the sample: as many subjects, which the"
                " server keeps in memory",
                "a template without {key}, or with {key|hash8}",
            )
        )
    return found


def _of_content(shape: Shape) -> list[Finding]:
    found = []
    if shape.packed:
        found.append(
            _finding(
                "headers",
                Verdict.AS_IS,
                f"{shape.packed:,} records of the sample have headers that NATS cannot hold as"
                " they are; they are packed, nothing is lost",
            )
        )
    if shape.schema_records and shape.schema_records * 2 > shape.records - shape.tombstones:
        ids = ", ".join(str(it) for it in sorted(shape.schema_ids)[:10])
        found.append(
            _finding(
                "schemas",
                Verdict.AS_IS,
                f"values carry ids of a schema registry ({ids}); they stay as they are",
                "copy the registry's schemas, so that readers need no Kafka",
            )
        )
    return found


def _of_groups(facts: TopicFacts) -> list[Finding]:
    found = []
    for group in facts.groups:
        lost = [p for p, at in group.positions.items() if at < facts.marks[p].low]
        if lost:
            found.append(
                _finding(
                    "groups",
                    Verdict.CHOICE,
                    f"group {group.group} stands at offsets that Kafka no longer has"
                    f" (partitions {_some(lost)})",
                    "let it read on, or set its positions, before the cut-over",
                )
            )
        unsaid = [p for p, m in facts.marks.items() if m.high and p not in group.positions]
        if unsaid:
            found.append(
                _finding(
                    "groups",
                    Verdict.CHOICE,
                    f"group {group.group} has committed nothing in some partitions"
                    f" ({_some(unsaid)}), which its lag leaves out",
                    "let it read on, or say --uncommitted at the cut-over",
                )
            )
    return found


def _some(partitions: Sequence[int]) -> str:
    """The first ten of them."""
    shown = ", ".join(map(str, sorted(partitions)[:10]))
    return f"{shown}, …" if len(partitions) > 10 else shown


def _days(age_ms: int) -> str:
    hours = age_ms / 3_600_000
    return f"{hours / 24:g} days" if hours >= 24 else f"{hours:g} hours"


def facts_json(facts: TopicFacts) -> dict[str, Any]:
    """One topic of an assessment, as its report has it."""
    found, shape = findings(facts), facts.shape
    return {
        "topic": facts.topic.name,
        "verdict": str(verdict(found)),
        "partitions": facts.topic.partitions,
        "replicas": facts.topic.replicas,
        "offsets": facts.offsets,
        "bytes_estimate": facts.bytes_estimate,
        "records_per_second": round(shape.per_second, 1),
        "sample": {
            "records": shape.records,
            "distinct_keys": len(shape.distinct_keys),
            "null_keys": shape.null_keys,
            "key_bytes_max": shape.key_bytes_max,
            "tombstones": shape.tombstones,
            "header_names": sorted(shape.header_names)[:100],
            "header_block_max": shape.header_block_max,
            "largest_bytes": shape.largest_bytes,
            "largest_at": shape.largest_at,
            "missing_offsets": shape.missing,
            "schema_ids": sorted(shape.schema_ids)[:100] if shape.schema_records else [],
            "log_append": shape.log_append,
        },
        "config": None
        if facts.config is None
        else {name: facts.config.values[name] for name in sorted(facts.config.own)},
        "groups": [
            {"group": it.group, "state": it.state, "members": it.members, "lag": it.lag}
            for it in facts.groups
        ],
        "findings": [
            {
                "about": it.about,
                "verdict": str(it.verdict),
                "what": it.what,
                "remedy": it.remedy,
            }
            for it in found
        ],
    }
