"""The stream of a route: made or checked at the start, read to know where each partition stands.

The stream is the checkpoint. Each message says in ``Millstream-Source`` which record it is, so a
partition's position is one past the offset of its newest message, found by the partition's wildcard
subject. A newest message without a source of this route is somebody else's: the position is then
found by walking back from there, message by message, to the last one that has a source.

**A dense stream** may lose its newest record: its limits, or a lifetime, remove messages. What it
ends at does not tell how many records that were, for a message of another may have been among them.
So the bridge writes a place into the stream's metadata (`POSITION`) when it ends, and before what
is stored last may run out. From the last place that is known, the newest record's or the one
written down, every message up to the stream's end has to be there: none of them is a record then.
Where one is missing, nobody knows what it was, and the bridge says so instead of a position.

All reads go to the stream's leader (``STREAM.MSG.GET``): direct get may be answered by a replica
that lags, and an old position under a right last sequence would store records twice.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping as AbcMapping
from typing import Any, Final, TypeVar

import msgspec

from millstream_coordinator.partitioning.pattern import covers

from ..errors import ConfigurationError, RecordError
from ..model import Record
from ..records.mapping import Mapping, OtherSubjectError, any_source
from ..records.stored import Stored, stored_of
from .api import STREAM_NOT_FOUND, ApiError, StoredMessage, call, stored_message
from .connection import EARLY_S, Connection

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

CHECKPOINT_API_LEVEL = 2
"""The JetStream API level of nats-server 2.12, the first with atomic batches. Older servers take
their messages one by one without a word, so the level is asked for first."""

FIRST_SEQ_API_LEVEL = 1
"""Of nats-server 2.11: 2.10 takes ``first_seq`` and finds the stream empty after a restart."""

GAPS: Final = "millstream.gaps"
"""In the metadata of a dense route's stream: a sequence is no longer its record's offset + 1."""

POSITION: Final = "millstream.position"
"""In the metadata of a dense route's stream, ``<seq> <offset>``: when the stream ended at this
sequence, all records below the offset had been stored. Always true, but not always the latest."""

TOPIC_ID: Final = "millstream.topic-id."
"""Before the topic's name, in the metadata of a stream made for it: Kafka's id of the topic."""

BATCH_MESSAGES_MAX: Final = 1_000
"""The server's limit for one atomic batch."""

_EARLY_PAUSE_S = 0.05
_WALK_AT_ONCE = 64
_LOOK_FOR_FORM = 1 + _WALK_AT_ONCE
"""Among so many messages at the end there is a record, if the route has stored any; mostly."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A shared route's position of one partition, the payload of its checkpoint message.

    ``next_offset`` is None in a claim: the mark with which a route becomes shared, before its
    position is known. ``newest_seq``: no record is behind this sequence; None: it is that before
    the checkpoint's own, as of each that was stored together with records.
    """

    topic: str
    kafka_partition: int
    next_offset: int | None
    newest_seq: int | None = None
    schema: str = "millstream.checkpoint/1"


