"""A partitioned topic and the groups on it, described in TOML for people and machines alike.

    [topic.ORDERS]                      # the stream's name
    layout = "token"
    subject = "orders.{partition}.{partition:16}.{region}.{customer}"
    partitions = 4

    [group.billing]
    on_failure = "dead-letter"

Three layouts:

* ``token``: one stream, whose subjects carry the partition's token and those of finer levels.
  ``subject`` is the form messages are stored under; tokens in braces are the key's. With
  ``written_by = "server"`` producers publish without the partitions' tokens
  (``orders.<region>.<customer>``) and the stream's transform adds them, hashing the key's tokens;
  with ``"producers"`` they are in what producers publish (`Publisher`, the bridge).
* ``streams``: a stream per partition, ``ORDERS-0`` and so on, told apart by ``{partition}`` in
  ``subject``. No finer levels: sequences of different streams have nothing to do with each other.
* ``sourced``: each group has a work-queue stream of its own, sourced from the stream ``ORDERS``,
  which may be there already and is not touched. With a ``subject`` it is made as well. The groups
  say how many partitions and which levels they have, and which tokens of the origin's subjects are
  the key (``key = "orders.{region}.{customer}"``): the server hashes those.

================== ================= ===============================================================
``[topic.NAME]``   default           meaning
================== ================= ===============================================================
layout             ``"token"``       ``token``, ``streams`` or ``sourced``
subject                              as above; only ``sourced`` can be without
partitions                           the first level; not with ``sourced``
written_by         ``"server"``      ``server`` or ``producers`` (``streams``: always producers)
partitioner        ``"kafka"``       which function the producers use (``nats`` for the server)
retention          ``"limits"``      or ``"workqueue"``: one group, messages go when it has them
storage            ``"file"``        or ``"memory"``
replicas           1                 1 to 5
max_age            none              ``"7d"``, ``"12h"``, ``"30m"``, ``"10s"``, ``"500ms"``
max_bytes          none              ``"10GiB"``, ``"500MB"`` or a number; per stream
max_messages       none
max_message_bytes  none
discard            ``"old"``         or ``"new"``: refuse when full
duplicate_window   ``"2m"``          in which a repeated ``Nats-Msg-Id`` is refused
compression        ``"none"``        or ``"s2"``
================== ================= ===============================================================

================== ================= ===============================================================
``[group.NAME]``   default           meaning
================== ================= ===============================================================
topic              the only one      which of the topics it reads
key                the topic's       a key rule (``key.py``); ``sourced``: over the origin's
                   ``subject``       subjects
partitions         the topic's       ``sourced`` only, and there needed
levels             none              ``sourced`` only: the finer numbers of partitions, ``[16, 64]``
level              the first         how many partitions it begins with
max_ack_pending    256               delivered and not yet acked, per partition; 1 is strict mode
on_failure         ``"retry"``       ``retry``, ``dead-letter``, ``park`` or ``stop``
max_attempts       5                 before ``on_failure`` acts; not with ``retry``
start              ``"earliest"``    ``"earliest"``, ``"latest"``, ``"sequence:N"`` (the first to
                                     read), ``"time:2026-01-31T00:00:00Z"``, or a TOML date and time
storage, replicas  the topic's       of its own streams
dead_letters       everything        a table: ``max_age``, ``max_bytes``, ``max_messages``
================== ================= ===============================================================

Nothing is guessed: a key that is not known, a value of another type, and a combination that cannot
be are each a `TopicError`, one line with file, table and key.
"""

import tomllib
from collections.abc import Mapping
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Final

from ..errors import BadName
from ..model import FailurePolicy, Retention
from ..naming import check_name, work_prefix
from .key import KeyRule, KeyRuleError
from .partition import PARTITIONS_MAX, Partitioner
from .pattern import overlap
from .table import Table, TopicError
from .topic import (
    Compression,
    Description,
    Discard,
    GroupDescription,
    Layout,
    Start,
    StartKind,
    StreamOptions,
    TopicDescription,
    WrittenBy,
    origin_filter,
    stream_names,
    subject_space,
)

REPLICAS_MAX: Final = 5
"""Of any stream, by nats-server."""


