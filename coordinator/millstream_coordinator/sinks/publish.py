"""A sink that publishes one message per effect, on a subject of each key's own.

From one topic to another, on any server with JetStream::

    sink = await PublishSink.open(connection, stream="DELAYS", subject="delays.{key}")

    @group.handler(key="flights.*.{key}")
    async def delay(message: Message) -> None:
        await sink.apply(message, Output(data=delay_of(message.data)))

The mark is in a header of the message, and each follows the last on its subject by compare-and-set.
So the last message of a subject must stay as long as a message of its key can come again: a limit
of the stream (``max_age``, ``max_msgs``, ``max_bytes``) that drops it takes the mark along. For the
same reason the stream's retention is limits, and nothing else may publish on these subjects.

For topics with a partition in the subject, ``subject`` may be a function from the key::

    template = SubjectTemplate.parse("delays.{partition}.{key}", partitions=12)
    subject = lambda key: template.subject(key, template.partition(key))

More than one message per effect, other subjects, a fence: `BatchSink`.
"""

import re
from collections.abc import Callable
from typing import Self

from nats.aio.client import Client

from ..jetstream.api import Api, api_prefix
from ..partitioning.key import to_token
from .contract import BadEffect, SinkCounters, SinkUnfit
from .mark import Entry, Fenced, Verdict
from .marked import MarkedSubjects, Write
from .outlet import TIMEOUT_S, Outlet, Output, is_literal

SubjectOfKey = Callable[[bytes], str]
"""From a key to its subject; another key has another subject."""

_FIELD = "{key}"


class PublishSink:
    """Effects are messages, one `Output` each; one object serves any number of tasks."""

    def __init__(
        self,
        api: Api,
        outlet: Outlet,
        subject: str | SubjectOfKey,
        *,
        size_max: int,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> None:
        self.name = outlet.sink
        self.counters = SinkCounters()
        self._outlet = outlet
        self._subject = subject
        self._size_max = size_max
        self._attempts_max = attempts_max
        self._entries = MarkedSubjects(api, outlet.stream, self.name, remembered_max)

    @classmethod
    async def open(
        cls,
        connection: Client,
        *,
        stream: str,
        subject: str | SubjectOfKey,
        domain: str | None = None,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> Self:
        """Make the sink on a stream that is there. ``subject`` has ``{key}`` as one of its tokens.

        A message without a key goes to ``%none-<mark>-<seq>`` in that token's place. Raises
        SinkUnfit, SinkUnavailable.
        """
        name = f"publish:{stream}"
        api = Api(connection, TIMEOUT_S, api_prefix(domain))
        if isinstance(subject, str):
            literal = subject.replace(_FIELD, "key")
            if subject.split(".").count(_FIELD) != 1 or not is_literal(literal):
                raise SinkUnfit(
                    name, f"subject {subject!r} has not one token {_FIELD}, rest literal"
                )
            if re.search("[{}]", literal):
                raise SinkUnfit(name, f"subject {subject!r} has braces other than {_FIELD}")
        outlet = await Outlet.read(api, stream, name)
        if isinstance(subject, str):
            outlet.check_own(subject.replace(_FIELD, "*"))
        elif outlet.transform_source is not None:
            raise SinkUnfit(name, f"stream {stream!r} transforms subjects")
        return cls(
            api,
            outlet,
            subject,
            size_max=connection.max_payload,
            attempts_max=attempts_max,
            remembered_max=remembered_max,
        )

    async def apply(self, message: Fenced, output: Output, /) -> Verdict:
        """See `Sink`. Raises StaleEpoch, BadEffect, SinkUnavailable, SinkContended or BadMark."""
        if output.subject:
            raise BadEffect(self.name, f"the output names a subject, {output.subject!r}")
        self._outlet.check(output, self._size_max)
        subject = self.subject_of(message)

        def written(_: Entry) -> Write:
            return Write(data=output.data, headers=output.headers, value=output.data)

        return await self._entries.apply(
            message, subject, written, self.counters, self._attempts_max
        )

    async def value(self, key: bytes) -> bytes | None:
        """The last message published for a key, None if there is none."""
        return (await self._entries.load(self._subject_of_key(key))).value

    def subject_of(self, message: Fenced) -> str:
        """Where a message's output goes. Raises BadEffect: the user's function gave no subject."""
        if message.key is not None:
            return self._subject_of_key(message.key)
        if isinstance(self._subject, str):
            return self._subject.replace(_FIELD, f"%none-{message.mark}-{message.seq}")
        raise BadEffect(self.name, "the message has no key, and subjects are a function of keys")

    def _subject_of_key(self, key: bytes) -> str:
        if isinstance(self._subject, str):
            return self._subject.replace(_FIELD, to_token(key))
        subject = self._subject(key)
        if not is_literal(subject) or not self._outlet.takes(subject):
            raise BadEffect(
                self.name, f"stream {self._outlet.stream!r} does not take subject {subject!r}"
            )
        return subject
