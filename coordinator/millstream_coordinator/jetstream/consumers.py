"""The consumers of a group's partitions: listed, read, made, deleted.

They are durable with an inactive threshold: they survive a server's restart, and orphans die by
themselves. Some are asked for at a time and the others wait: a server makes one after the other,
and of a thousand requests at once most would be answered too late. On limits streams with several
replicas they have one: the truth about a position is in the bucket, and making a replicated
consumer takes ten times as long.
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
AT_ONCE = 32
"""Requests to make or delete a consumer that are under way at one time."""
REPLICATED_TIMEOUT_S = 10.0
"""How long making a consumer with several replicas may take: 70 ms, each after the other."""
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
        found = await asyncio.gather(*map(self._names_on, self._streams.names))
        return ConsumerNames(id=command.id, names=tuple(name for names in found for name in names))

    async def _names_on(self, stream: str) -> list[str]:
        async with self._room:
            return await self._api.consumer_names(stream)

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
        if self._streams.is_limits:
            config["deliver_policy"] = "by_start_sequence"
            config["opt_start_seq"] = command.start_seq
            if self._streams.num_replicas > 1:
                config["num_replicas"] = 1
        is_replicated = self._streams.num_replicas > 1 and not self._streams.is_limits
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
