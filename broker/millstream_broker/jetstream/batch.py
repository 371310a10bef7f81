"""Atomic batches: members wait in memory until the commit, then all are stored or none.

A batch is named by Nats-Batch-Id and counted by Nats-Batch-Sequence from 1. What can be told at
once (a gap, a bad commit value, a size over the limit) is answered at once and ends the batch;
everything that depends on the stream's content is checked at the commit, member by member,
against the stream plus the members before. The stored headers keep the batch's id and sequence,
and the last one its commit: that is how recovery tells a torn batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ..protocol import headers as header_blocks
from ..routing.port import Message
from .codes import ApiError
from .staging import Staging
from .stream import BATCH_COMMIT, BATCH_ID, HEADER_BYTES_MAX, Stream

if TYPE_CHECKING:
    from .publish import Ingest

BATCH_SEQ: Final = "Nats-Batch-Sequence"
BATCH_HEADERS: Final = frozenset({BATCH_ID, BATCH_SEQ, BATCH_COMMIT})
"""They ask nothing of a message itself."""
_NOTHING: Final[Mapping[str, str]] = {}
REQUIRED_LEVEL: Final = "Nats-Required-Api-Level"
ID_BYTES_MAX: Final = 64
MEMBERS_MAX: Final = 1000
IN_FLIGHT_MAX: Final = 50
IDLE_S: Final = 10.0
_MEMBER: Final = re.compile(
    rb"NATS/1\.0\r\nNats-Batch-Id: ([!-~]++)\r\nNats-Batch-Sequence: ([0-9]{1,4}+)\r\n"
)
"""How a block begins whose first headers name a batch and a place in it."""


class _Batch:
    """One batch in the making; its timer abandons it."""

    def __init__(self, owner: Batches, batch_id: str) -> None:
        self._owner = owner
        self.batch_id = batch_id
        self.members: list[tuple[Message, Mapping[str, str]]] = []
        """With what their headers ask of the server."""

    def on_timer(self) -> None:
        self._owner.abandon(self)


class Batches:
    """The batches in flight on one stream."""

    def __init__(self, stream: Stream, ingest: Ingest) -> None:
        self._stream = stream
        self._ingest = ingest
        self._open: dict[str, _Batch] = {}

    def __len__(self) -> int:
        return len(self._open)

    def abandon(self, batch: _Batch) -> None:
        """Forget a batch and its members."""
        self._open.pop(batch.batch_id, None)
        self._stream.host.forget(batch)

    def clear(self) -> None:
        """Forget all batches (the stream goes away, or stops taking them)."""
        for batch in list(self._open.values()):
            self.abandon(batch)

    def take(self, messages: Sequence[Message], place: int) -> int:
        """Take members that only go on with batches in the making, from ``place``; how many.

        They ask nothing else, want no answer, and the stream has no limit that could refuse them.
        """
        touched: dict[bytes, _Batch] = {}
        count = 0
        for at in range(place, len(messages)):
            message = messages[at]
            headers = message.headers
            found = None if headers is None else _MEMBER.match(headers)
            if headers is None or found is None or message.reply is not None:
                break
            batch_id, position = found.groups()
            batch = touched.get(batch_id) or self._open.get(batch_id.decode())
            if (
                batch is None
                or int(position) != len(batch.members) + 1
                or len(batch.members) >= MEMBERS_MAX
                or headers.find(header_blocks.SERVER_LINE, found.end() - 2) >= 0
                or len(headers) > HEADER_BYTES_MAX
            ):
                break
            touched[batch_id] = batch
            batch.members.append((message, _NOTHING))
            count += 1
        for batch in touched.values():
            self._wait(batch)
        return count

    def _wait(self, batch: _Batch) -> None:
        """Abandon a batch when nothing of it comes for a while."""
        host = self._stream.host
        host.timers.set(batch, host.now.mono_s + IDLE_S)

    def receive(
        self, batch_id: str, message: Message, asked: Mapping[str, str]
    ) -> tuple[bytes, int]:
        """Take a member; the ack's body and the sequence it promises (0 before the commit).

        ``asked``: what its headers ask of the server. Raises ApiError; unless the batch never began
        it is gone then. Raises StoreError.
        """
        if not self._stream.config.allow_atomic:
            raise ApiError(10174)
        if self._stream.config.sealed:
            raise ApiError(10109)
        if len(batch_id.encode("utf-8", "surrogateescape")) > ID_BYTES_MAX:
            raise ApiError(10179)
        position = asked.get(BATCH_SEQ, "")
        if not (position.isascii() and position.isdigit()):
            raise ApiError(10175)
        batch = self._member_of(batch_id, int(position))
        try:
            return self._add(batch, message, asked)
        except ApiError:
            self.abandon(batch)
            raise

    def _member_of(self, batch_id: str, position: int) -> _Batch:
        """Find the batch a member belongs to, or begin it."""
        batch = self._open.get(batch_id)
        if position == 1 and batch is None:
            if len(self._open) >= IN_FLIGHT_MAX:
                raise ApiError(10210)
            batch = self._open[batch_id] = _Batch(self, batch_id)
        if batch is None:
            raise ApiError(10176)
        if position != len(batch.members) + 1:
            self.abandon(batch)
            raise ApiError(10176)
        return batch

    def _add(self, batch: _Batch, message: Message, asked: Mapping[str, str]) -> tuple[bytes, int]:
        level = asked.get(REQUIRED_LEVEL)
        if level and not supports_level(level):
            raise ApiError(10185)
        commit = asked.get(BATCH_COMMIT)
        if commit is not None and commit not in ("1", "eob"):
            raise ApiError(10200)
        if len(batch.members) >= MEMBERS_MAX:
            raise ApiError(10199, size=MEMBERS_MAX)
        if commit != "eob":
            batch.members.append((message, asked))
        if commit is None:
            self._wait(batch)
            return b"", 0
        if commit == "eob":
            self._close_early(batch)
        seq = self._commit(batch)
        document = {
            "stream": self._stream.name,
            "seq": seq,
            "batch": batch.batch_id,
            "count": len(batch.members),
        }
        return msgspec.json.encode(document), seq

    def _close_early(self, batch: _Batch) -> None:
        """Make the last member the committing one. Raises ApiError when there is none."""
        if not batch.members:
            raise ApiError(10176)
        last, asked = batch.members[-1]
        block = header_blocks.add(last.headers, [(BATCH_COMMIT, "1")])
        batch.members[-1] = (last._replace(headers=block), asked)

    def _commit(self, batch: _Batch) -> int:
        """Check all members, then store them all; the last sequence."""
        staging = Staging()
        staged = [self._ingest.stage(*member, staging) for member in batch.members]
        self.abandon(batch)
        return self._ingest.store(staged)


def supports_level(text: str) -> bool:
    """Whether this server has the API level a request demands."""
    return text.isascii() and text.isdigit() and int(text) <= 5
