"""From a description to what the server is to have, and what is different there. Pure.

**What is wanted** (`wanted_streams`, `config_record`): for each topic its streams, for each group
its own work-queue stream (layout ``sourced``), its stream of dead letters and its ``cfg``. A
stream's configuration is the JSON that ``STREAM.CREATE`` takes, with every field that matters to a
group said explicitly, so that it can be compared with what the server echoes.

**Tokens written by the server.** Where ``orders.{partition}.{partition:16}.{region}.{customer}`` is
the stored form, the stream listens on ``orders.*.*`` and transforms it to
``orders.{{partition(4,1,2)}}.{{partition(16,1,2)}}.{{wildcard(1)}}.{{wildcard(2)}}``: all levels
hash the same tokens, so they nest. It listens on the stored form as well: a dead letter is replayed
by publishing it under the subject it had. A group's own stream is sourced with such a transform and
listens on its form for the same reason.

**Consumers.** A group has one consumer per partition, for a moment two (the old epoch's and the new
one's), and counts with its finest level, which a resize may bring. A stream is given room for all
its groups and for `SPARE_CONSUMERS` of others, never less than the server's own default.

**What sourcing does not promise.** A nats-server that is killed while such a queue is empty has
forgotten how far it was sourced, and goes on by the time of the queue's last message: what the
origin took just before that time, and had not handed on, is missing (2.12.8 and 2.15.1; not when
it is stopped, nor while a message is left). Who cannot bear that reads the origin itself.

**No window of duplicates** on a group's own stream: it would drop a message of the origin whose
``Nats-Msg-Id`` came before, though the origin took both (seen on all versions; when a backlog is
sourced they come within milliseconds). Servers before 2.14 cannot do without; there it is the
shortest that they take, and the plan says so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from .. import naming
from ..errors import StreamUnfit
from ..model import ConfigRecord, FailurePolicy, Retention
from .difference import (
    CONSUMERS_MAX,
    LEVELS_KEY,
    NEWEST,
    PARTITIONER_KEY,
    UNLIMITED,
    ServerTraits,
    WantedStream,
)
from .key import KeyRule
from .topic import (
    Description,
    Discard,
    GroupDescription,
    Layout,
    StartKind,
    StreamOptions,
    TopicDescription,
    WrittenBy,
    origin_filter,
    published_filter,
    stream_names,
    work_tokens,
)

SPARE_CONSUMERS: Final = 100
SHORTEST_WINDOW_NS: Final = 100_000_000

_PARTITION = re.compile(r"\{\{[Pp]artition\(([0-9]+)(?:,[0-9]+)*\)\}\}")
_NS = 1_000_000_000
_DUPLICATE_WINDOW = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition's messages are: a stream, and a subject filter (None: all of it)."""

    stream: str
    filter: str | None


def place(config: ConfigRecord, partition: int) -> Place | None:
    """Return where a partition is at the level that is read now; None: a group without a stream."""
    if config.stream is None:
        return None
    stream = config.stream.replace("{partition}", str(partition))
    if config.filter is None:
        return Place(stream, None)
    is_first = config.level in (None, config.partitions)
    mark = "{partition}" if is_first else f"{{partition:{config.level}}}"
    tokens = [
        str(partition) if token == mark else "*" if token.startswith("{partition") else token
        for token in config.filter.split(".")
    ]
    return Place(stream, ".".join(tokens))


def config_record(
    rule: KeyRule | None,
    stream: str | None,
    partitions: int,
    *,
    level: int | None = None,
    on_failure: FailurePolicy = FailurePolicy.RETRY,
    max_attempts: int = 5,
) -> ConfigRecord:
    """Return the ``cfg`` of a group that begins; raises KeyRuleError for levels that don't nest."""
    levels = () if rule is None else rule.levels(partitions)
    return ConfigRecord(
        partitions=partitions,
        stream=stream,
        filter=None if rule is None else rule.filter_text,
        key=None if rule is None or rule.function is not None else rule.canonical,
        levels=levels if len(levels) > 1 else (),
        level=level,
        on_failure=on_failure,
        max_attempts=max_attempts,
    )


def group_stream(topic: TopicDescription, group: GroupDescription, generation: int = 1) -> str:
    """Name of the stream a group reads, as ``cfg`` has it."""
    match topic.layout:
        case Layout.TOKEN:
            return topic.name
        case Layout.STREAMS:
            return f"{topic.name}-{{partition}}"
        case Layout.SOURCED:
            return naming.work_stream(group.name, generation)


def group_config(
    description: Description, group: GroupDescription, generation: int = 1
) -> ConfigRecord:
    """The ``cfg`` of a described group; ``generation`` is that of its own stream, if it has one."""
    return config_record(
        group.rule,
        group_stream(description.topics[group.topic], group, generation),
        group.partitions,
        level=group.level,
        on_failure=group.on_failure,
        max_attempts=group.max_attempts,
    )


