"""Ingest: what happens to messages published to a stream, from the wire to the acks.

A run of messages of one socket read is checked, stored, flushed once, and only then acknowledged.
Messages that nothing can be said against (no limit that could refuse them, and no headers for the
server but a new Nats-Msg-Id and the right Nats-Expected-Last-Msg-Id) are stored together.
Everything else is *staged* first: all checks in nats-server's order, with nothing changed until
they are passed. An atomic batch stages its members one after the other against what is stored plus
what is staged, and stores them all or not at all.

If the flush fails nothing of the run is stored, and every ack of it becomes an error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

import msgspec

from ..protocol import headers as header_blocks
from ..routing.port import Message
from ..store.errors import StoreError
from ..subjects import subject as subjects
from .batch import BATCH_HEADERS, Batches
from .codes import ApiError
from .expiry import ROLLUP, TTL
from .model import Discard, Retention
from .staging import Staged, Staging
from .stream import BATCH_ID, HEADER_BYTES_MAX, MSG_ID, Stream
from .ttl import NEVER, InvalidTtl, duration_text, parse_ttl

EXPECTED_STREAM: Final = "Nats-Expected-Stream"
EXPECTED_LAST_SEQ: Final = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_SUBJECT_SEQ: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
EXPECTED_LAST_MSG_ID: Final = "Nats-Expected-Last-Msg-Id"
STREAM_SOURCE: Final = "Nats-Stream-Source"
COUNTER: Final = "Nats-Incr"
SCHEDULE: Final = "Nats-Schedule"
_IDS: Final = re.compile(
    rb"NATS/1\.0\r\n(?:Nats-Msg-Id: ([!-~]++)\r\n)?+(?:Nats-Expected-Last-Msg-Id: ([!-~]++)\r\n)?+"
)
"""How a block begins whose first headers, if they are the server's, are plain ids."""


class _Duplicate(Exception):
    """The message id was stored before, under this sequence."""

    def __init__(self, seq: int) -> None:
        super().__init__(seq)
        self.seq = seq


_Ack = tuple[str, int, bytes]
"""An answer owed: reply subject, the sequence it promises (0 when it promises none), document."""


