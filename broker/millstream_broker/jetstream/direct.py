"""Direct get: messages as raw replies, read without the API's JSON, where ``allow_direct`` is set.

A reply is the stored message with where it comes from in headers; a batch ends with ``204
EOB``. What can't be answered is a status: 404 not there, 408 a request that makes no sense, 413
too many results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..protocol import headers as header_blocks
from ..routing.port import Message
from ..store.port import StoredMessage
from ..subjects import subject as subjects
from . import wire
from .batch import REQUIRED_LEVEL, supports_level
from .model import GetRequest
from .stream import Stream
from .strictjson import JsonError

RESULTS_MAX: Final = 1024
BYTES_MAX: Final = 64 * 1024 * 1024


class _Refused(Exception):
    """The request ends with this status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.block = header_blocks.status(code, text)


class DirectGet:
    """Answers ``$JS.API.DIRECT.GET.<stream>`` while the stream allows it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._head = f"$JS.API.DIRECT.GET.{stream.name}"
        self._unsubscribe: list[Callable[[], None]] = []

    def configure(self) -> None:
        """Listen or not, as the configuration says."""
        if self._stream.config.allow_direct and not self._unsubscribe:
            subscribe = self._stream.host.subscribe
            self._unsubscribe = [
                subscribe(self._head, self._on_requests),
                subscribe(f"{self._head}.>", self._on_requests),
            ]
        elif not self._stream.config.allow_direct:
            self.close()

    def close(self) -> None:
        """Stop listening."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def _on_requests(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.reply is None or self._stream.is_closed:
                continue
            try:
                self._answer(message, message.reply)
            except _Refused as refused:
                self._stream.host.bus.publish(message.reply, headers=refused.block)

    def _answer(self, message: Message, reply: str) -> None:
        request = self._read(message)
        if request.multi_last:
            self._send_last_of_many(request, reply)
        elif request.batch:
            self._send_batch(request, reply)
        else:
            seq = find(self._stream, request)
            stored = None if seq is None else self._stream.read(seq)
            if stored is None:
                raise _Refused(404, "Message Not Found")
            self._send(reply, stored, request)

    def _read(self, message: Message) -> GetRequest:
        """Make the request from subject and body, or refuse it."""
        level = header_blocks.get(message.headers, REQUIRED_LEVEL)
        if level and not supports_level(level):
            raise _Refused(412, "Required Api Level")
        subject = message.subject[len(self._head) + 1 :]
        if not message.payload and not subject:
            raise _Refused(408, "Empty Request")
        try:
            request: GetRequest = wire.read_request(wire.GET, message.payload, strict=False)
        except JsonError:
            raise _Refused(408, "Malformed Request") from None
        if subject:
            given = GetRequest(
                last_by_subj=subject, no_hdr=request.no_hdr, max_bytes=request.max_bytes
            )
            allowed = GetRequest(no_hdr=request.no_hdr, max_bytes=request.max_bytes)
            if request != allowed:
                raise _Refused(408, "Bad Request")
            return given
        if not is_asking(request):
            raise _Refused(408, "Empty Request")
        if not is_sensible(request):
            raise _Refused(408, "Bad Request")
        return request

    def _send_batch(self, request: GetRequest, reply: str) -> None:
        """Send the messages from where the request begins, then the end mark."""
        store = self._stream.store
        patterns = [request.next_by_subj or ">"]
        next_seq = find(self._stream, request)
        if next_seq is None:
            raise _Refused(404, "Message Not Found")
        pending = store.count_matches(patterns, next_seq)
        last_seq, size, left = 0, 0, request.batch
        limit = request.max_bytes if request.max_bytes > 0 else BYTES_MAX
        seq: int | None = next_seq
        while seq is not None and left > 0:
            stored = self._stream.read(seq)
            if stored is not None:
                size += _size(stored)
                if size > limit and last_seq:
                    break
                pending -= 1
                self._send(reply, stored, request, (pending, last_seq))
                last_seq, left = seq, left - 1
            seq = store.next_match(patterns, seq + 1)
        self._end(reply, pending, last_seq)

    def _send_last_of_many(self, request: GetRequest, reply: str) -> None:
        """Send the last message of every subject asked for, as of one moment, then the end mark."""
        store = self._stream.store
        up_to_seq = request.up_to_seq or None
        if request.up_to_time_ns is not None:
            up_to_seq = store.seq_at(request.up_to_time_ns + 1) - 1
            if up_to_seq < store.first_seq:
                raise _Refused(404, "No Results")
        if any(not subjects.is_valid(pattern) for pattern in request.multi_last):
            raise _Refused(408, "Bad Request")
        found = store.last_matches(request.multi_last, up_to_seq=up_to_seq)
        if not found:
            raise _Refused(404, "No Results")
        if len(found) > RESULTS_MAX:
            raise _Refused(413, "Too Many Results")
        shown_up_to = up_to_seq if up_to_seq is not None else store.last_seq
        pending, last_seq, size = len(found), 0, 0
        limit = request.max_bytes if request.max_bytes > 0 else BYTES_MAX
        for seq in found[: request.batch or RESULTS_MAX]:
            stored = self._stream.read(seq)
            if stored is None:
                continue
            size += _size(stored)
            if size > limit and last_seq:
                break
            pending -= 1
            self._send(reply, stored, request, (pending, last_seq))
            last_seq = seq
        self._end(reply, pending, last_seq, [("Nats-UpTo-Sequence", str(shown_up_to))])

    def _send(
        self,
        reply: str,
        stored: StoredMessage,
        request: GetRequest,
        progress: tuple[int, int] | None = None,
    ) -> None:
        """Send one message; ``progress`` is what is still to come and what came before."""
        block: bytes | None = None
        if not request.no_hdr:
            pairs = [
                ("Nats-Stream", self._stream.name),
                ("Nats-Subject", stored.subject),
                ("Nats-Sequence", str(stored.seq)),
                ("Nats-Time-Stamp", wire.format_time(stored.ts_ns)),
            ]
            if progress is not None:
                pairs.append(("Nats-Num-Pending", str(progress[0])))
                pairs.append(("Nats-Last-Sequence", str(progress[1])))
            block = header_blocks.add(stored.headers, pairs)
        self._stream.host.bus.publish(reply, stored.payload, headers=block)

    def _end(
        self, reply: str, pending: int, last_seq: int, more: Sequence[tuple[str, str]] = ()
    ) -> None:
        pairs = [("Nats-Num-Pending", str(pending)), ("Nats-Last-Sequence", str(last_seq)), *more]
        self._stream.host.bus.publish(reply, headers=header_blocks.status(204, "EOB", pairs))