class Stream:
    """Requests about one route's stream over one connection.

    ``kafka_partition``: of a dense route, whose stream this is.
    """

    def __init__(
        self, connection: Connection, mapping: Mapping, kafka_partition: int | None = None
    ) -> None:
        self.connection = connection
        self.mapping = mapping
        self.kafka_partition = kafka_partition
        self.name = mapping.route.stream
        if kafka_partition is not None:
            self.name = mapping.stream_name(kafka_partition)
        self.config: AbcMapping[str, Any] = {}
        self._newest: dict[int, Stored] = {}
        self._writing_down = asyncio.Lock()
        self._early_until = 0.0

    @classmethod
    def of_partition(
        cls, connection: Connection, mapping: Mapping, kafka_partition: int
    ) -> "Stream":
        """The stream that has a partition's records."""
        is_dense = mapping.route.mode == "dense"
        return cls(connection, mapping, kafka_partition if is_dense else None)

    async def ensure(self, *, may_create: bool = True, first_offset: int = 0) -> None:
        """Check the stream, or make it if it is not there.

        ``first_offset`` is the partition's low watermark: where a dense stream's sequences begin.

        ConfigurationError: JetStream refuses it, or its configuration would lose positions, change
        subjects or hide answers. ConnectionLost: no JetStream there.
        """
        route = self.mapping.route
        if route.shared or route.replicas > 1:
            level = await self._api_level()
            if level < CHECKPOINT_API_LEVEL:
                what = "a shared route" if route.shared else "a replicated stream"
                raise ConfigurationError(
                    f"the server at {self.connection.url} has JetStream API level {level}:"
                    f" {what} needs atomic batches, level {CHECKPOINT_API_LEVEL}"
                    " (nats-server 2.12 or later)"
                )
        try:
            info = await self._api(f"STREAM.INFO.{self.name}")
        except ApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise ConfigurationError(f"stream {self.name}: {error}") from error
            if not may_create:
                raise ConfigurationError(
                    f"stream {self.name} is not there any more: the next run makes it anew and"
                    " moves all that Kafka still has"
                ) from error
            info = await self._create(first_offset)
        self.config = info["config"]
        problem = find_problem(self.config, self.mapping, self.kafka_partition)
        if problem:
            raise ConfigurationError(f"stream {self.name} {problem}")
        self._refuse_other_topic()

    def _refuse_other_topic(self) -> None:
        """ConfigurationError: the topic was deleted and made anew since the stream was made."""
        route, now = self.mapping.route, self.mapping.topic_id
        key = TOPIC_ID + route.topic
        then = (self.config.get("metadata") or {}).get(key)
        if now is not None and then is not None and now != then:
            raise ConfigurationError(
                f"topic {route.topic} was deleted and made anew: its id is {now}, stream"
                f" {self.name} was filled from {then}; give the route another stream, or take"
                f" {key} out of the stream's metadata to go on in it"
            )

    @property
    def message_bytes_max(self) -> int:
        """What server and stream take, headers included; after `ensure`."""
        limits = [self.connection.max_payload, int(self.config.get("max_msg_size", -1))]
        return min(limit for limit in limits if limit > 0)

    async def last_seq(self) -> int:
        """The sequence of the last message ever stored, 0 in a new stream."""
        return int((await self._info())["state"]["last_seq"])

    async def message(self, seq: int) -> StoredMessage | None:
        """The message at a sequence, None if there is none (any more)."""
        return await self._get(seq=seq) if seq > 0 else None

    async def message_from(self, seq: int) -> StoredMessage | None:
        """The first message at a sequence or later, None if there is none."""
        return await self._get(seq=seq, next_of=">")

    async def last_of(self, subject: str) -> StoredMessage | None:
        """The newest message of a subject, which may have wildcards."""
        return await self._get(last_of=subject)

    async def position(self, kafka_partition: int) -> int | None:
        """One past the offset of the partition's newest record in the stream, None without one.

        A record that was parked or skipped counts: a mark stands for it. ConfigurationError: the
        record was stored under another template, or what a dense stream had behind it is gone.
        """
        # Asked for first: what is stored meanwhile then is behind the end, not before it.
        info = None if self.kafka_partition is None else await self._info()
        messages = await asyncio.gather(
            self._newest_record(kafka_partition),
            self.last_of(f"{self.mapping.poison_subject(kafka_partition)}.*"),
        )
        found = [it for it in map(self._stored, messages) if it is not None]
        newest = max(found, key=lambda it: it.source.offset, default=None)
        if newest is not None:
            self._newest[kafka_partition] = newest
        if info is not None:
            return await self._dense_position(info, newest)
        return None if newest is None else newest.source.offset + 1

    async def _dense_position(
        self, info: AbcMapping[str, Any], newest: Stored | None
    ) -> int | None:
        """From the last place that is known, if no message behind it is gone."""
        last_seq = int(info["state"]["last_seq"])
        seq, position = max(int(info["config"].get("first_seq", 0)), 1) - 1, None
        if newest is not None:
            seq, position = newest.seq, newest.source.offset + 1
        place = _place(info["config"])
        if place is not None and seq < place[0] <= last_seq:
            seq, position = place
        if await self._is_all_there(seq + 1, last_seq):
            return position
        known = "where the partition began" if position is None else position
        guess = last_seq if position is None else position + last_seq - seq
        raise ConfigurationError(
            f"stream {self.name} ends at seq {last_seq}, what was stored after seq {seq} is gone,"
            " and whether it was records is not known. Set its metadata"
            f' {POSITION} to "{last_seq} N" to go on at offset N: that is {guess} if all of it was'
            f" records without gaps, {known} if none was"
        )

    async def _is_all_there(self, first_seq: int, last_seq: int) -> bool:
        for start in range(first_seq, last_seq + 1, _WALK_AT_ONCE):
            seqs = range(start, min(start + _WALK_AT_ONCE, last_seq + 1))
            if None in await asyncio.gather(*map(self.message, seqs)):
                return False
        return True

    async def note_before(self, checkpoint_seq: int, kafka_partition: int, offset: int) -> None:
        """Look whether the message before a checkpoint is the record that it was written after.

        ConfigurationError: it was stored under another template.
        """
        newest = self._stored(await self.message(checkpoint_seq - 1))
        if newest is not None and newest.source[1:3] == (kafka_partition, offset):
            self._newest[kafka_partition] = newest

    def check_same(self, record: Record) -> None:
        """RecordError: the partition's newest record here is another one of the same offset.

        Nothing is raised where it is not known which it is.
        """
        newest = self._newest.get(record.kafka_partition)
        if newest is None or newest.source.offset != record.offset:
            return
        differences = newest.differences(record)
        if differences:
            raise RecordError(
                self.mapping.route.topic,
                record.kafka_partition,
                record.offset,
                f"Kafka has another record here than stream {self.name} (seq {newest.seq}; not the"
                f" same: {', '.join(differences)}). The topic was made anew, or Kafka has lost"
                " records that were moved; `verify` shows which are no longer in Kafka; move the"
                " topic into a new stream",
            )

    def _stored(self, message: StoredMessage | None) -> Stored | None:
        """ConfigurationError: the message is under another subject than the template makes."""
        if message is None:
            return None
        try:
            return stored_of(
                self.mapping, message.seq, message.subject, message.headers, message.payload
            )
        except OtherSubjectError as error:
            raise self._other_form(message) from error

    @property
    def has_gaps(self) -> bool:
        """Whether this dense stream's sequences are no longer offsets + 1."""
        return GAPS in (self.config.get("metadata") or {})

    @property
    def place(self) -> tuple[int, int] | None:
        """The sequence and position that are written down in this dense stream, if any are."""
        return _place(self.config)

    @property
    def lifetime_s(self) -> float | None:
        """After which time a newest record may be gone by itself; None: it stays."""
        age_s = int(self.config.get("max_age") or 0) / 1e9
        found = [it for it in (age_s, self.mapping.route.tombstone_ttl_s) if it]
        return min(found, default=None)

    async def mark_gaps(self) -> None:
        """Write down that offsets have gaps, before the first message behind one is sent."""
        await self._write_down({GAPS: "yes"})

    async def mark_position(self, seq: int, position: int) -> None:
        """Write down a place (see `POSITION`), unless a later one is."""
        await self._write_down({POSITION: f"{seq} {position}"})

    async def _write_down(self, news: AbcMapping[str, str]) -> None:
        """Put into the metadata; everything else stays as it is at this moment.

        Of two who write at once, the server has what the later knew: gaps that this one knows of
        are written again. A place beyond the end is one that the server has lost since.
        """
        async with self._writing_down:
            info = await self._info()
            config = info["config"]
            before, after = _place(config), _place({"metadata": news})
            is_lost = before is not None and before[0] > info["state"]["last_seq"]
            if before is None or after is None or before < after or is_lost:
                gaps = {GAPS: "yes"} if self.has_gaps else {}
                metadata = {**(config.get("metadata") or {}), **gaps, **news}
                try:
                    info = await self._api(
                        f"STREAM.UPDATE.{self.name}", {**config, "metadata": metadata}
                    )
                except ApiError as error:
                    raise ConfigurationError(f"stream {self.name}: {error}") from error
                config = info["config"]
            self.config = config

    async def _newest_record(self, kafka_partition: int) -> StoredMessage | None:
        def is_record(message: StoredMessage) -> bool:
            source = self.mapping.source_in(message.headers)
            return source is not None and source.kafka_partition == kafka_partition

        message = await self.last_of(self.mapping.partition_filter(kafka_partition))
        if message is None or is_record(message):
            return message
        return await self._walk_back(message.seq - 1, is_record)

    async def _walk_back(
        self, top: int, is_wanted: Callable[[StoredMessage], bool], bottom: int = 0
    ) -> StoredMessage | None:
        """The newest message that is wanted, from sequence ``top`` down to above ``bottom``."""
        at_once = 1
        while top > bottom:
            places = range(top, max(bottom, top - at_once), -1)
            for message in await asyncio.gather(*map(self.message, places)):
                if message is not None and is_wanted(message):
                    return message
            top -= len(places)
            at_once = _WALK_AT_ONCE
        return None

    async def reached(self, kafka_partition: int) -> int | None:
        """The partition's position as its route keeps it: by the checkpoint, where it is shared."""
        if self.mapping.route.shared:
            _, checkpoint = await self.checkpoint(kafka_partition)
            if checkpoint is not None and checkpoint.next_offset is not None:
                return checkpoint.next_offset
        return await self.position(kafka_partition)

    async def checkpoint(self, kafka_partition: int) -> tuple[int, Checkpoint | None]:
        """A shared route's checkpoint and its sequence; sequence 0 if there is none."""
        message = await self.last_of(self.mapping.checkpoint_subject(kafka_partition))
        if message is None:
            return 0, None
        try:
            return message.seq, msgspec.json.decode(message.payload, type=Checkpoint)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"stream {self.name} seq {message.seq}: {message.subject} is no checkpoint: {error}"
            ) from error

    def batch_subject(self, kafka_partition: int) -> str:
        """Where a shared route's batches begin (see `torn_batch`)."""
        return self.mapping.checkpoint_subject(f"{kafka_partition}-batch")

    async def torn_batch(self, kafka_partition: int, checkpoint_seq: int) -> int | None:
        """One past the newest record that is behind the checkpoint, where a batch was torn.

        A server without room may store a batch's first messages and refuse the rest (seen on
        2.15.1). The newest mark of a batch's beginning is before the checkpoint that ended it, if
        that was stored.
        """
        mark = await self.last_of(self.batch_subject(kafka_partition))
        if mark is None or mark.seq < checkpoint_seq:
            return None

        def is_record(message: StoredMessage) -> bool:
            source = self.mapping.source_in(message.headers)
            return source is not None and source.kafka_partition == kafka_partition

        newest = await self._walk_back(mark.seq + BATCH_MESSAGES_MAX, is_record, mark.seq)
        stored = self._stored(newest)
        if stored is None:
            return None
        self._newest[kafka_partition] = stored
        return stored.source.offset + 1

    async def refuse_other_form(self, last_seq: int) -> None:
        """ConfigurationError if the route was run differently before: shared, or another template.

        Its position would not be found, and everything stored again.
        """
        route = self.mapping.route
        if not route.shared:
            mark = await self.last_of(self.mapping.checkpoint_subject("*"))
            if mark is not None:
                raise ConfigurationError(
                    f"stream {self.name} has a checkpoint of topic {route.topic} (seq {mark.seq}):"
                    " the route is shared now, run it with --shared"
                )

        def is_record(message: StoredMessage) -> bool:
            source = self.mapping.source_in(message.headers)
            return source is not None and not self.mapping.is_beside(message.subject)

        newest = await self._walk_back(last_seq, is_record, max(0, last_seq - _LOOK_FOR_FORM))
        source = self.mapping.source_in(newest.headers) if newest else None
        if newest and source:
            wanted = self.mapping.partition_filter(source.kafka_partition)
            if not covers(wanted, newest.subject):
                raise self._other_form(newest)

    def _other_form(self, message: StoredMessage) -> ConfigurationError:
        route = self.mapping.route
        return ConfigurationError(
            f"stream {self.name} holds topic {route.topic} under other subjects"
            f" ({message.subject} at seq {message.seq}) than {route.subject} makes; put the"
            " template and null_token back, or give the route another stream"
        )

    async def refuse_other_topic(self) -> None:
        """ConfigurationError: another topic's records are under the route's subjects.

        Readers could not tell them apart, and two bridges would stand in each other's way.
        """
        newest = await self.last_of(self.mapping.route_filter)
        source = newest and any_source(newest.headers)
        if newest and source and source.topic != self.mapping.route.topic:
            raise ConfigurationError(
                f"stream {self.name} holds topic {source.topic} under {self.mapping.route_filter}"
                f" (newest at seq {newest.seq}): give topic {self.mapping.route.topic} other"
                " subjects, or let both routes say that they are shared"
            )

    async def tell_of_foreign(self) -> None:
        """Say once what is under the subjects of a route that has stored nothing yet."""
        newest = await self.last_of(self.mapping.route_filter)
        if newest is not None:
            logger.warning(
                "stream %s holds messages under %s that are not of topic %s (newest at seq %d);"
                " they stay before its records",
                self.name,
                self.mapping.route_filter,
                self.mapping.route.topic,
                newest.seq,
                extra={"event": "foreign_content"},
            )

    async def _create(self, first_offset: int) -> dict[str, Any]:
        route = self.mapping.route
        config: dict[str, Any] = {
            "name": self.name,
            "subjects": _subjects(self.mapping, self.kafka_partition),
            "retention": "limits",
            "storage": route.storage,
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_msgs_per_subject": route.max_msgs_per_subject or -1,
            "max_bytes": route.max_bytes or -1,
            "max_age": round((route.max_age_s or 0) * 1e9),
            "num_replicas": route.replicas,
            "duplicate_window": 100_000_000,
            "allow_direct": True,
        }
        if self.mapping.topic_id is not None:
            config["metadata"] = {TOPIC_ID + route.topic: self.mapping.topic_id}
        level = await self._api_level()
        if self.kafka_partition is not None and first_offset:
            if level < FIRST_SEQ_API_LEVEL:
                raise ConfigurationError(
                    f"stream {self.name}: nats-server 2.10 loses a stream that begins at a sequence"
                    f" above 1 with its next restart, and the partition begins at offset"
                    f" {first_offset}: a dense route needs 2.11 or later here"
                )
            config["first_seq"] = first_offset + 1
        if level >= CHECKPOINT_API_LEVEL:
            config["allow_atomic"] = True
            if self.kafka_partition is None:
                # So that the route can become shared when producers move.
                config |= {"allow_rollup_hdrs": True, "allow_msg_ttl": True}
        if route.tombstone_ttl_s is not None:
            config["allow_msg_ttl"] = True
        try:
            info = await self._api(f"STREAM.CREATE.{self.name}", config)
        except ApiError as error:
            raise ConfigurationError(f"stream {self.name} cannot be made: {error}") from error
        self._early_until = asyncio.get_running_loop().time() + EARLY_S
        return info

    async def _api_level(self) -> int:
        try:
            info = await self._api("INFO")
        except ApiError as error:
            raise ConfigurationError(f"JetStream at {self.connection.url}: {error}") from error
        return int(info.get("api", {}).get("level", 0))

    async def _info(self) -> AbcMapping[str, Any]:
        try:
            return await self._api(f"STREAM.INFO.{self.name}")
        except ApiError as error:
            raise ConfigurationError(f"stream {self.name}: {error}") from error

    async def _get(self, **which: Any) -> StoredMessage | None:
        try:
            return await self._asked(lambda: stored_message(self.connection, self.name, **which))
        except ApiError as error:
            raise ConfigurationError(f"stream {self.name}: {error}") from error

    async def _api(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._asked(lambda: call(self.connection, verb, body))

    async def _asked(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask again where a stream that was just made is not found.

        Where many are made at once, a cluster says so for a moment (seen on 2.15.1).
        """
        while True:
            try:
                return await ask()
            except ApiError as error:
                is_early = asyncio.get_running_loop().time() < self._early_until
                if error.code != STREAM_NOT_FOUND or not is_early:
                    raise
            await asyncio.sleep(_EARLY_PAUSE_S)


def _subjects(mapping: Mapping, kafka_partition: int | None) -> list[str]:
    """What a stream made for the route, or for one partition of a dense one, listens to."""
    if kafka_partition is None:
        return mapping.stream_subjects
    return [
        mapping.partition_filter(kafka_partition),
        f"{mapping.poison_subject(kafka_partition)}.*",
    ]


def _place(config: AbcMapping[str, Any]) -> tuple[int, int] | None:
    """The place written down in a stream's metadata; None: there is none, or none to be read."""
    words = str((config.get("metadata") or {}).get(POSITION, "")).split()
    if len(words) != 2 or not all(it.isdecimal() for it in words):
        return None
    return int(words[0]), int(words[1])


_ALLOW = (
    "update it with allow_atomic, allow_rollup_hdrs and allow_msg_ttl true"
    " (as in `nats stream edit`)"
)


def find_problem(
    config: AbcMapping[str, Any], mapping: Mapping, kafka_partition: int | None = None
) -> str | None:
    """Why a stream of this configuration cannot take the route, as the end of a sentence."""
    shared = mapping.route.shared
    wanted = [mapping.route_filter, *([mapping.checkpoint_subject("*")] if shared else [])]
    is_dense = kafka_partition is not None
    if kafka_partition is not None:
        wanted = [mapping.partition_filter(kafka_partition)]
    if mapping.route.on_poison != "stop":
        at = "*" if kafka_partition is None else kafka_partition
        wanted.append(f"{mapping.poison_subject(at)}.*")
    if mapping.route.large == "chunks":
        wanted.append(f"{mapping.chunk_subject('*')}.>")
    subjects = config.get("subjects") or []
    for subject in wanted:
        if not any(covers(have, subject) for have in subjects):
            return f"does not listen to {subject} (only to {', '.join(subjects) or 'nothing'})"
    drops_oldest = config.get("discard", "old") == "old" and (
        config.get("max_msgs", -1) > 0 or config.get("max_bytes", -1) > 0
    )
    checks = {
        "is a mirror": bool(config.get("mirror")),
        "is sealed": bool(config.get("sealed")),
        "rewrites subjects (subject_transform)": bool(config.get("subject_transform")),
        "gives no acknowledgements (no_ack)": bool(config.get("no_ack")),
        "acknowledges before it writes (persist_mode async)": config.get("persist_mode") == "async",
        "removes what is consumed (its retention is not limits),"
        " so a partition's position could vanish": config.get("retention", "limits") != "limits",
        "drops its oldest messages (max_msgs or max_bytes with discard old),"
        " so a partition's position could vanish": drops_oldest and not is_dense,
    }
    if mapping.route.tombstone_ttl_s is not None:
        what = "lacks allow_msg_ttl, which tombstone_ttl_s needs (nats-server 2.11 or later)"
        checks[what] = not config.get("allow_msg_ttl")
    if not shared and config.get("num_replicas", 1) > 1:
        checks[
            "is replicated and lacks allow_atomic, without which a refused message would stop it"
        ] = not config.get("allow_atomic")
    if shared:
        checks |= {
            f"lacks allow_atomic, which a shared route needs: {_ALLOW}": not config.get(
                "allow_atomic"
            ),
            f"lacks allow_rollup_hdrs, which a shared route's checkpoints need: {_ALLOW}": (
                not config.get("allow_rollup_hdrs")
            ),
            "has max_age without allow_msg_ttl, so a checkpoint could expire": bool(
                config.get("max_age") and not config.get("allow_msg_ttl")
            ),
        }
    elif not is_dense:
        expires = (
            "has max_age, so a partition's position could expire (a shared route keeps its own)"
        )
        checks[expires] = bool(config.get("max_age"))
    return next((problem for problem, is_there in checks.items() if is_there), None)