def read_description(path: Path) -> Description:
    """Read and check a file. Raises TopicError, also for one that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TopicError(str(path), "", "", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise TopicError(str(path), "", "", f"is not UTF-8 at byte {error.start}") from error
    return parse_description(text, file=str(path))


def parse_description(text: str, *, file: str = "description") -> Description:
    """Read and check ``text``. Raises TopicError, which names ``file``."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopicError(file, "", "", f"not TOML: {error}") from error
    for key, value in document.items():
        if key not in ("topic", "group"):
            raise TopicError(file, "", key, "there are only [topic.NAME] and [group.NAME]")
        if not isinstance(value, dict) or not all(isinstance(it, dict) for it in value.values()):
            raise TopicError(file, key, "", f"write a table per {key}, as [{key}.NAME]")
    topics: dict[str, TopicDescription] = {}
    for name, values in document.get("topic", {}).items():
        topics[name] = _topic(Table(file, f"topic.{name}", values), name)
    if not topics:
        raise TopicError(file, "", "", "describes no topic: write a table [topic.NAME]")
    groups: dict[str, GroupDescription] = {}
    for name, values in document.get("group", {}).items():
        groups[name] = _group(Table(file, f"group.{name}", values), name, topics)
    description = Description(file=file, topics=topics, groups=groups)
    _check_together(description)
    return description


def _topic(table: Table, name: str) -> TopicDescription:
    _check_table_name(table, "topic", name)
    layout = table.choice("layout", Layout.TOKEN)
    subject = table.text("subject")
    partitions = table.number("partitions", 1, PARTITIONS_MAX)
    is_sourced = layout is Layout.SOURCED
    rule = None
    if subject is not None:
        rule = _origin_rule(table, subject) if is_sourced else _subject_rule(table, subject)
    elif not is_sourced:
        raise table.error(
            "subject", f"layout {layout!s} needs one: the form messages are stored under"
        )
    if is_sourced and partitions is not None:
        raise table.error("partitions", "layout sourced: each group says how many it has")
    if not is_sourced and partitions is None:
        raise table.error("partitions", f"layout {layout!s} needs their number")
    default = WrittenBy.PRODUCERS if layout is Layout.STREAMS else WrittenBy.SERVER
    has_writer = table.has("written_by")
    written_by = table.choice("written_by", default)
    has_partitioner = table.has("partitioner")
    server_writes = written_by is WrittenBy.SERVER
    partitioner = table.choice(
        "partitioner", Partitioner.NATS if server_writes else Partitioner.KAFKA
    )
    retention = table.choice("retention", Retention.LIMITS)
    options = _options(table, StreamOptions())
    table.end()
    if retention is Retention.INTEREST:
        raise table.error("retention", "'interest' loses messages on a change of owner")
    if is_sourced:
        if has_writer or has_partitioner:
            key = "written_by" if has_writer else "partitioner"
            raise table.error(key, "layout sourced: the groups' own streams have the partitions")
        if retention is not Retention.LIMITS:
            raise table.error(
                "retention", "layout sourced: the origin's is 'limits', groups' are not"
            )
        return TopicDescription(
            name=name, layout=layout, rule=rule, partitioner=Partitioner.NATS, options=options
        )
    assert rule is not None
    assert partitions is not None
    _check_levels(table, "subject", rule, partitions)
    if layout is Layout.STREAMS and rule.finer:
        raise table.error("subject", "layout streams has no finer levels")
    if layout is Layout.STREAMS and server_writes:
        raise table.error(
            "written_by", "layout streams: a stream's transform cannot choose the stream"
        )
    if server_writes:
        _check_server_writes(table, rule, partitioner)
    return TopicDescription(
        name=name,
        layout=layout,
        rule=rule,
        partitions=partitions,
        written_by=written_by,
        partitioner=partitioner,
        retention=retention,
        options=options,
    )


def _check_server_writes(table: Table, rule: KeyRule, partitioner: Partitioner) -> None:
    if partitioner is not Partitioner.NATS:
        raise table.error("partitioner", f"the server computes 'nats', not '{partitioner!s}'")
    if not rule.key_places:
        raise table.error("subject", "no token is marked as the key, and the server hashes tokens")
    if rule.pattern[-1] == ">":
        raise table.error(
            "subject",
            "with a last '>' the form that is published cannot be told from the stored one",
        )


def _options(table: Table, default: StreamOptions) -> StreamOptions:
    storage = table.choice("storage", default.storage)
    replicas = table.number("replicas", 1, REPLICAS_MAX)
    options = StreamOptions(
        storage=storage,
        replicas=default.replicas if replicas is None else replicas,
        max_age=table.duration("max_age"),
        max_bytes=table.size("max_bytes"),
        max_messages=table.number("max_messages", 1, 2**63 - 1),
        max_message_bytes=table.size("max_message_bytes"),
        discard=table.choice("discard", Discard.OLD),
        duplicate_window=table.duration("duplicate_window"),
        compression=table.choice("compression", Compression.NONE),
    )
    if options.max_message_bytes is not None and options.max_message_bytes >= 2**31:
        raise table.error("max_message_bytes", "is over 2 GiB")
    window = options.duplicate_window
    if window and options.max_age and window > options.max_age:
        raise table.error("duplicate_window", "is longer than max_age")
    return options


