"""Another number of partitions beyond the levels: a new work queue for a group that has its own.

Levels of one stream nest (``key.py``). A group with a stream of its own (layout ``sourced``) can
have any number, by a new stream, the next generation, while no member of it runs:

1. `PAUSE`: ``ctl`` says that nothing is to be handed out, should a member start meanwhile.
2. `CUT`: the old stream is sourced no more and listens no more. The same update notes in its
   metadata how far it had been sourced, and its own last sequence then; with nobody acking, what it
   was given in between is still stored and says so itself (``Nats-Stream-Source``). So the last
   sourced sequence S is known, now and later. The group's old consumers are deleted.
3. `COPY`: the new stream is made, sourced from the old one, with a transform that computes the
   new partitions' tokens, and with its first sequence above the old one's last. What was left
   comes over in its order. It does not listen yet.
4. `FEED`: the new stream is sourced from the origin instead, from S + 1 on, and listens.
5. `SWITCH`: every new ``part.<n>`` gets an epoch above all there were, then ``cfg`` names the new
   stream. A sink's marks stay comparable: sequences and epochs have both only grown.
6. `END`: records of partitions that are no more and the old stream go, the pause ends.

Each step reads what is there, so `renew` called again after a crash goes on with it. Nothing of the
origin is touched. Members then start with the new number and stream (`current`). Once the new
stream got its first message from the origin, a `plan` of the description takes out of its source
where it began (``difference.py`` says why); if there is one at once, `renew` does.

**Why the group must have been stopped well.** A message that is copied has another sequence. If an
owner died after its effect and before its ack, a fenced sink would not know the copy again. So
every partition must have been put down by its owner, who acks what it handled; one that was taken
from a dead member must be served, and put down, first. (What nobody has handled since an owner died
with it is the one case left; a group that has run until its lag is gone does not have it.)

Refused, before anything is changed: that, members that run, parked keys, a stopped partition, a
resize that is under way, and a stream that somebody else reads too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from nats.aio.client import Client

from .. import naming
from ..errors import ConfigMismatch, GroupMissing, NotPossible, StreamMissing
from ..events import Cause
from ..jetstream.api import (
    API_PREFIX,
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
)
from ..model import ConfigRecord, ControlRecord, ParkedRecord, PartitionRecord, decode, encode
from ..partitioning.difference import WantedStream
from ..partitioning.key import KeyRule
from ..partitioning.layout import copied_from, group_config, work_stream
from ..partitioning.topic import Description, GroupDescription, Layout, work_tokens
from .server import TIMEOUT_S, server_traits, stream_info
from .start import forget_start

CUT_KEY: Final = "millstream.cut"
"""Of the old stream: the origin's sequence that it is sourced to, and its own last one."""
PLACE_KEY: Final = "millstream.place"
"""Of the new stream: S, the origin's sequence that the old one ended with."""
COUNT_KEY: Final = "millstream.copied"
"""Of the new stream: how many messages are to come from the old one."""
PAUSED_KEY: Final = "millstream.paused"

_DEAD = (Cause.MISSED_HEARTBEATS, Cause.NO_RESPONDERS)
_LOOK_AGAIN_S = 0.05
_COPY_STALLED_S = 30.0
_LOOK_BACK_MAX = 1000
_SETTLE_S = 0.2