class Ingest:
    """Takes what is published to one stream's subjects."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.batches = Batches(stream, self)
        self.configure()

    def configure(self) -> None:
        """Take over the stream's configuration."""
        config = self._stream.config
        name = msgspec.json.encode(config.name)
        self._ack_head = b'{"stream":%b,"seq":' % name
        self._answers = not config.no_ack
        self._is_plain = not (
            config.sealed
            or config.discard is Discard.NEW
            or config.retention is Retention.INTEREST
            or config.subject_transform is not None
            or config.max_msg_size >= 0
        )

    def receive(self, messages: Sequence[Message]) -> None:
        """Store a run of published messages and acknowledge them."""
        stream = self._stream
        if stream.is_closed:
            return
        acks: list[_Ack] = []
        ts_ns = stream.now_ns()
        stream.window.expire(ts_ns)
        place = 0
        while place < len(messages):
            if self._is_plain:
                place += self._receive_plain(messages, place, ts_ns, acks)
                place += self.batches.take(messages, place)
            if place < len(messages):
                self._receive_checked(messages[place], acks)
                place += 1
        self._finish(acks)

    def _receive_plain(
        self, messages: Sequence[Message], place: int, ts_ns: int, acks: list[_Ack]
    ) -> int:
        """Store what is plain, from ``place`` on, up to the first that is not; how many were."""
        stream = self._stream
        window = stream.window
        find, match, remembers = window.find, _IDS.match, window.window_ns > 0
        last_id = stream.last_msg_id
        first_seq = seq = stream.store.last_seq + 1
        msg_ids: dict[str, int] = {}
        for at in range(place, len(messages)):
            headers, msg_id = messages[at].headers, ""
            if headers is not None:
                found = match(headers)
                if (
                    found is None
                    or headers.find(header_blocks.SERVER_LINE, found.end() - 2) >= 0
                    or len(headers) > HEADER_BYTES_MAX
                ):
                    break
                raw_id, expected = found.groups()
                if expected is not None and expected.decode() != last_id:
                    break
                if raw_id is not None:
                    msg_id = raw_id.decode()
                    if remembers:
                        if msg_id in msg_ids or find(msg_id) is not None:
                            break
                        msg_ids[msg_id] = seq
            last_id = msg_id
            seq += 1
        count = seq - first_seq
        if not count:
            return 0
        run = messages[place : place + count]
        try:
            stream.append(run, ts_ns)
        except StoreError:
            for message in run:
                self._receive_checked(message, acks)
            return count
        window.add(msg_ids, ts_ns)
        stream.last_msg_id = last_id
        stream.enforce(message.subject for message in run)
        if self._answers:
            head = self._ack_head
            acks += [
                (message.reply, seq, b"%b%d}" % (head, seq))
                for seq, message in enumerate(run, first_seq)
                if message.reply is not None
            ]
        return count

    def _receive_checked(self, message: Message, acks: list[_Ack]) -> None:
        """Take one message the long way."""
        asked = _asked(message.headers)
        try:
            batch_id = asked.get(BATCH_ID)
            if batch_id:
                self.check_size(message.headers, message.payload)
                document, seq = self.batches.receive(batch_id, message, asked)
            else:
                seq = self.store([self.stage(message, asked)])
                document = b"%b%d}" % (self._ack_head, seq)
        except _Duplicate as duplicate:
            seq = duplicate.seq
            document = b'%b%d,"duplicate": true}' % (self._ack_head, seq)
        except StoreError as error:
            self._refuse(message, ApiError(10077, err=str(error)), acks)
            return
        except ApiError as error:
            self._refuse(message, error, acks)
            return
        if self._answers and message.reply is not None:
            acks.append((message.reply, seq, document))

    def _refuse(self, message: Message, error: ApiError, acks: list[_Ack]) -> None:
        if self._answers and message.reply is not None:
            acks.append((message.reply, 0, self._error_document(error)))

    def _error_document(self, error: ApiError) -> bytes:
        name = self._stream.config.name
        return msgspec.json.encode({"error": error.document(), "stream": name, "seq": 0})

    def _finish(self, acks: list[_Ack]) -> None:
        """Flush, then answer."""
        stream = self._stream
        failure: bytes | None = None
        try:
            stream.announce()
        except StoreError as error:
            stream.host.report("store_failed", {"stream": stream.name, "error": str(error)})
            failure = self._error_document(ApiError(10077, err=str(error)))
        last_seq = stream.store.last_seq
        for reply, group in groupby(acks, itemgetter(0)):
            documents = [
                failure if failure is not None and seq > last_seq else document
                for _, seq, document in group
            ]
            stream.host.bus.publish_all(reply, documents)

    def accept(self, subject: str, headers: bytes | None, payload: bytes) -> int:
        """Store one message that comes from inside (a source); visible after ``announce``.

        Raises ApiError and StoreError.
        """
        message = Message(subject, None, headers, payload)
        try:
            return self.store([self.stage(message, _asked(headers), is_sourced=True)])
        except _Duplicate as duplicate:
            return duplicate.seq

    # Checks

    def stage(
        self,
        message: Message,
        asked: Mapping[str, str],
        staging: Staging | None = None,
        *,
        is_sourced: bool = False,
    ) -> Staged:
        """Check a message in nats-server's order. Raises ApiError, _Duplicate for a known id.

        ``asked``: what its headers ask of the server, see `Staged`.
        """
        stream = self._stream
        subject, headers = message.subject, message.headers
        if stream.transform is not None:
            subject = stream.transform.apply(subject) or subject
        if stream.config.sealed:
            raise ApiError(10109)
        self.check_size(headers, message.payload)
        staged = Staged(subject, headers, message.payload, asked)
        if not asked.keys() <= BATCH_HEADERS:
            self._check_headers(staged, staging, is_sourced=is_sourced)
        if stream.is_wanted(subject):
            if asked:
                self._take_ttl(staged, is_sourced=is_sourced)
            stream.admit(staged, staging)
        if staging is not None:
            is_counted = stream.config.discard is Discard.NEW
            size = stream.size_of(subject, staged.headers, staged.payload) if is_counted else 0
            staging.add(staged, size)
        return staged

    def check_size(self, headers: bytes | None, payload: bytes) -> None:
        """Refuse what is too large for the stream or for any stream. Raises ApiError."""
        limit = self._stream.config.max_msg_size
        header_size = len(headers) if headers else 0
        if 0 <= limit < header_size + len(payload):
            raise ApiError(10054)
        if header_size > HEADER_BYTES_MAX:
            raise ApiError(10097)

    def _check_headers(self, staged: Staged, staging: Staging | None, *, is_sourced: bool) -> None:
        config, asked = self._stream.config, staged.asked
        if not is_sourced and COUNTER in asked:
            raise ApiError(10168)
        wanted_stream = asked.get(EXPECTED_STREAM)
        if wanted_stream and wanted_stream != config.name:
            raise ApiError(10060)
        self._check_ttl_allowed(staged, is_sourced=is_sourced)
        self._check_expected(staged, staging)
        if not is_sourced and SCHEDULE in asked:
            raise ApiError(10188)
        if not is_sourced and STREAM_SOURCE in asked:
            raise ApiError(10227)
        self._check_msg_id(staged, staging)
        wanted_id = asked.get(EXPECTED_LAST_MSG_ID)
        if wanted_id:
            if staging is not None:
                raise ApiError(10177, header=EXPECTED_LAST_MSG_ID)
            if wanted_id != self._stream.last_msg_id:
                raise ApiError(10070, id=self._stream.last_msg_id)
        self._check_rollup(staged, staging, is_sourced=is_sourced)

    def _check_ttl_allowed(self, staged: Staged, *, is_sourced: bool) -> None:
        """Refuse a right Nats-TTL where there may be none; a wrong one is refused later."""
        text = staged.asked.get(TTL)
        if not text or is_sourced or self._stream.config.allow_msg_ttl:
            return
        with contextlib.suppress(InvalidTtl):
            parse_ttl(text)
            raise ApiError(10166)

    def _take_ttl(self, staged: Staged, *, is_sourced: bool) -> None:
        """Read Nats-TTL; on a sourced message it counts only where it is allowed."""
        text = staged.asked.get(TTL)
        config = self._stream.config
        if not text or (is_sourced and not config.allow_msg_ttl):
            return
        try:
            ttl_ns = parse_ttl(text)
        except InvalidTtl:
            raise ApiError(10165) from None
        shortest_ns = config.subject_delete_marker_ttl_ns
        if ttl_ns != NEVER and ttl_ns < shortest_ns and config.max_msgs_per_subject != 1:
            ttl_ns = shortest_ns
            block = header_blocks.remove(staged.headers, [TTL])
            staged.headers = header_blocks.add(block, [(TTL, duration_text(ttl_ns))])
        staged.ttl_ns = ttl_ns

    def _check_expected(self, staged: Staged, staging: Staging | None) -> None:
        """The compare-and-set headers: last sequence of the subject, then of the stream."""
        store, asked = self._stream.store, staged.asked
        text = asked.get(EXPECTED_LAST_SUBJECT_SEQ)
        pattern = asked.get(EXPECTED_SUBJECT)
        if text:
            tested = pattern or staged.subject
            if staging is not None and tested in staging.subjects:
                raise ApiError(10164)
            last = self._last_of(tested)
            if _sequence(text) != last:
                raise ApiError(10071, seq=last)
        elif pattern:
            raise ApiError(10193)
        text = asked.get(EXPECTED_LAST_SEQ)
        if text:
            last = store.last_seq + (staging.count if staging is not None else 0)
            if _sequence(text) != last:
                raise ApiError(10071, seq=last)

    def _last_of(self, pattern: str) -> int:
        """Give the last sequence on a subject, or on any subject of a pattern; 0 for none."""
        store = self._stream.store
        if subjects.is_literal(pattern):
            state = store.subject_state(pattern)
            return state[1] if state is not None else 0
        if not subjects.is_valid(pattern):
            return 0
        found = store.last_matches([pattern])
        return found[-1] if found else 0

    def _check_msg_id(self, staged: Staged, staging: Staging | None) -> None:
        stream = self._stream
        staged.msg_id = staged.asked.get(MSG_ID, "")
        if not staged.msg_id:
            return
        stream.window.expire(stream.now_ns())
        seq = stream.window.find(staged.msg_id)
        if staging is not None:
            if seq is not None or staged.msg_id in staging.msg_ids:
                raise ApiError(10201)
        elif seq is not None:
            raise _Duplicate(seq)

    def _check_rollup(self, staged: Staged, staging: Staging | None, *, is_sourced: bool) -> None:
        text = staged.asked.get(ROLLUP)
        if not text:
            return
        config = self._stream.config
        if not config.allow_rollup_hdrs or config.deny_purge:
            if is_sourced:
                return
            raise ApiError(10111, err="rollup not permitted")
        rollup = text.lower()
        if rollup not in ("sub", "all"):
            raise ApiError(10111, err=f'rollup value invalid: "{text}"')
        if staging is not None and (
            staging.count if rollup == "all" else staged.subject in staging.subjects
        ):
            raise ApiError(10111, err=f"batch rollup {rollup} invalid")
        staged.rollup = rollup

    # Storing

    def store(self, batch: Sequence[Staged]) -> int:
        """Store staged messages in order and apply limits and rollups; the last sequence.

        All messages come before anything that removes, so that a crash in between can only take
        away the end: the commit of an atomic batch, never what it replaced. Raises StoreError.
        """
        stream = self._stream
        ts_ns = stream.now_ns()
        messages = [Message(it.subject, None, it.headers, it.payload) for it in batch]
        placed = list(enumerate(batch, stream.append(messages, ts_ns)))
        stream.window.add({it.msg_id: seq for seq, it in placed if it.msg_id}, ts_ns)
        stream.last_msg_id = batch[-1].msg_id
        for seq, staged in placed:
            if staged.ttl_ns:
                stream.expiry.add(seq, staged.ttl_ns, ts_ns)
        stream.enforce({staged.subject: None for staged in batch})
        for seq, staged in placed:
            if staged.rollup:
                pattern = staged.subject if staged.rollup == "sub" else ">"
                stream.roll_up(pattern, seq)
        return placed[-1][0]


def _asked(headers: bytes | None) -> dict[str, str]:
    """What a message's headers ask of the server."""
    if headers is None or header_blocks.SERVER_LINE not in headers:
        return {}
    return header_blocks.server_headers(headers)


def _sequence(text: str) -> int:
    """Read a sequence from a header; what is no number can match none and is -1."""
    return int(text) if text.isascii() and text.isdigit() else -1