def _group(table: Table, name: str, topics: Mapping[str, TopicDescription]) -> GroupDescription:
    _check_table_name(table, "group", name)
    topic = _topic_of(table, topics)
    text = table.text("key")
    if topic.layout is Layout.SOURCED:
        rule, partitions = _work_rule(table, name, topic, text)
    else:
        rule, partitions = _read_rule(table, topic, text)
    level = table.number("level", 1, PARTITIONS_MAX)
    if level is not None and level not in rule.levels(partitions):
        known = ", ".join(map(str, rule.levels(partitions)))
        raise table.error("level", f"{level} is none of the levels {known}")
    max_ack_pending = table.number("max_ack_pending", 1, 2**31 - 1)
    on_failure = table.choice("on_failure", FailurePolicy.RETRY)
    max_attempts = table.number("max_attempts", 1, 2**31 - 1)
    if max_attempts is not None and on_failure is FailurePolicy.RETRY:
        raise table.error("max_attempts", "means nothing with on_failure = 'retry', which goes on")
    start = _start(table)
    if topic.retention is Retention.WORK_QUEUE and start.kind is not StartKind.EARLIEST:
        raise table.error("start", "a work-queue stream is read from what is left in it")
    storage = table.choice("storage", topic.options.storage)
    replicas = table.number("replicas", 1, REPLICAS_MAX) or topic.options.replicas
    options = StreamOptions(storage=storage, replicas=replicas)
    letters = table.table("dead_letters")
    dead_letters = options
    if letters is not None:
        if on_failure is FailurePolicy.RETRY:
            raise table.error("dead_letters", f"there are none with on_failure = '{on_failure!s}'")
        dead_letters = StreamOptions(
            storage=storage,
            replicas=replicas,
            max_age=letters.duration("max_age"),
            max_bytes=letters.size("max_bytes"),
            max_messages=letters.number("max_messages", 1, 2**63 - 1),
        )
        letters.end()
    table.end()
    return GroupDescription(
        name=name,
        topic=topic.name,
        rule=rule,
        partitions=partitions,
        level=None if level == partitions else level,
        max_ack_pending=max_ack_pending or 256,
        on_failure=on_failure,
        max_attempts=max_attempts or 5,
        start=start,
        options=options,
        dead_letters=dead_letters,
    )


def _topic_of(table: Table, topics: Mapping[str, TopicDescription]) -> TopicDescription:
    name = table.text("topic")
    if name is None:
        if len(topics) > 1:
            raise table.error("topic", f"say which of {', '.join(topics)}")
        return next(iter(topics.values()))
    if name not in topics:
        raise table.error("topic", f"there is no [topic.{name}] in this file")
    return topics[name]


def _read_rule(table: Table, topic: TopicDescription, text: str | None) -> tuple[KeyRule, int]:
    """The rule of a group that reads the topic's own streams."""
    for key in ("partitions", "levels"):
        if table.has(key):
            raise table.error(key, f"layout {topic.layout!s}: the topic says it")
    assert topic.rule is not None
    if text is None:
        if not topic.rule.key_places:
            raise table.error("key", "the topic's subject marks no key: write a key rule")
        return topic.rule, topic.partitions
    rule = _parse_rule(table, text)
    if rule.partition_place is None:
        raise table.error("key", "marks no partition's token (write '{partition}')")
    wanted, found = topic.rule.finer, rule.finer
    if rule.partition_place != topic.rule.partition_place or dict(found) != dict(wanted):
        raise table.error(
            "key", f"has its partitions elsewhere than the topic's {topic.rule.text!r}"
        )
    if not overlap(rule.subject_filter(), topic.rule.subject_filter()):
        raise table.error("key", f"reads nothing of the topic's {topic.rule.text!r}")
    if topic.written_by is WrittenBy.SERVER and not set(topic.rule.key_places) <= set(
        rule.key_places
    ):
        raise table.error(
            "key", "leaves out tokens that the server hashes: one key would be in many partitions"
        )
    return rule, topic.partitions


