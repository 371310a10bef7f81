"""The consumers of a group's partitions: listed, read, made, deleted.

They are durable with an inactive threshold, so orphans die by themselves. A few are asked for at a
time and the others wait: a server makes one after the other, and a cluster takes the longer for
each the more it is asked for at once.

**On a stream with several replicas they are kept in memory**: making one takes a fifth of the time
(a half, where it is replicated too), and what it remembers is nowhere needed. The truth about a
position is in the bucket, and on a work queue in what is left on the stream; a consumer that began
anew shows a hole in what it counts, and is made anew from there. On limits streams they have one
replica for the same reason; a work queue's must have as many as their stream.
"""

import asyncio
from typing import Any

from ..model import MemberSettings
from ..naming import parse_consumer
from ..partitioning.key import KeyRule
from ..ports import (
    ConsumerNames,
    ConsumerRead,
    CreateConsumer,
    DeleteConsumer,
    Done,
    Failure,
    ListConsumers,
    Overlap,
    ReadConsumer,
    Reply,
)
from .api import CONSUMER_NOT_FOUND, FILTER_OVERLAP, STREAM_NOT_FOUND, Api, RequestFailed
from .streams import Streams
from .wire import NS

INACTIVE_THRESHOLD_S = 6 * 3600
AT_ONCE = 4
"""Requests to make or delete a consumer that are under way at one time, per member."""
LISTS_AT_ONCE = 32
"""Streams whose consumers are listed at one time."""
REPLICATED_TIMEOUT_S = 10.0
"""How long making a consumer with several replicas may take: 70 ms, many members' together."""
LEVEL = "millstream_partitions"
"""Entry of a consumer's metadata: of how many partitions its one is."""


class Consumers:
    """The consumers on a group's stream."""

    def __init__(
        self, api: Api, settings: MemberSettings, rule: KeyRule | None, streams: Streams
    ) -> None:
        self._api = api
        self._settings = settings
        self._rule = rule
        self._streams = streams
        self._room = asyncio.Semaphore(AT_ONCE)

    async def names(self, command: ListConsumers) -> Reply:
        """List all consumers of the streams, the group's and others'."""
        room = asyncio.Semaphore(LISTS_AT_ONCE)

        async def names_on(stream: str) -> list[str]:
            async with room:
                return await self._api.consumer_names(stream)

        found = await asyncio.gather(*map(names_on, self._streams.names))
        return ConsumerNames(id=command.id, names=tuple(name for names in found for name in names))

    def _stream_of(self, consumer: str) -> str:
        """Name the stream that a consumer of this group lives on."""
        parsed = parse_consumer(self._settings.group, consumer)
        return self._streams.of(0 if parsed is None else parsed.partition)

    async def read(self, command: ReadConsumer) -> Reply:
        """Read where a consumer stands."""
        try:
            info = await self._api.call(
                f"CONSUMER.INFO.{self._stream_of(command.name)}.{command.name}"
            )
        except RequestFailed as error:
            if error.code == CONSUMER_NOT_FOUND:
                return ConsumerRead(id=command.id, is_there=False)
            raise _stream_gone(error) from error
        return ConsumerRead(
            id=command.id,
            is_there=True,
            ack_floor=info["ack_floor"]["stream_seq"],
            delivered=info["delivered"]["consumer_seq"],
            num_ack_pending=info["num_ack_pending"],
            level=_level(info["config"].get("metadata") or {}),
        )

    async def create(self, command: CreateConsumer) -> Reply:
        """Make a partition's consumer under one epoch."""
        assert self._rule is not None
        settings = self._settings
        stream = self._streams.of(command.partition)
        subjects = self._rule.subject_filter(command.partition, command.level)
        config: dict[str, Any] = {
            "durable_name": command.name,
            "name": command.name,
            "ack_policy": "explicit",
            "ack_wait": int(settings.timing.ack_wait_s * NS),
            "max_ack_pending": settings.limits.max_ack_pending,
            "max_deliver": -1,
            "deliver_policy": "all",
            "filter_subject": subjects,
            "inactive_threshold": INACTIVE_THRESHOLD_S * NS,
            "metadata": {LEVEL: str(command.level or settings.config.partitions)},
        }
        is_replicated = self._streams.num_replicas > 1
        if is_replicated:
            config["mem_storage"] = True
        if self._streams.is_limits:
            config["deliver_policy"] = "by_start_sequence"
            config["opt_start_seq"] = command.start_seq
            if is_replicated:
                config["num_replicas"] = 1
                is_replicated = False
        try:
            async with self._room:
                await self._api.call(
                    f"CONSUMER.CREATE.{stream}.{command.name}.{subjects}",
                    {"stream_name": stream, "config": config, "action": "create"},
                    timeout_s=REPLICATED_TIMEOUT_S if is_replicated else None,
                )
        except RequestFailed as error:
            if error.code in FILTER_OVERLAP:
                return Overlap(id=command.id)
            raise _stream_gone(error) from error
        return Done(id=command.id)

    async def delete(self, command: DeleteConsumer) -> Reply:
        """Delete a consumer, if it is there."""
        try:
            async with self._room:
                await self._api.call(
                    f"CONSUMER.DELETE.{self._stream_of(command.name)}.{command.name}"
                )
        except RequestFailed as error:
            if error.code != CONSUMER_NOT_FOUND:
                raise _stream_gone(error) from error
        return Done(id=command.id)


def _level(metadata: dict[str, str]) -> int:
    level = metadata.get(LEVEL, "")
    return int(level) if level.isdecimal() else 0


def _stream_gone(error: RequestFailed) -> RequestFailed:
    if error.code == STREAM_NOT_FOUND:
        return RequestFailed(Failure.STREAM_GONE, error.detail, error.code)
    return error
