"""What a description means on one server: everything that is to be made, or why it cannot be.

`plan` only reads. It compares every stream, bucket and ``cfg`` that is there with the wanted one
(``layout.py``) and says for each what is to be done; a dry run is the plan, and `create.apply`
carries it out.

**Order**: streams (origins before what is sourced from them), then per group its bucket, its start
positions, and its ``cfg`` last. Whatever a process that carries it out gets to, what stands is
harmless: a stream without a group stores messages, a bucket without ``cfg`` is what a member that
joins first would make itself, and start positions stand before any member can read past them.

**Nothing is deleted, nothing that runs is moved.** A group that is there with other partitions,
stream, key or levels is refused: two descriptions of one group are a mistake of somebody's.
Policies alone can be changed, while no member is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from nats.aio.client import Client

from .. import naming
from ..errors import GroupError, StreamUnfit
from ..jetstream.api import (
    API_PREFIX,
    Api,
    RequestFailed,
)
from ..jetstream.keys import bucket_config
from ..model import ConfigRecord, Retention, decode
from ..partitioning.difference import (
    Change,
    Difference,
    ServerTraits,
    WantedStream,
    differences,
    updated,
)
from ..partitioning.layout import group_config, place, wanted_streams, work_stream
from ..partitioning.pattern import overlap, stored_subjects
from ..partitioning.topic import Description, GroupDescription, Layout, Start, StartKind
from .server import OLDEST_SERVER, TIMEOUT_S, server_traits, stream_info
from .start import resolve_start, sourced_to


class Action(StrEnum):
    """What a step does."""

    CREATE = "create"
    UPDATE = "update"
    KEEP = "keep"
    REFUSE = "refuse"


class StepKind(StrEnum):
    """What a step is about."""

    STREAM = "stream"
    BUCKET = "bucket"
    START = "start"
    CONFIG = "config"


class PlanRefused(GroupError):
    """Something described cannot be made; nothing was changed."""

    def __init__(self, step: "Step", more: int) -> None:
        others = f" (and {more} more)" if more else ""
        super().__init__(f"{step}{others}")
        self.step, self.more = step, more


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing on the server: what is to be done with it, and why; ``str`` is its one line."""

    kind: StepKind
    name: str
    """Of the stream; for the other kinds, the group's."""
    action: Action
    differences: tuple[Difference, ...] = ()
    reason: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Of STREAM.CREATE or STREAM.UPDATE."""
    record: ConfigRecord | None = None
    """The group's ``cfg``."""
    revision: int = 0
    floors: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Of `StepKind.START`: partition → (its epoch, last sequence not to be read)."""

    def __str__(self) -> str:
        told = [self.reason] if self.reason else []
        told += [str(difference) for difference in self.differences]
        why = f": {'; '.join(told)}" if told else ""
        return f"{self.action} {self.kind} {self.name}{why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a description means on one server, in the order in which it is done."""

    file: str
    server: str
    steps: tuple[Step, ...]

    @property
    def is_refused(self) -> bool:
        """Whether something cannot be done; then nothing is."""
        return any(step.action is Action.REFUSE for step in self.steps)

    @property
    def is_done(self) -> bool:
        """Whether everything is as described already."""
        return all(step.action is Action.KEEP for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """The plan as ``create --json`` prints it."""
        return {
            "schema": "millstream.coordinator.create/1",
            "file": self.file,
            "server": self.server,
            "is_refused": self.is_refused,
            "is_done": self.is_done,
            "steps": [
                {
                    "kind": str(step.kind),
                    "name": step.name,
                    "action": str(step.action),
                    "reason": step.reason,
                    "differences": [
                        {
                            "field": it.field,
                            "found": it.found,
                            "wanted": it.wanted,
                            "change": str(it.change),
                            "reason": it.reason,
                        }
                        for it in step.differences
                    ],
                }
                for step in self.steps
            ],
        }


async def plan(connection: Client, description: Description, *, prefix: str = API_PREFIX) -> Plan:
    """Look at the server and say what is to be done. Changes nothing.

    ``prefix``: JetStream's, where it is another domain's (``jetstream.api.api_prefix``). Raises
    ServerUnreachable when JetStream does not answer, StreamUnfit for a server before 2.10.
    """
    planner = _Planner(Api(connection, TIMEOUT_S, prefix), description)
    try:
        return await planner.plan()
    except RequestFailed as error:
        raise planner.api.failure(error) from error


class _Planner:
    """One plan in the making."""

    def __init__(self, api: Api, description: Description) -> None:
        self.api = api
        self._description = description
        self._server = ServerTraits()
        self._generations: dict[str, int] = {}
        self._wanted: dict[str, WantedStream] = {}
        self._found: dict[str, dict[str, Any] | None] = {}
        self._has_ttl = False

    async def plan(self) -> Plan:
        info = await self.api.call("INFO")
        self._has_ttl = info.get("api", {}).get("level", 0) >= 1
        version = self.api.connection.connected_server_version
        if (0, 0) < (version.major, version.minor) < OLDEST_SERVER:
            raise StreamUnfit(
                next(iter(self._description.topics)),
                f"the server is {version.major}.{version.minor}, and its transforms need 2.10",
            )
        self._server = server_traits(self.api)
        for group in self._description.groups.values():
            self._generations[group.name] = await self._generation(group)
        wanted = wanted_streams(self._description, self._generations, self._server)
        self._wanted = {stream.name: stream for stream in wanted}
        steps = [
            await self._origin(topic.name)
            for topic in self._description.topics.values()
            if topic.layout is Layout.SOURCED and topic.rule is None
        ]
        steps += [await self._stream(stream) for stream in self._wanted.values()]
        for group in self._description.groups.values():
            steps += await self._group(group)
        return Plan(file=self._description.file, server=self.api.url, steps=tuple(steps))

    async def _generation(self, group: GroupDescription) -> int:
        """Which of its own streams a group reads now (``generation.py``)."""
        if await self._look(f"KV_{naming.bucket(group.name)}") is None:
            return 1
        entry = await self.api.read(naming.bucket(group.name), naming.CONFIG_KEY)
        if entry.value is None:
            return 1
        stream = decode(ConfigRecord, entry.value).stream or ""
        return naming.work_generation(group.name, stream) or 1

    async def _look(self, stream: str) -> dict[str, Any] | None:
        """What STREAM.INFO says; None: it is not there."""
        if stream not in self._found:
            self._found[stream] = await stream_info(self.api, stream)
        return self._found[stream]

    async def _origin(self, name: str) -> Step:
        """A stream that is only read from."""
        step = Step(kind=StepKind.STREAM, name=name, action=Action.REFUSE)
        info = await self._look(name)
        if info is None:
            return replace(step, reason="is not there, and the topic has no subject to make it by")
        config = info["config"]
        if config.get("retention") != Retention.LIMITS:
            reason = f"has retention {config.get('retention')}: sourcing would take its messages"
            return replace(step, reason=reason)
        return replace(step, action=Action.KEEP, reason="only read")

    async def _stream(self, wanted: WantedStream) -> Step:
        step = Step(kind=StepKind.STREAM, name=wanted.name, action=Action.CREATE)
        info = await self._look(wanted.name)
        reason = await self._why_not(wanted, info)
        if reason:
            return replace(step, action=Action.REFUSE, reason=reason)
        if info is None:
            if wanted.source is None:
                return replace(step, body=wanted.config)
            reason = "" if self._server.has_zero_window else _WINDOW
            return replace(step, body=(await self._begun(wanted)).config, reason=reason)
        found = info["config"]
        messages = info["state"]["messages"]
        sourced = sourced_to(info)
        unlike = differences(wanted, found, messages=messages, sourced=sourced, server=self._server)
        if not unlike:
            return replace(step, action=Action.KEEP)
        if any(difference.change is Change.REPLACE for difference in unlike):
            return replace(step, action=Action.REFUSE, differences=unlike)
        body = updated(wanted, found, sourced=sourced)
        return replace(step, action=Action.UPDATE, differences=unlike, body=body)

    async def _begun(self, wanted: WantedStream) -> WantedStream:
        """A work queue with the start position that its group's ``latest`` means now."""
        assert wanted.source is not None
        group = next(
            group
            for group in self._description.groups.values()
            if naming.work_generation(group.name, wanted.name)
        )
        info = await self._look(wanted.source)
        if group.start.kind is not StartKind.LATEST or info is None:
            return wanted
        start_seq = info["state"]["last_seq"] + 1
        return work_stream(group, wanted.source, start_seq=start_seq, server=self._server)

    async def _why_not(self, wanted: WantedStream, info: Mapping[str, Any] | None) -> str:
        """Why the server would refuse the stream, or nothing would ever be in it; "" if not so."""
        config = wanted.config
        if config["num_replicas"] > 1 and not self._is_cluster:
            return f"{config['num_replicas']} replicas on a server that is in no cluster"
        there = set(info["config"].get("subjects") or []) if info is not None else set()
        for subject in config["subjects"]:
            if subject in there:
                continue
            for other in await self._streams_with(subject):
                if other != wanted.name:
                    return f"its subject {subject!r} overlaps with those of stream {other!r}"
        if wanted.source is not None:
            return await self._why_empty(wanted)
        return ""

    async def _why_empty(self, wanted: WantedStream) -> str:
        assert wanted.source is not None
        read = wanted.config["sources"][0]["subject_transforms"][0]["src"]
        if wanted.source in self._wanted:
            return ""
        info = await self._look(wanted.source)
        if info is None:
            return ""  # the origin's own step says so
        config = info["config"]
        if config.get("sources") or config.get("mirror"):
            return ""  # what it stores is not its own subjects
        destination = (config.get("subject_transform") or {}).get("dest")
        stored = stored_subjects(config.get("subjects") or [], destination)
        if any(overlap(read, subject) for subject in stored):
            return ""
        return f"{read!r} is nothing that stream {wanted.source!r} stores ({', '.join(stored)})"

    @property
    def _is_cluster(self) -> bool:
        return bool(self.api.connection._server_info.get("cluster"))

    async def _streams_with(self, subject: str) -> list[str]:
        return await self.api.stream_names(subject)

    # ---- groups ----

    async def _group(self, group: GroupDescription) -> list[Step]:
        bucket = naming.bucket(group.name)
        info = await self._look(f"KV_{bucket}")
        made = Step(kind=StepKind.BUCKET, name=group.name, action=Action.KEEP)
        if info is None:
            if group.options.replicas > 1 and not self._is_cluster:
                reason = f"{group.options.replicas} replicas on a server that is in no cluster"
                made = replace(made, action=Action.REFUSE, reason=reason)
            else:
                body = bucket_config(group.name, group.options.replicas, has_ttl=self._has_ttl)
                made = replace(made, action=Action.CREATE, body=body)
        wanted = group_config(self._description, group, self._generations[group.name])
        step = Step(kind=StepKind.CONFIG, name=group.name, action=Action.CREATE, record=wanted)
        entry = None if info is None else await self.api.read(bucket, naming.CONFIG_KEY)
        if entry is not None and entry.value is not None:
            step = replace(step, revision=entry.revision)
            found = decode(ConfigRecord, entry.value)
            return [made, await self._config(step, wanted, found)]
        if entry is not None:
            step = replace(step, revision=entry.revision)
        start = await self._start(group, wanted, has_bucket=info is not None)
        return [made, *([start] if start is not None else []), step]

    async def _config(self, step: Step, wanted: ConfigRecord, found: ConfigRecord) -> Step:
        unlike: list[Difference] = []
        for name, change, reason in _CONFIG_FIELDS:
            mine, theirs = getattr(wanted, name), getattr(found, name)
            if mine != theirs:
                unlike.append(
                    Difference(field=name, found=theirs, wanted=mine, change=change, reason=reason)
                )
        if not unlike:
            return replace(step, action=Action.KEEP)
        step = replace(step, differences=tuple(unlike))
        if found.version > wanted.version:
            reason = f"it has version {found.version}: use a newer program"
            return replace(step, action=Action.REFUSE, reason=reason)
        if any(it.change is Change.REPLACE for it in unlike):
            reason = "the group is there with another description"
            return replace(step, action=Action.REFUSE, reason=reason)
        members = await self._members(step.name)
        if members:
            reason = f"{len(members)} members agree on it now ({', '.join(members[:3])}): stop them"
            return replace(step, action=Action.REFUSE, reason=reason)
        record = replace(found, on_failure=wanted.on_failure, max_attempts=wanted.max_attempts)
        return replace(step, action=Action.UPDATE, record=record)

    async def _members(self, group: str) -> list[str]:
        there = await self.api.read_all(naming.bucket(group), naming.MEMBER_PREFIX)
        return [key.removeprefix(naming.MEMBER_PREFIX) for key in there]

    async def _start(
        self, group: GroupDescription, config: ConfigRecord, *, has_bucket: bool
    ) -> Step | None:
        """The positions a group begins at, where its stream keeps what was read."""
        topic = self._description.topics[group.topic]
        if group.start.kind is StartKind.EARLIEST or topic.layout is Layout.SOURCED:
            return None
        step = Step(kind=StepKind.START, name=group.name, action=Action.CREATE, record=config)
        floors: dict[int, tuple[int, int]] = {}
        by_stream: dict[str, tuple[int, int]] = {}
        for partition in range(config.active):
            where = place(config, partition)
            assert where is not None
            if where.stream not in by_stream:
                by_stream[where.stream] = (
                    await self._epoch(group.name, where.stream),
                    await self._floor(where.stream, group.start),
                )
            epoch, floor = by_stream[where.stream]
            if floor and not (has_bucket and await self._is_placed(group.name, partition)):
                floors[partition] = (epoch, floor)
        if not floors:
            return None
        seqs = sorted({floor + 1 for _, floor in floors.values()})
        first = f"{seqs[0]}" if len(seqs) == 1 else f"{seqs[0]} to {seqs[-1]}"
        reason = f"{len(floors)} partitions begin with sequence {first} ({group.start})"
        return replace(step, floors=floors, reason=reason)

    async def _floor(self, stream: str, start: Start) -> int:
        if await self._look(stream) is None:
            return start.sequence - 1 if start.kind is StartKind.SEQUENCE else 0
        return await resolve_start(self.api, stream, start)

    async def _epoch(self, group: str, stream: str) -> int:
        """An epoch above all in the names of the group's consumers."""
        if await self._look(stream) is None:
            return 1
        names = await self.api.consumer_names(stream)
        found = (naming.parse_consumer(group, name) for name in names)
        return 1 + max((one.epoch for one in found if one is not None), default=0)

    async def _is_placed(self, group: str, partition: int) -> bool:
        entry = await self.api.read(naming.bucket(group), naming.partition_key(partition))
        return entry.value is not None


_WINDOW = (
    "of messages that repeat a Nats-Msg-Id while they are sourced one is kept"
    " (nats-server from 2.14 on keeps all)"
)
_ANOTHER = "a group is one reading of one topic; give another name"
_CONFIG_FIELDS = (
    ("stream", Change.REPLACE, _ANOTHER),
    ("partitions", Change.REPLACE, "a resize changes it"),
    ("levels", Change.REPLACE, "the levels of a stream stay"),
    ("filter", Change.REPLACE, _ANOTHER),
    ("key", Change.REPLACE, "order is kept per key"),
    ("on_failure", Change.UPDATE, ""),
    ("max_attempts", Change.UPDATE, ""),
)
