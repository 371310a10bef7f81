"""The streams a group reads: one for all partitions, or one for each. Looked at at the start.

Everything that can be wrong with them is found before anything is changed, and is one line:

============================== ===================================================================
no such stream                 StreamMissing; one stream per partition: the first that is missing
interest retention             StreamUnfit: such a stream deletes a message when the last consumer
                               that wanted it goes, and a change of owner deletes the consumer
                               before it makes the next
a limit on consumers           StreamUnfit: two per partition (two epochs meet on a change of
                               owner), of this group and of every other group that is there, and
                               one for each other consumer
somebody reads a work queue    StreamUnfit: the server takes one consumer per subject there
subjects, transform, metadata  KeyRuleError or StreamUnfit: not the partitions that are declared
stored messages                StreamUnfit: some are of partitions that are not declared
one is unlike the others       StreamUnfit (one stream per partition): retention must be the same
it may drop what is unread     a warning (`Streams.warnings`): messages go by age, number or size,
                               handled or not
============================== ===================================================================
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from .. import naming
from ..errors import ServerUnreachable, StreamMissing, StreamUnfit
from ..model import MemberSettings, Retention
from ..partitioning.key import KeyRule
from ..partitioning.layout import check_partitions
from ..partitioning.pattern import overlap, stored_subjects
from .api import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, Api, RequestFailed

STREAM_CONSUMERS_MAX = 1000
"""What a stream takes where its own limit says nothing (seen on 2.15.1: error 10026)."""
AT_ONCE = 32
STORED_SUBJECTS_MAX = 5_000
"""With more, what the stream holds is not asked for."""
MARK = "{partition}"
_DROPPING = {"max_age": "age", "max_msgs": "number", "max_bytes": "size"}
_EVERY_KEY = "max_msgs_per_subject"


class Streams:
    """The data streams of a group; of a group without any, nothing."""

    def __init__(self, api: Api, settings: MemberSettings, rule: KeyRule | None) -> None:
        self.warnings: tuple[str, ...] = ()
        """What may go wrong later, one line each; known once `look` has returned."""
        self._api = api
        self._group = settings.group
        self._name = settings.config.stream
        self._partitions = settings.config.partitions
        self._replicas = settings.replicas
        self._rule = rule
        self._config: Mapping[str, Any] = {}

    @property
    def is_per_partition(self) -> bool:
        """Whether each partition has a stream of its own."""
        return self._name is not None and MARK in self._name

    @property
    def names(self) -> list[str]:
        """Names of the streams the group reads, by partition; none: membership only."""
        if self._name is None:
            return []
        if not self.is_per_partition:
            return [self._name]
        return [self.of(partition) for partition in range(self._partitions)]

    @property
    def num_replicas(self) -> int:
        """How many servers hold the stream; without one, how many are to hold the bucket."""
        if self._name is None:
            return self._replicas
        return int(self._config.get("num_replicas", 1))

    @property
    def is_limits(self) -> bool:
        """Whether messages stay after they were acked, so that a consumer needs a start."""
        return self._config.get("retention") == Retention.LIMITS

    def of(self, partition: int) -> str:
        """Name of the stream a partition's consumer lives on."""
        assert self._name is not None, f"partition {partition} of a group without a stream"
        return self._name.replace(MARK, str(partition))

    async def look(self) -> None:
        """Read what the streams are; raises StreamMissing, StreamUnfit, KeyRuleError."""
        names = self.names
        warnings: list[str] = []
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            found = await asyncio.gather(*map(self._info, some), return_exceptions=True)
            for number, (stream, info) in enumerate(zip(some, found, strict=True), first):
                if isinstance(info, BaseException):
                    raise info
                self._config = self._config or info["config"]
                await self._check(stream, info, number if self.is_per_partition else None)
                warnings += self._doubts(stream, info["config"])
        self.warnings = tuple(warnings)

    async def _info(self, stream: str) -> dict[str, Any]:
        if not naming.is_stream(stream):  # in a subject it would ask for something else
            raise StreamMissing(stream)
        try:
            return await self._api.call(f"STREAM.INFO.{stream}")
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                raise StreamMissing(stream) from error
            raise ServerUnreachable(self._api.url, error.detail) from error

    async def _check(self, stream: str, info: dict[str, Any], only: int | None) -> None:
        config = info["config"]
        retention = config.get("retention")
        if retention == Retention.INTEREST:
            raise StreamUnfit(stream, "interest retention loses messages on a change of owner")
        if retention != self._config.get("retention"):
            reason = f"it has {retention} retention, {self.of(0)!r} has not"
            raise StreamUnfit(stream, reason)
        if self._rule is not None:
            if not config.get("sources") and not config.get("mirror"):
                destination = (config.get("subject_transform") or {}).get("dest")
                subjects = stored_subjects(config.get("subjects") or [], destination)
                self._rule.check(subjects, self._partitions, only=only)
            if only is None:
                check_partitions(self._rule, self._partitions, stream, config)
                await self._check_stored(stream, self._rule, info["state"])
        await self._check_consumers(stream, info, 1 if only is not None else self._partitions)

    async def _check_stored(self, stream: str, rule: KeyRule, state: Mapping[str, Any]) -> None:
        """Refuse a stream with messages of partitions that would be nobody's.

        They would wait for ever, and no lag would tell. Of very many subjects none is looked at.
        """
        places = {self._partitions: rule.partition_place, **rule.finer}
        if not 0 < state.get("num_subjects", 0) <= STORED_SUBJECTS_MAX:
            return
        body = {"subjects_filter": rule.subject_filter()}
        found = await self._api.call(f"STREAM.INFO.{stream}", body)
        for subject in found["state"].get("subjects") or ():
            tokens = subject.split(".")
            for count, place in places.items():
                if place is not None and tokens[place].isdecimal() and int(tokens[place]) >= count:
                    reason = f"it holds {subject!r}, which is of none of {count} partitions"
                    raise StreamUnfit(stream, reason)

    async def _check_consumers(
        self, stream: str, info: dict[str, Any], num_partitions: int
    ) -> None:
        """Count the consumers there will be; look at those of others on a work queue."""
        limit = info["config"].get("max_consumers", -1)
        limit = limit if limit > 0 else STREAM_CONSUMERS_MAX
        needed = num_partitions * 2
        is_work_queue = info["config"].get("retention") == Retention.WORK_QUEUE
        num_there = info["state"].get("consumer_count", 0)
        others: list[str] = []
        if num_there and (is_work_queue or needed + 2 * num_there > limit):
            others = [
                name
                for name in await self._api.consumer_names(stream)
                if naming.parse_consumer(self._group, name) is None
            ]
        if needed + _needed_by(others) > limit:
            also = f" beside {_needed_by(others)} of others" if others else ""
            what = f"{num_partitions} partitions need up to {needed} consumers{also}"
            raise StreamUnfit(stream, f"{what}, it takes {limit}")
        if is_work_queue and self._rule is not None:
            for name in others:
                await self._check_rival(stream, name)

    async def _check_rival(self, stream: str, name: str) -> None:
        assert self._rule is not None
        try:
            config = (await self._api.call(f"CONSUMER.INFO.{stream}.{name}"))["config"]
        except RequestFailed as error:
            if error.code == CONSUMER_NOT_FOUND:
                return
            raise ServerUnreachable(self._api.url, error.detail) from error
        mine = self._rule.subject_filter()
        filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
        if any(overlap(mine, one) for one in filters):
            reason = (
                f"its consumer {name!r} reads {', '.join(filters)}: a work queue has one reader"
            )
            raise StreamUnfit(stream, reason)

    def _doubts(self, stream: str, config: Mapping[str, Any]) -> list[str]:
        """Say what the stream may do to messages that nobody has handled."""
        limits = [word for field, word in _DROPPING.items() if config.get(field, 0) > 0]
        is_old_dropped = config.get("discard", "old") == "old"
        if not is_old_dropped:
            limits = [word for word in limits if word == _DROPPING["max_age"]]
        if config.get(_EVERY_KEY, 0) > 0 and is_old_dropped:
            limits.append("number per subject")
        if not limits:
            return []
        return [f"stream {stream!r} drops messages by {' and '.join(limits)}, handled or not"]


def _needed_by(others: list[str]) -> int:
    """Count the consumers that others may need: two for each partition of another group."""
    partitions = set()
    num_plain = 0
    for name in others:
        group, found, _ = name.rpartition("-p")
        parsed = naming.parse_consumer(group, name) if found else None
        if parsed is None:
            num_plain += 1
        else:
            partitions.add((group, parsed.partition))
    return 2 * len(partitions) + num_plain