def _work_rule(
    table: Table, name: str, topic: TopicDescription, text: str | None
) -> tuple[KeyRule, int]:
    """The rule of a group with a stream of its own: over the subjects the transform makes."""
    partitions = table.number("partitions", 1, PARTITIONS_MAX)
    if partitions is None:
        raise table.error("partitions", "layout sourced: say how many the group has")
    levels: list[object] = table.take("levels", list, "a list of whole numbers") or []
    if not all(type(level) is int and level > 0 for level in levels):
        raise table.error("levels", f"{levels!r} is not a list of whole numbers")
    if text is None:
        if topic.rule is None or not topic.rule.key_places:
            raise table.error("key", "say which tokens are the key, as in 'orders.{customer}.*'")
        text = topic.rule.text
    if text.startswith("header:"):
        raise table.error(
            "key", "layout sourced: the server hashes tokens, it cannot hash a header"
        )
    if "{partition" in text:
        raise table.error("key", "layout sourced: the origin's subjects carry no partition of ours")
    finer = "".join(f".{{partition:{level}}}" for level in levels)
    rule = _parse_rule(table, f"{work_prefix(name)}.{{partition}}{finer}.{text}")
    _check_levels(table, "levels", rule, partitions)
    if topic.rule is not None and not overlap(origin_filter(rule), topic.rule.subject_filter()):
        raise table.error("key", f"reads nothing of the topic's {topic.rule.text!r}")
    return rule, partitions


def _start(table: Table) -> Start:
    value: str | datetime | None = table.take(
        "start", (str, datetime), "a start position such as 'earliest' or a date and time"
    )
    try:
        if isinstance(value, datetime):
            return Start.at(value)
        return Start() if value is None else Start.parse(value)
    except ValueError as error:
        raise table.error("start", str(error)) from error


def _subject_rule(table: Table, subject: str) -> KeyRule:
    """A topic's ``subject``, which need not mark a key."""
    rule = _parse_rule(table, subject, key="subject")
    if "{partition}" not in rule.pattern:
        raise table.error("subject", "marks no partition's token: write '{partition}' once")
    return rule


def _origin_rule(table: Table, subject: str) -> KeyRule:
    """The ``subject`` of an origin: no partitions; a bare ``*`` is any token."""
    if "{partition" in subject:
        raise table.error("subject", "layout sourced: the origin's subjects carry no partition")
    # With a partition's token of its own in front, no '*' is taken for one.
    rule = _parse_rule(table, f"{{partition}}.{subject}", key="subject")
    return KeyRule(
        text=subject,
        pattern=rule.pattern[1:],
        key_places=tuple(place - 1 for place in rule.key_places),
        partition_place=None,
    )


def _parse_rule(table: Table, text: str, *, key: str = "key") -> KeyRule:
    has_key = text.startswith("header:") or any(
        token.startswith("{") and not token.startswith("{partition") for token in text.split(".")
    )
    try:
        if key == "subject" and not has_key:
            return KeyRule.for_function(_no_key, text)
        return KeyRule.parse(text)
    except KeyRuleError as error:
        raise table.error(key, str(error)) from error


def _no_key(subject: str, headers: Mapping[str, str], payload: bytes) -> None:
    return None


def _check_levels(table: Table, key: str, rule: KeyRule, partitions: int) -> None:
    try:
        rule.levels(partitions)
    except KeyRuleError as error:
        raise table.error(key, error.reason) from error


def _check_table_name(table: Table, kind: str, name: str) -> None:
    try:
        check_name(kind, name)
    except BadName as error:
        raise table.error("", str(error)) from error


def _check_together(description: Description) -> None:
    """Refuse what only shows when all tables are seen."""
    file = description.file
    for one, other in combinations(description.topics.values(), 2):
        for mine in subject_space(one):
            for theirs in subject_space(other):
                if overlap(mine, theirs):
                    reason = f"{theirs!r} overlaps with {mine!r} of [topic.{one.name}]"
                    raise TopicError(file, f"topic.{other.name}", "subject", reason)
    names: dict[str, str] = {}
    for topic in description.topics.values():
        for name in stream_names(topic):
            if name in names:
                reason = f"its stream {name!r} is [topic.{names[name]}]'s as well"
                raise TopicError(file, f"topic.{topic.name}", "", reason)
            names[name] = topic.name
        groups = description.groups_on(topic.name)
        if topic.retention is Retention.WORK_QUEUE and len(groups) > 1:
            first, second = groups[:2]
            reason = (
                f"a work-queue stream has one reader, and [group.{first.name}] reads it"
                " (layout sourced gives each group a work queue of its own)"
            )
            raise TopicError(file, f"group.{second.name}", "topic", reason)
