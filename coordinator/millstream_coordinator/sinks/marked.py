"""Subjects of a stream whose last message carries a mark: what KvSink and PublishSink stand on.

A subject's entry is its last message: data, marks in the header `MARK_HEADER`, and its sequence as
the revision. A new one is stored with ``Nats-Expected-Last-Subject-Sequence``, so that it follows
the entry that was judged and no other.

An entry read or written is remembered (``remembered_max`` of them, the last used), so that a key's
next effect costs one round trip instead of two. That is safe: marks only grow, so a refusal by an
old mark is right for the newer one as well, and an effect on an old entry fails its compare-and-set
and is judged again by the stored one. (Deleting the stream under a running sink ends what any mark
can promise.)
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..jetstream.api import (
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
    marks_deletion,
)
from ..partitioning.key import key_headers
from .contract import (
    SinkContended,
    SinkCounters,
    SinkDisconnected,
    SinkError,
    SinkUnavailable,
    Unconfirmed,
    admits,
)
from .entries import Remembered, stored_marks
from .mark import MARK_HEADER, Entry, Fenced, Verdict, encode_marks
from .outlet import TIMEOUT_S, unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """What is to follow an entry."""

    data: bytes
    headers: Mapping[str, str]
    value: bytes | None


class MarkedSubjects:
    """Reads and writes entries of one stream; one object serves any number of tasks."""

    def __init__(self, api: Api, stream: str, sink: str, remembered_max: int) -> None:
        self._api = api
        self._stream = stream
        self._sink = sink
        self._remembered = Remembered(remembered_max)
        self._unconfirmed = Unconfirmed(remembered_max)

    async def apply(
        self,
        message: Fenced,
        subject: str,
        effect: Callable[[Entry], Write],
        counters: SinkCounters,
        attempts_max: int,
    ) -> Verdict:
        """Judge the message by the subject's entry, and store what ``effect`` makes of that.

        Raises StaleEpoch, SinkUnavailable, SinkContended or BadMark.
        """
        counters.attempts += 1
        failure: SinkError = SinkContended(self._sink, subject, attempts_max)
        for _ in range(attempts_max):
            try:
                # What failed its compare-and-set is remembered no more.
                entry = self._remembered.get(subject) or await self.load(subject)
                mark = entry.marks.get(message.mark)
                if self._unconfirmed.found(subject, message, mark):
                    counters.applied += 1
                    return Verdict.APPLY
                if not admits(message, mark, counters):
                    return Verdict.REPEAT
                if await self._store(subject, entry, message, effect(entry)):
                    counters.applied += 1
                    return Verdict.APPLY
            except SinkDisconnected as error:
                failure = error
                if not await self._api.link.until_up(TIMEOUT_S):
                    break
        raise failure

    async def load(self, subject: str) -> Entry:
        """Read a subject's entry from the stream's leader. Raises SinkUnavailable, BadMark."""
        try:
            stored = await self._api.last(self._stream, subject)
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                raise SinkUnavailable(self._sink, "its stream is gone") from error
            raise unavailable(self._sink, error) from error
        if stored is None:
            return Entry()
        marks = stored_marks(self._sink, subject, stored.headers)
        value = None if marks_deletion(stored.headers) else stored.data
        entry = Entry(value, marks, stored.seq)
        self._remembered.put(subject, entry)
        return entry

    async def _store(self, subject: str, before: Entry, message: Fenced, write: Write) -> bool:
        """Write effect and mark if the entry is still ``before``; False if it is not."""
        marks = before.marks_after(message)
        headers = {
            **write.headers,
            **key_headers(message.key),
            MARK_HEADER: encode_marks(marks),
        }
        self._remembered.forget(subject)
        try:
            seq = await self._api.publish(subject, write.data, headers, expected=before.revision)
        except asyncio.CancelledError:
            self._unconfirmed.add(subject, message)
            raise
        except RequestFailed as error:
            if error.code in WRONG_LAST_SEQUENCE:
                return False
            # It may be stored all the same: the next attempt at this message finds out.
            self._unconfirmed.add(subject, message)
            raise unavailable(self._sink, error) from error
        self._unconfirmed.forget(subject, message)
        self._remembered.put(subject, Entry(write.value, marks, seq))
        return True
