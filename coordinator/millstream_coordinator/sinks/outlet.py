"""A stream as the sinks that publish to it see it: what it takes, and whether it can carry them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ..jetstream.api import STREAM_NOT_FOUND, Api, RequestFailed
from ..model import Retention
from ..partitioning.pattern import covers, overlap
from ..ports import Failure
from .contract import BadEffect, SinkDisconnected, SinkUnavailable, SinkUnfit

TIMEOUT_S = 5.0
"""How long the server may take to answer."""
OWN_HEADERS = ("nats-batch-", "nats-expected-", "nats-rollup", "millstream-mark")
"""Lower-case beginnings of the headers that only a sink may set."""


def unavailable(sink: str, error: RequestFailed) -> SinkUnavailable:
    """What a request that failed says about the sink."""
    if error.reason is Failure.DISCONNECTED:
        return SinkDisconnected(sink, str(error))
    return SinkUnavailable(sink, str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A message to be published.

    ``subject`` is for `BatchSink` alone: `PublishSink` has one for each key.
    """

    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """A stream's configuration, read once."""

    sink: str
    stream: str
    subjects: tuple[str, ...]
    allows_atomic: bool
    allows_rollup: bool
    transform_source: str | None
    """Subjects that the stream stores under other names; None: it has no transform."""

    @classmethod
    async def read(cls, api: Api, stream: str, sink: str) -> Self:
        """Ask the server. Raises SinkUnfit when there is no such stream, SinkUnavailable."""
        try:
            answer = await api.call(f"STREAM.INFO.{stream}")
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                raise SinkUnfit(sink, f"there is no stream {stream!r}") from error
            raise SinkUnavailable(sink, error.detail) from error
        config: dict[str, Any] = answer["config"]
        outlet = cls(
            sink=sink,
            stream=stream,
            subjects=tuple(config.get("subjects") or ()),
            allows_atomic=bool(config.get("allow_atomic")),
            allows_rollup=bool(config.get("allow_rollup_hdrs")),
            transform_source=(config.get("subject_transform") or {}).get("src"),
        )
        if config.get("mirror"):
            raise SinkUnfit(sink, f"stream {stream!r} is a mirror")
        if config.get("retention") != Retention.LIMITS:
            # A consumed message would take its mark along.
            raise SinkUnfit(
                sink, f"stream {stream!r} has retention {config.get('retention')}, not limits"
            )
        return outlet

    def takes(self, subject: str) -> bool:
        """Whether the stream stores this subject, or every subject of this pattern."""
        return any(covers(pattern, subject) for pattern in self.subjects)

    def check_own(self, subject: str) -> None:
        """Raise SinkUnfit unless the stream stores these subjects of the sink's as they are."""
        if not self.takes(subject):
            raise SinkUnfit(
                self.sink,
                f"stream {self.stream!r} does not take {subject!r}: add it to its subjects",
            )
        source = self.transform_source
        if source is not None and overlap(source or ">", subject):
            raise SinkUnfit(
                self.sink, f"stream {self.stream!r} transforms {subject!r} to other subjects"
            )

    def check(self, output: Output, size_max: int) -> None:
        """Raise BadEffect for headers the sink itself sets, or more than the server takes."""
        for name, value in output.headers.items():
            if name.lower().startswith(OWN_HEADERS):
                raise BadEffect(self.sink, f"the header {name} is the sink's own")
            if set("\r\n") & set(name + value):
                raise BadEffect(self.sink, f"the header {name!r} has a line break in it")
        size = len(output.data) + headers_size(output.headers) + OWN_HEADERS_SIZE
        if size > size_max:
            raise BadEffect(self.sink, f"a message of {size} bytes is over the limit of {size_max}")


OWN_HEADERS_SIZE = 1024
"""Room for the headers that a sink adds to a message."""


def headers_size(headers: Mapping[str, str]) -> int:
    """How many bytes the headers are on the wire, beside their first and last line."""
    return sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())


def is_literal(subject: str) -> bool:
    """Whether a message can be published to this subject."""
    tokens = subject.split(".")
    return all(tokens) and not set(subject) & set("*> \t\r\n")
