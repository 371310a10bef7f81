"""The stream a group reads: looked at before anything is changed.

**Interest retention is refused.** Such a stream deletes a message when the last consumer that
wanted it goes, and a change of owner deletes the consumer before it makes the next.
"""

from typing import Any

from ..errors import ServerUnreachable, StreamMissing, StreamUnfit
from ..model import MemberSettings, Retention
from ..partitioning.key import KeyRule, stored_subjects
from .api import STREAM_NOT_FOUND, Api, RequestFailed

STREAM_CONSUMERS_MAX = 1000
"""What a stream takes where its own limit says nothing (seen on 2.15.1: error 10026)."""


class Streams:
    """The data stream of a group; of a group without one, nothing."""

    def __init__(self, api: Api, settings: MemberSettings, rule: KeyRule | None) -> None:
        self._api = api
        self._name = settings.config.stream
        self._partitions = settings.config.partitions
        self._rule = rule
        self._config: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Names of the streams the group reads; none: membership only."""
        return [] if self._name is None else [self._name]

    @property
    def num_replicas(self) -> int:
        """How many servers hold the stream."""
        return int(self._config.get("num_replicas", 1))

    @property
    def is_limits(self) -> bool:
        """Whether messages stay after they were acked, so that a consumer needs a start."""
        return self._config.get("retention") == Retention.LIMITS

    def of(self, partition: int) -> str:
        """Name of the stream a partition's consumer lives on."""
        assert self._name is not None, f"partition {partition} of a group without a stream"
        return self._name

    async def look(self) -> None:
        """Read the stream's configuration; raises StreamMissing, StreamUnfit, KeyRuleError."""
        if self._name is None:
            return
        try:
            answer = await self._api.call(f"STREAM.INFO.{self._name}")
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                raise StreamMissing(self._name) from error
            raise ServerUnreachable(self._api.url, error.detail) from error
        self._config = answer["config"]
        self._check(self._name)

    def _check(self, stream: str) -> None:
        if self._config.get("retention") == Retention.INTEREST:
            raise StreamUnfit(stream, "interest retention loses messages on a change of owner")
        limit = self._config.get("max_consumers", -1)
        limit = limit if limit > 0 else STREAM_CONSUMERS_MAX
        needed = self._partitions * 2
        if needed > limit:
            reason = (
                f"{self._partitions} partitions need up to {needed} consumers, it takes {limit}"
            )
            raise StreamUnfit(stream, reason)
        if self._rule is not None:
            destination = (self._config.get("subject_transform") or {}).get("dest")
            if self._config.get("sources") or self._config.get("mirror"):
                return
            self._rule.check(
                stored_subjects(self._config.get("subjects") or [], destination), self._partitions
            )
