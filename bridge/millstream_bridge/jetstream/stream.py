"""The stream of a route: made or checked at the start, read to know where each partition stands.

The stream is the checkpoint. Each message says in ``Millstream-Source`` which record it is, so a
partition's position is one past the offset of its newest message, found by the partition's wildcard
subject. A newest message without a source of this route is somebody else's: the position is then
found by walking back from there, message by message, to the last one that has a source.

All reads go to the stream's leader (``STREAM.MSG.GET``): direct get may be answered by a replica
that lags, and an old position under a right last sequence would store records twice.
"""

import asyncio
import base64
from collections.abc import Mapping as AbcMapping
from typing import Any, NamedTuple

import msgspec

from ..errors import ConfigurationError
from ..records.headers import parse_block
from ..records.mapping import Mapping, covers
from .connection import Connection, parse_answer

CHECKPOINT_API_LEVEL = 2
"""The JetStream API level of nats-server 2.12, the first with atomic batches. Older servers take
their messages one by one without a word, so the level is asked for first."""

_NOT_FOUND, _STREAM_NOT_FOUND = 10037, 10059
_WALK_AT_ONCE = 64


class ApiError(Exception):
    """JetStream refused a request."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code, self.description = code, description


class StoredMessage(NamedTuple):
    """A message as the stream holds it."""

    seq: int
    subject: str
    headers: list[tuple[str, str]]
    payload: bytes

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A shared route's position of one partition, the payload of its checkpoint message.

    ``next_offset`` is None in a claim: the mark with which a route becomes shared, before its
    position is known.
    """

    topic: str
    kafka_partition: int
    next_offset: int | None
    schema: str = "millstream.checkpoint/1"


class Stream:
    """Requests about one route's stream over one connection."""

    def __init__(self, connection: Connection, mapping: Mapping) -> None:
        self.connection = connection
        self.mapping = mapping
        self.name = mapping.route.stream
        self.config: AbcMapping[str, Any] = {}

    async def ensure(self, *, may_create: bool = True) -> None:
        """Check the stream, or make it if it is not there.

        ConfigurationError: JetStream refuses it, or its configuration would lose positions, change
        subjects or hide answers. ConnectionLost: no JetStream there.
        """
        route = self.mapping.route
        if route.shared:
            level = await self._api_level()
            if level < CHECKPOINT_API_LEVEL:
                raise ConfigurationError(
                    f"the server at {self.connection.url} has JetStream API level {level}:"
                    f" a shared route needs atomic batches, level {CHECKPOINT_API_LEVEL}"
                    " (nats-server 2.12 or later)"
                )
        try:
            info = await self._api(f"STREAM.INFO.{self.name}")
        except ApiError as error:
            if error.code != _STREAM_NOT_FOUND or not may_create:
                raise ConfigurationError(f"stream {self.name}: {error}") from error
            info = await self._create()
        self.config = info["config"]
        problem = find_problem(self.config, self.mapping)
        if problem:
            raise ConfigurationError(f"stream {self.name} {problem}")

    async def last_seq(self) -> int:
        """The sequence of the last message ever stored, 0 in a new stream."""
        try:
            info = await self._api(f"STREAM.INFO.{self.name}")
        except ApiError as error:
            raise ConfigurationError(f"stream {self.name}: {error}") from error
        return int(info["state"]["last_seq"])

    async def message(self, seq: int) -> StoredMessage | None:
        """The message at a sequence, None if there is none (any more)."""
        return await self._get({"seq": seq})

    async def last_of(self, subject: str) -> StoredMessage | None:
        """The newest message of a subject, which may have wildcards."""
        return await self._get({"last_by_subj": subject})

    async def position(self, kafka_partition: int) -> int | None:
        """One past the offset of the partition's newest record in the stream, None without one."""
        message = await self.last_of(self.mapping.partition_filter(kafka_partition))
        if message is None:
            return None
        at_once, top = 1, message.seq
        while top > 0:
            places = range(top, max(0, top - at_once), -1)
            found = [message] if at_once == 1 else await self._several(places)
            for candidate in found:
                source = candidate and self.mapping.source_in(candidate.headers)
                if source and source.kafka_partition == kafka_partition:
                    return source.offset + 1
            top -= len(places)
            at_once = _WALK_AT_ONCE
        return None

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
        last = await self.message(last_seq) if last_seq else None
        source = self.mapping.source_in(last.headers) if last else None
        if last and source:
            wanted = self.mapping.partition_filter(source.kafka_partition)
            if not covers(wanted, last.subject):
                raise ConfigurationError(
                    f"stream {self.name} holds topic {route.topic} under other subjects"
                    f" ({last.subject} at seq {last.seq}), not {route.subject}"
                )

    async def _several(self, places: range) -> list[StoredMessage | None]:
        return await asyncio.gather(*(self.message(seq) for seq in places))

    async def _create(self) -> dict[str, Any]:
        route = self.mapping.route
        config: dict[str, Any] = {
            "name": self.name,
            "subjects": self.mapping.stream_subjects,
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
        if route.shared:
            config |= {"allow_atomic": True, "allow_rollup_hdrs": True, "allow_msg_ttl": True}
        try:
            return await self._api(f"STREAM.CREATE.{self.name}", config)
        except ApiError as error:
            raise ConfigurationError(f"stream {self.name} cannot be made: {error}") from error

    async def _api_level(self) -> int:
        try:
            info = await self._api("INFO")
        except ApiError as error:
            raise ConfigurationError(f"JetStream at {self.connection.url}: {error}") from error
        return int(info.get("api", {}).get("level", 0))

    async def _get(self, what: dict[str, Any]) -> StoredMessage | None:
        try:
            answer = await self._api(f"STREAM.MSG.GET.{self.name}", what)
        except ApiError as error:
            if error.code == _NOT_FOUND:
                return None
            raise ConfigurationError(f"stream {self.name}: {error}") from error
        message = answer["message"]
        block = base64.b64decode(message.get("hdrs") or "")
        return StoredMessage(
            int(message["seq"]),
            message["subject"],
            parse_block(block)[1] if block else [],
            base64.b64decode(message.get("data") or ""),
        )

    async def _api(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = parse_answer(await self.connection.request(f"$JS.API.{verb}", payload))
        error = answer.get("error")
        if error:
            raise ApiError(int(error.get("err_code", 0)), str(error.get("description", "")))
        return answer


def find_problem(config: AbcMapping[str, Any], mapping: Mapping) -> str | None:
    """Why a stream of this configuration cannot take the route, as the end of a sentence."""
    shared = mapping.route.shared
    wanted = [mapping.route_filter, *([mapping.checkpoint_subject("*")] if shared else [])]
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
        " so a partition's position could vanish": drops_oldest,
    }
    if shared:
        checks |= {
            "lacks allow_atomic, which a shared route needs": not config.get("allow_atomic"),
            "lacks allow_rollup_hdrs, which a shared route's checkpoints need": not config.get(
                "allow_rollup_hdrs"
            ),
            "has max_age without allow_msg_ttl, so a checkpoint could expire": bool(
                config.get("max_age") and not config.get("allow_msg_ttl")
            ),
        }
    else:
        expires = (
            "has max_age, so a partition's position could expire (a shared route keeps its own)"
        )
        checks[expires] = bool(config.get("max_age"))
    return next((problem for problem, is_there in checks.items() if is_there), None)