def group_arguments(description: Description, name: str, generation: int = 1) -> dict[str, Any]:
    """Keyword arguments of `Group` for a member of a described group, but for the handler's key.

    ``Group(url, **group_arguments(description, "billing"))``, and ``@group.handler(key=…)`` with
    the described group's ``rule``. A group with a stream of its own may be at a later generation:
    `generation.current` asks the server.
    """
    group = description.groups[name]
    return {
        "stream": group_stream(description.topics[group.topic], group, generation),
        "name": name,
        "partitions": group.partitions,
        "max_ack_pending": group.max_ack_pending,
        "on_failure": group.on_failure,
        "max_attempts": group.max_attempts,
    }


def wanted_streams(
    description: Description,
    generations: Mapping[str, int] | None = None,
    server: ServerTraits = NEWEST,
) -> tuple[WantedStream, ...]:
    """Every stream the description asks for, origins before what is sourced from them.

    ``generations`` are those of groups whose own stream is not the first.
    """
    streams: list[WantedStream] = []
    for topic in description.topics.values():
        groups = description.groups_on(topic.name)
        if topic.rule is not None:
            streams += _topic_streams(topic, groups)
        if topic.layout is Layout.SOURCED:
            for group in groups:
                generation = (generations or {}).get(group.name, 1)
                streams.append(work_stream(group, topic.name, generation=generation, server=server))
    for group in description.groups.values():
        if group.on_failure is not FailurePolicy.RETRY:
            config = dead_letter_config(group.name, group.dead_letters)
            streams.append(WantedStream(name=config["name"], config=config))
    return tuple(streams)


def _topic_streams(
    topic: TopicDescription, groups: Sequence[GroupDescription]
) -> list[WantedStream]:
    assert topic.rule is not None
    base = {**_limits(topic.options), "retention": str(topic.retention)}
    if topic.layout is Layout.STREAMS:
        needed = 2 * len(groups)
        return [
            WantedStream(
                name=name,
                config={
                    "name": name,
                    "subjects": [topic.rule.subject_filter(partition)],
                    **base,
                    "max_consumers": _room(needed),
                    "metadata": _metadata(topic.rule, topic.partitions, str(topic.partitioner)),
                },
                needed_consumers=needed,
            )
            for partition, name in enumerate(stream_names(topic))
        ]
    stored = topic.rule.subject_filter()
    config: dict[str, Any] = {"name": topic.name, "subjects": [stored], **base}
    needed = 0
    if topic.layout is Layout.TOKEN:
        needed = sum(2 * group.levels[-1] for group in groups)
        config["max_consumers"] = _room(needed)
        config["metadata"] = _metadata(topic.rule, topic.partitions, str(topic.partitioner))
        if topic.written_by is WrittenBy.SERVER:
            published = published_filter(topic.rule)
            config["subjects"] = [published, stored]
            destination = _destination(topic.rule, topic.partitions, 0)
            config["subject_transform"] = {"src": published, "dest": destination}
    return [WantedStream(name=topic.name, config=config, needed_consumers=needed)]


def work_stream(
    group: GroupDescription,
    origin: str,
    *,
    generation: int = 1,
    start_seq: int | None = None,
    server: ServerTraits = NEWEST,
) -> WantedStream:
    """A group's own work-queue stream, sourced from the stream ``origin``.

    ``start_seq`` is the origin's sequence to begin with, instead of the group's ``start``; it
    counts when the stream is made, never later.
    """
    name = naming.work_stream(group.name, generation)
    source: dict[str, Any] = {
        "name": origin,
        "subject_transforms": [
            {
                "src": origin_filter(group.rule),
                "dest": _destination(group.rule, group.partitions, work_tokens(group.rule)),
            }
        ],
    }
    if start_seq is not None:
        source["opt_start_seq"] = start_seq
    elif group.start.kind is StartKind.SEQUENCE:
        source["opt_start_seq"] = group.start.sequence
    elif group.start.kind is StartKind.TIME:
        source["opt_start_time"] = group.start.rfc3339
    needed = 2 * group.levels[-1]
    config: dict[str, Any] = {
        "name": name,
        "subjects": [group.rule.subject_filter()],
        **_limits(group.options),
        "duplicate_window": 0 if server.has_zero_window else SHORTEST_WINDOW_NS,
        "retention": str(Retention.WORK_QUEUE),
        "max_consumers": _room(needed),
        "sources": [source],
        "metadata": _metadata(group.rule, group.partitions, "nats"),
    }
    return WantedStream(name=name, config=config, needed_consumers=needed, source=origin)