class GenerationStep(StrEnum):
    """The steps of a change of generation, in order."""

    PAUSE = "pause"
    CUT = "cut"
    COPY = "copy"
    FEED = "feed"
    SWITCH = "switch"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What `renew` does, or did: from which stream to which. Equal: nothing."""

    group: str
    old_stream: str
    new_stream: str
    old_partitions: int
    new_partitions: int

    @property
    def is_done(self) -> bool:
        """Whether the group is as described already."""
        return self.old_stream == self.new_stream


async def renew(
    connection: Client,
    description: Description,
    name: str,
    *,
    dry_run: bool = False,
    prefix: str = API_PREFIX,
    on_step: Callable[[GenerationStep], None] = lambda step: None,
) -> Renewal:
    """Give the group ``name`` the partitions and levels that the description says.

    Nothing runs of the group meanwhile; ``on_step`` is told each step that was done. Raises
    GroupMissing, NotPossible and ConfigMismatch before anything is changed, StreamMissing,
    ServerUnreachable.
    """
    api = Api(connection, TIMEOUT_S, prefix)
    try:
        change = await _look(api, description, name)
        if change is None:
            config = group_config(description, description.groups[name])
            stream = (await _config(api, name))[0].stream or ""
            return Renewal(
                group=name,
                old_stream=stream,
                new_stream=stream,
                old_partitions=config.partitions,
                new_partitions=config.partitions,
            )
        if not dry_run:
            for step, work in change.steps():
                await work()
                on_step(step)
    except RequestFailed as error:
        if error.code in WRONG_LAST_SEQUENCE:
            reason = "somebody else changed it meanwhile: nothing is lost, do it again"
            raise NotPossible(name, reason) from error
        raise api.failure(error, name) from error
    return change.renewal


async def current(connection: Client, group: str, *, prefix: str = API_PREFIX) -> int:
    """Which generation of its own stream a group is at; 1 where there is no such group yet.

    A member begins with it: ``Group(client, **group_arguments(description, name, generation))``.
    Raises ServerUnreachable.
    """
    api = Api(connection, TIMEOUT_S, prefix)
    try:
        config, _ = await _config(api, group)
    except GroupMissing:
        return 1
    except RequestFailed as error:
        raise api.failure(error, group) from error
    return naming.work_generation(group, config.stream or "") or 1


async def _config(api: Api, group: str) -> tuple[ConfigRecord, int]:
    bucket = naming.bucket(group)
    if await stream_info(api, f"KV_{bucket}") is None:
        raise GroupMissing(group)
    entry = await api.read(bucket, naming.CONFIG_KEY)
    if entry.value is None:
        raise GroupMissing(group)
    return decode(ConfigRecord, entry.value), entry.revision


async def _look(api: Api, description: Description, name: str) -> "_Change | None":
    """Check that the change can be made; None: there is none to make."""
    group = description.groups.get(name)
    if group is None:
        raise NotPossible(name, f"{description.file} does not describe it")
    if description.topics[group.topic].layout is not Layout.SOURCED:
        reason = "it has no stream of its own (layout sourced), so it can only be resized by levels"
        raise NotPossible(name, reason)
    found, revision = await _config(api, name)
    generation = naming.work_generation(name, found.stream or "")
    if generation is None or found.key is None:
        raise NotPossible(name, f"it reads stream {found.stream!r}, which is not its own")
    wanted = group_config(description, group, generation)
    if (wanted.partitions, wanted.levels) == (found.partitions, found.levels):
        old = naming.work_stream(name, generation - 1)
        if generation == 1 or await stream_info(api, old) is None:
            return None
        return _Change(api, group, found, revision, generation - 1, is_switched=True)
    same = ("on_failure", "max_attempts")
    if any(getattr(wanted, field) != getattr(found, field) for field in same):
        raise ConfigMismatch(name, str(wanted), str(found))
    old_rule = KeyRule.parse(found.key)
    mine, theirs = (it.canonical.split(".")[work_tokens(it) :] for it in (group.rule, old_rule))
    if mine != theirs:
        raise NotPossible(name, f"its key is {'.'.join(theirs)!r}, and order is kept per key")
    if found.resize_to is not None:
        raise NotPossible(name, f"a resize to {found.resize_to} is under way")
    change = _Change(api, group, found, revision, generation)
    await change.check()
    return change


class _Change:
    """One change of generation."""

    def __init__(
        self,
        api: Api,
        group: GroupDescription,
        config: ConfigRecord,
        revision: int,
        generation: int,
        *,
        is_switched: bool = False,
    ) -> None:
        self._is_switched = is_switched
        self._api = api
        self._group = group
        self._config = config
        self._revision = revision
        self._generation = generation + 1
        self._bucket = naming.bucket(group.name)
        self._old = naming.work_stream(group.name, generation)
        self._new = naming.work_stream(group.name, self._generation)
        self._origin = group.topic

    @property
    def renewal(self) -> Renewal:
        return Renewal(
            group=self._group.name,
            old_stream=self._old,
            new_stream=self._new,
            old_partitions=self._config.partitions,
            new_partitions=self._group.partitions,
        )

    def steps(self) -> list[tuple[GenerationStep, Callable[[], Awaitable[None]]]]:
        if self._is_switched:
            return [(GenerationStep.END, self._end)]
        return [
            (GenerationStep.PAUSE, self._pause),
            (GenerationStep.CUT, self._cut),
            (GenerationStep.COPY, self._copy),
            (GenerationStep.FEED, self._feed),
            (GenerationStep.SWITCH, self._switch),
            (GenerationStep.END, self._end),
        ]

    async def check(self) -> None:
        """Refuse what would go wrong half way. Raises NotPossible, StreamMissing."""
        name = self._group.name
        if not server_traits(self._api).keeps_first_seq:
            reason = (
                "nats-server 2.10 loses a stream that begins with a later sequence at a restart"
            )
            raise NotPossible(name, reason)
        records = await self._records()
        members = [it for it in records if it.startswith(naming.MEMBER_PREFIX)]
        if members:
            first = members[0].removeprefix(naming.MEMBER_PREFIX)
            raise NotPossible(name, f"{len(members)} members run ({first} is one): stop them first")
        for key, value in records.items():
            kind = f"{key.partition('.')[0]}."
            if kind == naming.PARKED_PREFIX and decode(ParkedRecord, value).keys:
                raise NotPossible(name, f"{key!r} has parked keys: replay or drop them first")
            if kind == naming.PARTITION_PREFIX:
                self._check_partition(key, decode(PartitionRecord, value))
        await self._stream(self._origin)
        old = await self._stream(self._old)
        if CUT_KEY in old["config"].get("metadata", {}):
            return
        for consumer in await self._api.consumer_names(self._old):
            if naming.parse_consumer(name, consumer) is None:
                raise NotPossible(name, f"consumer {consumer!r} reads {self._old!r} too")
        sources = old["config"].get("sources") or []
        if [source["name"] for source in sources] != [self._origin]:
            raise NotPossible(name, f"{self._old!r} is not sourced from {self._origin!r}")
        if await stream_info(self._api, self._new) is not None:
            raise NotPossible(name, f"stream {self._new!r} is there, of somebody else's making")
        await self._place(old)

    def _check_partition(self, key: str, record: PartitionRecord) -> None:
        name = self._group.name
        if record.stopped_seq is not None:
            raise NotPossible(name, f"{key!r} is stopped at a message: resume it first")
        if record.owner is not None or record.cause in _DEAD:
            reason = "its owner died before it could give it back: let the group run, then stop it"
            raise NotPossible(name, f"{key!r} was not put down cleanly, {reason}")

    async def _stream(self, stream: str) -> dict[str, Any]:
        info = await stream_info(self._api, stream)
        if info is None:
            raise StreamMissing(stream)
        return info

    async def _records(self) -> dict[str, bytes]:
        """The bucket's values, of members, partitions and parked keys."""
        values: dict[str, bytes] = {}
        for prefix in (naming.MEMBER_PREFIX, naming.PARTITION_PREFIX, naming.PARKED_PREFIX):
            values |= await self._api.read_all(self._bucket, prefix)
        return values

    # ---- the steps ----

    async def _pause(self) -> None:
        entry = await self._api.read(self._bucket, naming.CONTROL_KEY)
        control = ControlRecord() if entry.value is None else decode(ControlRecord, entry.value)
        old = await self._stream(self._old)
        if control.is_paused or CUT_KEY in old["config"].get("metadata", {}):
            return
        await self._update(old["config"], {"metadata": {PAUSED_KEY: "by the new generation"}})
        paused = encode(replace(control, is_paused=True))
        await self._api.write(self._bucket, naming.CONTROL_KEY, paused, entry.revision, {})

    async def _cut(self) -> None:
        old = await self._stream(self._old)
        if CUT_KEY not in old["config"].get("metadata", {}):
            place = await self._place(old)
            last = old["state"]["last_seq"]
            metadata = {CUT_KEY: f"{place} {last}"}
            changes = {"subjects": [self._old], "sources": [], "metadata": metadata}
            await self._update(old["config"], changes)
        for consumer in await self._api.consumer_names(self._old):
            if naming.parse_consumer(self._group.name, consumer) is not None:
                await self._api.call(f"CONSUMER.DELETE.{self._old}.{consumer}")

    async def _place(self, old: Mapping[str, Any]) -> int:
        """How far the old stream is sourced, at least: the origin's sequence."""
        source, state = old["config"]["sources"][0], old["state"]
        place = max((int(it.get("seq", 0)) for it in old["sources"]), default=0)
        if not place and state["last_seq"]:  # a server before 2.15 does not say it
            first = max(state["first_seq"], state["last_seq"] - _LOOK_BACK_MAX)
            place = await self._last_sourced(first, state["last_seq"])
            if not place:
                reason = (
                    f"the server does not say how far {self._old!r} is sourced, and no message"
                    " that could is left in it: try again when there is one"
                )
                raise NotPossible(self._group.name, reason)
        return max(place, int(source.get("opt_start_seq", 1)) - 1)

    async def _last_sourced(self, first: int, last: int) -> int:
        """The origin's sequence that the newest of these messages of the old stream names; or 0."""
        for seq in range(last, first - 1, -1):
            found = await self._api.stored(self._old, {"seq": seq})
            source = (found.headers if found else {}).get("Nats-Stream-Source", "").split(" ")
            if len(source) > 1 and source[1].isdecimal():
                return int(source[1])
        return 0

    async def _copy(self) -> None:
        if await stream_info(self._api, self._new) is None:
            old = await self._settled()
            noted, last = map(int, old["config"]["metadata"][CUT_KEY].split(" "))
            state = old["state"]
            place = max(noted, await self._last_sourced(last + 1, state["last_seq"]))
            wanted = self._wanted()
            assert self._config.key is not None
            config = {
                **wanted.config,
                "sources": [copied_from(self._group, KeyRule.parse(self._config.key), self._old)],
                "subjects": [self._new],
                "first_seq": state["last_seq"] + 1,
                "metadata": {
                    **wanted.config["metadata"],
                    PLACE_KEY: str(place),
                    COUNT_KEY: str(state["messages"]),
                },
            }
            await self._api.call(f"STREAM.CREATE.{self._new}", config)
        await self._until_copied()

    async def _settled(self) -> dict[str, Any]:
        """The old stream once nothing more comes: what was on its way when it was cut is there."""
        seen = -1
        while True:
            old = await self._stream(self._old)
            if old["state"]["last_seq"] == seen:
                return old
            seen = old["state"]["last_seq"]
            await asyncio.sleep(_SETTLE_S)

    async def _until_copied(self) -> None:
        new = await self._stream(self._new)
        count = int(new["config"]["metadata"][COUNT_KEY])
        seen, waited_s = -1, 0.0
        while (came := new["state"]["last_seq"] + 1 - new["config"]["first_seq"]) < count:
            waited_s = 0.0 if came != seen else waited_s + _LOOK_AGAIN_S
            if waited_s >= _COPY_STALLED_S:
                reason = f"{self._new!r} has {came} messages of {count} and gets no more"
                raise NotPossible(self._group.name, reason)
            seen = came
            await asyncio.sleep(_LOOK_AGAIN_S)
            new = await self._stream(self._new)

    async def _feed(self) -> None:
        new = await self._stream(self._new)
        if [source["name"] for source in new["config"].get("sources") or []] == [self._origin]:
            return
        place = int(new["config"]["metadata"][PLACE_KEY])
        wanted = self._wanted(start_seq=place + 1 if place else None)
        changes = {name: wanted.config[name] for name in ("subjects", "sources")}
        await self._update(new["config"], changes)

    def _wanted(self, start_seq: int | None = None) -> WantedStream:
        return work_stream(
            self._group,
            self._origin,
            generation=self._generation,
            start_seq=start_seq,
            server=server_traits(self._api),
        )

    async def _switch(self) -> None:
        records = {
            int(key.removeprefix(naming.PARTITION_PREFIX)): decode(PartitionRecord, value)
            for key, value in (await self._records()).items()
            if key.startswith(naming.PARTITION_PREFIX)
        }
        base_epoch = max([self._config.base_epoch, *(it.epoch for it in records.values())])
        for partition in range(self._group.level or self._group.partitions):
            key = naming.partition_key(partition)
            entry = await self._api.read(self._bucket, key)
            # Floor 0: a work queue knows itself what is left, and no number of the old stream's
            # may be taken for one of the new.
            record = PartitionRecord(epoch=base_epoch + 1, level=self._group.level)
            await self._api.write(self._bucket, key, encode(record), entry.revision, {})
        config = replace(
            self._config,
            partitions=self._group.partitions,
            stream=self._new,
            filter=self._group.rule.filter_text,
            key=self._group.rule.canonical,
            levels=self._group.levels if len(self._group.levels) > 1 else (),
            level=self._group.level,
            base_epoch=base_epoch,
        )
        await self._api.write(self._bucket, naming.CONFIG_KEY, encode(config), self._revision, {})

    async def _end(self) -> None:
        old = await self._stream(self._old)
        was_paused = PAUSED_KEY not in old["config"].get("metadata", {})
        for key in await self._api.read_all(self._bucket, naming.PARTITION_PREFIX):
            number = int(key.removeprefix(naming.PARTITION_PREFIX))
            if number >= (self._group.level or self._group.partitions):
                entry = await self._api.read(self._bucket, key)
                await self._api.delete(self._bucket, key, entry.revision)
        entry = await self._api.read(self._bucket, naming.CONTROL_KEY)
        if entry.value is not None and not was_paused:
            control = replace(decode(ControlRecord, entry.value), is_paused=False)
            await self._api.write(
                self._bucket, naming.CONTROL_KEY, encode(control), entry.revision, {}
            )
        await self._api.call(f"STREAM.DELETE.{self._old}")
        await forget_start(self._api, self._new)

    async def _update(self, found: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        metadata = {**(found.get("metadata") or {}), **changes.get("metadata", {})}
        config = {**found, **changes, "metadata": metadata}
        await self._api.call(f"STREAM.UPDATE.{found['name']}", config)