def _size(stored: StoredMessage) -> int:
    return len(stored.subject) + len(stored.headers or b"") + len(stored.payload)


def is_asking(request: GetRequest) -> bool:
    """Whether the request names anything to get."""
    return bool(
        request.seq
        or request.last_by_subj
        or request.next_by_subj
        or request.multi_last
        or request.start_time_ns is not None
    )


def is_sensible(request: GetRequest) -> bool:
    """Whether what the request names goes together."""
    if request.multi_last:
        return not (
            request.last_by_subj
            or request.next_by_subj
            or request.start_time_ns is not None
            or (request.up_to_seq and request.up_to_time_ns is not None)
        )
    if request.last_by_subj:
        return not (request.seq or request.next_by_subj or request.start_time_ns is not None)
    return not (request.seq and request.start_time_ns is not None)


def find(stream: Stream, request: GetRequest) -> int | None:
    """Find the message a single get or the start of a batch means; None when it is not there."""
    store = stream.store
    if request.last_by_subj:
        if not subjects.is_valid(request.last_by_subj):
            return None
        found = store.last_matches([request.last_by_subj])
        return found[-1] if found else None
    start_seq = request.seq
    if request.start_time_ns is not None:
        start_seq = store.seq_at(request.start_time_ns)
    if request.next_by_subj:
        if not subjects.is_valid(request.next_by_subj):
            return None
        return store.next_match([request.next_by_subj], max(start_seq, 1))
    found_seq = store.next_match([">"], max(start_seq, 1))
    if request.start_time_ns is None and not request.batch and found_seq != start_seq:
        return None
    return found_seq