def copied_from(group: GroupDescription, old: KeyRule, stream: str) -> dict[str, Any]:
    """A source that takes over another generation's ``stream``, whose rule is ``old``."""
    skipped = work_tokens(group.rule)
    already = 1 + len(old.finer)
    destination = _destination(group.rule, group.partitions, skipped, already)
    return {
        "name": stream,
        "subject_transforms": [{"src": old.subject_filter(), "dest": destination}],
    }


def dead_letter_config(group: str, options: StreamOptions | None = None) -> dict[str, Any]:
    """The stream of a group's dead letters and parked messages.

    Every policy but ``retry`` has a use for it: a stopped partition's message may be set aside. A
    full one refuses: a letter that pushed another out would be a message lost unseen.
    """
    return {
        "name": naming.dead_letter_stream(group),
        "subjects": [naming.dead_letter(group, "*", ">")],
        **_limits(options or StreamOptions()),
        "retention": str(Retention.LIMITS),
        "discard": str(Discard.NEW),
    }


def _destination(rule: KeyRule, partitions: int, skipped: int, already: int = 0) -> str:
    """A transform's destination.

    The first ``skipped`` tokens of the rule are not in the source, which has ``already`` wildcards
    of another meaning in front of the rule's.
    """
    assert rule.partition_place is not None
    marks = {place: level for level, place in rule.finer.items()}
    marks[rule.partition_place] = partitions
    numbers: dict[int, int] = {}
    for place, token in enumerate(rule.subject_filter().split(".")):
        if token == "*" and place not in marks and place >= skipped:
            numbers[place] = already + len(numbers) + 1
    hashed = ",".join(str(numbers[place]) for place in rule.key_places)
    tokens = []
    for place, token in enumerate(rule.subject_filter().split(".")):
        if place in marks:
            tokens.append(f"{{{{partition({marks[place]},{hashed})}}}}")
        elif place in numbers:
            tokens.append(f"{{{{wildcard({numbers[place]})}}}}")
        else:
            tokens.append(token)
    return ".".join(tokens)


def _metadata(rule: KeyRule, partitions: int, partitioner: str) -> dict[str, str]:
    levels = ",".join(map(str, rule.levels(partitions)))
    return {LEVELS_KEY: levels, PARTITIONER_KEY: partitioner}


def _room(needed: int) -> int:
    return max(CONSUMERS_MAX, needed + SPARE_CONSUMERS)


def _limits(options: StreamOptions) -> dict[str, Any]:
    window = options.duplicate_window
    if window is None:
        window = min(_DUPLICATE_WINDOW, options.max_age or _DUPLICATE_WINDOW)
    return {
        "storage": str(options.storage),
        "num_replicas": options.replicas,
        "max_age": _nanoseconds(options.max_age),
        "max_bytes": options.max_bytes or UNLIMITED,
        "max_msgs": options.max_messages or UNLIMITED,
        "max_msg_size": options.max_message_bytes or UNLIMITED,
        "max_msgs_per_subject": UNLIMITED,
        "discard": str(options.discard),
        "duplicate_window": _nanoseconds(window),
        "compression": str(options.compression),
        "allow_direct": True,
    }


def _nanoseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else round(duration.total_seconds() * 1000) * (_NS // 1000)


def check_partitions(
    rule: KeyRule, partitions: int, stream: str, config: Mapping[str, Any]
) -> None:
    """Refuse, with StreamUnfit, to read a stream as a number of partitions that it does not have.

    ``config`` is the stream's on the server. What it does not say is believed: where producers
    write the partitions, and nothing is in its metadata, nobody can know before messages come. The
    server would say nothing either: a partition that no consumer's filter matches stays unread.
    """
    wanted = rule.levels(partitions)
    said = (config.get("metadata") or {}).get(LEVELS_KEY, "")
    for level, found in zip(wanted, _written_levels(rule, config), strict=True):
        if found is not None and found != level:
            reason = f"its subjects have a token for {found} partitions where {level} are wanted"
            raise StreamUnfit(stream, reason)
    known = {int(level) for level in said.split(",") if level.isdecimal()}
    if known and not known >= set(wanted):
        reason = f"its messages are in {said} partitions, not in {','.join(map(str, wanted))}"
        raise StreamUnfit(stream, reason)


def _written_levels(rule: KeyRule, config: Mapping[str, Any]) -> list[int | None]:
    """What the server's transforms write where the rule has its levels; None: something else."""
    transforms = [config.get("subject_transform") or {}]
    for source in config.get("sources") or []:
        transforms += source.get("subject_transforms") or []
    places = [-1 if rule.partition_place is None else rule.partition_place, *rule.finer.values()]
    for transform in transforms:
        tokens = re.sub(r" *([{}(),]) *", r"\1", transform.get("dest", "")).split(".")
        there = dict(enumerate(tokens))
        found = [_PARTITION.fullmatch(there.get(place, "")) for place in places]
        levels = [None if one is None else int(one[1]) for one in found]
        if levels != [None] * len(places):
            return levels
    return [None] * len(places)
