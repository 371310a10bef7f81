"""Fenced sinks: where effects land exactly once and in order, however often a message comes.

**The mark.** A message may be delivered more than once, and a worker that was paused may wake after
its partition went to another. Neither can be prevented at the worker: it may be paused between its
last look and its write. So the sink keeps, beside each key's value, what the value already holds:
(epoch, seq) of the newest message applied. An effect is applied in one atomic step with the new
mark, and only if

* its epoch is not below the mark's (else it is *stale*: an owner that was replaced), and
* its seq is above the mark's (else it is a *repeat*).

`judge` is that rule and nothing else. A key that records of several partitions carry (a topic that
was given more partitions, a producer that chose partitions by hand) has one mark for each of them,
as epochs and sequences of different partitions have nothing to do with each other.

**What holds for one key in one partition**, with messages handled in order by each owner:

1. Each message's effect is applied at most once, and exactly once if the handler is called until it
   returns, which is what a group does.
2. Effects are applied in the order of their sequences.
3. Once an effect of epoch E is there, no effect of a lower epoch is applied: not later and not at
   the same moment (one of the two compare-and-sets fails, and it is judged again).

**What does not hold.** The mark knows an epoch only from the effects it has seen. When a partition
has gone to a new owner which did not yet apply anything to this key, the old owner can still apply
the key's *next* message. That effect is the one the new owner would make from the same message and
the same value, it is in order, and the new owner's own delivery of that message is refused as a
repeat; so 1 and 2 hold and the value is right. But it is made by a worker that no longer owns the
partition. A handler with effects elsewhere (a mail sent, a row in another place) is not covered by
any mark here.

**A refusal of a stale effect is an error** (`StaleEpoch`), a repeat is not: a repeat is done with,
but a message whose effect was refused for its epoch may not be acknowledged. A replaced owner could
not do so anyway; an owner that the group still confirms has an epoch that is too low, as after the
loss of the group's bucket, and the group has to raise it above the sink's first.

Messages without a key have no order. Each is an entry of its own by (partition, seq): a repeat
finds the entry and is refused, whatever its epoch; ``update`` gets None.

Rejected: one fence per partition, written at takeover and checked with each effect. It would close
the gap above, but a key-value store takes one condition per write, which is the value's own
compare-and-set; two need an atomic batch per effect (nats-server 2.12 and later only).
"""

import base64
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, Self, TypeVar
from urllib.parse import unquote_to_bytes

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header, KeyValueConfig, StorageType

from ..errors import GroupError
from ..partitioning.key import KEY_HEADER, key_headers, to_token

MARK_HEADER = "Millstream-Mark"
"""On a sink's entry: ``<partition>:<epoch>:<seq>`` for each partition, separated by spaces."""

Update = Callable[[bytes | None], bytes | None]
"""The value before (None: there is none) to the value after (None: delete it, the mark stays).

Called again when another write came between, so it must have no effects of its own.
"""


class SinkError(GroupError):
    """An effect could not be applied, and nothing says whether it was: apply it again."""


class SinkUnavailable(SinkError):
    """The sink did not answer, or answered with an error."""

    def __init__(self, sink: str, reason: str) -> None:
        super().__init__(f"sink {sink!r} is unavailable: {reason}")
        self.sink, self.reason = sink, reason


class SinkContended(SinkError):
    """The entry was changed by others each time between reading and writing it."""

    def __init__(self, sink: str, entry: str, attempts: int) -> None:
        super().__init__(f"sink {sink!r}: entry {entry!r} changed {attempts} times while updating")
        self.sink, self.entry, self.attempts = sink, entry, attempts


class BadMark(SinkError):
    """An entry's mark cannot be read, so nothing can be said about its value."""

    def __init__(self, sink: str, entry: str, text: str) -> None:
        super().__init__(f"sink {sink!r}: entry {entry!r} has no readable mark: {text!r}")
        self.sink, self.entry, self.text = sink, entry, text


class StaleEpoch(GroupError):
    """The key already has an effect of a higher epoch; the message may not be acknowledged.

    ``seen_epoch`` is that epoch: whoever still owns the partition needs one above it.
    """

    def __init__(self, partition: int, epoch: int, seen_epoch: int) -> None:
        super().__init__(
            f"effect of epoch {epoch} in partition {partition} refused: epoch {seen_epoch} was here"
        )
        self.partition, self.epoch, self.seen_epoch = partition, epoch, seen_epoch


class Verdict(StrEnum):
    """What is to become of an effect."""

    APPLY = "apply"
    REPEAT = "repeat"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest message whose effect a value holds."""

    epoch: int
    seq: int


Marks = Mapping[int, Mark]
"""An entry's marks by partition; nearly always one."""

_NO_MARKS: Marks = MappingProxyType({})


def judge(mark: Mark | None, epoch: int, seq: int) -> Verdict:
    """Whether the effect of message ``seq``, handled under ``epoch``, may follow ``mark``."""
    if mark is None:
        return Verdict.APPLY
    if epoch < mark.epoch:
        return Verdict.STALE
    if seq <= mark.seq:
        return Verdict.REPEAT
    return Verdict.APPLY


class Fenced(Protocol):
    """What a sink needs of a message; a group's `Message` has it."""

    @property
    def key(self) -> bytes | None:
        """The key, or None if the message has none."""

    @property
    def partition(self) -> int:
        """The message's partition."""

    @property
    def epoch(self) -> int:
        """The epoch under which the message is handled."""

    @property
    def seq(self) -> int:
        """The message's stream sequence."""


@dataclass(slots=True)
class SinkCounters:
    """What one sink object saw; attempts = applied + refused + those that ended in an error."""

    attempts: int = 0
    applied: int = 0
    refused_repeat: int = 0
    refused_stale: int = 0


class Sink(Protocol):
    """The contract; ``tests/coordinator/sink_contract.py`` says it in tests any sink can run."""

    @property
    def counters(self) -> SinkCounters:
        """What this object counted since it was made."""

    async def apply(self, message: Fenced, update: Update) -> Verdict:
        """Apply ``update`` to the value of the message's key, and say whether it was needed.

        APPLY: the effect is stored now. REPEAT: it was there. Either way the message is done with.
        Raises StaleEpoch (refused, not done with), and SinkError when nothing is known: applying it
        again is always safe.
        """

    async def value(self, key: bytes) -> bytes | None:
        """What the key's value is now; None if there is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with its marks. ``revision`` is 0 where there never was one."""

    value: bytes | None = None
    marks: Marks = field(default_factory=lambda: _NO_MARKS)
    revision: int = 0

    def admits(self, message: Fenced, counters: SinkCounters) -> bool:
        """Whether the effect may be applied; False: it is a repeat. Raises StaleEpoch.

        Refusals are counted here, the rest by who stores it.
        """
        mark = self.marks.get(message.partition)
        verdict = judge(mark, message.epoch, message.seq)
        if message.key is None and mark is not None:
            verdict = Verdict.REPEAT
        match verdict:
            case Verdict.APPLY:
                return True
            case Verdict.REPEAT:
                counters.refused_repeat += 1
                return False
            case Verdict.STALE:
                counters.refused_stale += 1
                seen_epoch = mark.epoch if mark is not None else 0
                raise StaleEpoch(message.partition, message.epoch, seen_epoch)

    def marks_after(self, message: Fenced) -> Marks:
        """Return the marks once the message is applied."""
        return {**self.marks, message.partition: Mark(message.epoch, message.seq)}


@dataclass(frozen=True, slots=True)
class _Of:
    """A key where a message is asked for."""

    key: bytes
    partition: int = 0
    epoch: int = 0
    seq: int = 0


def entry_key(message: Fenced) -> str:
    """Where the message's effect lives: a key-value key made of ``A-Z a-z 0-9 - _ / =`` and dots.

    A key stands for itself, with ``=XX`` for every other byte; a key over 128 bytes is its start
    and a hash, as in a subject. Keyless messages are ``=none.<partition>.<seq>``: no key has a dot.
    """
    if message.key is None:
        return f"=none.{message.partition}.{message.seq}"
    return re.sub(r"[^A-Za-z0-9_/-]", _escape_match, to_token(message.key))


def key_of_entry(entry: str, headers: Mapping[str, str] | None = None) -> bytes | None:
    """Return the key whose value an entry holds, None if it is a keyless message's.

    ``headers`` are the stored entry's, needed for a key over 128 bytes.
    """
    if "." in entry:
        return None
    if entry == "=empty":
        return b""
    if "=-" in entry:
        return base64.b64decode((headers or {})[KEY_HEADER])
    return unquote_to_bytes(entry.replace("=", "%"))


def _escape_match(found: re.Match[str]) -> str:
    character = found[0]
    return "=" if character == "%" else f"={ord(character):02X}"


def encode_marks(marks: Marks) -> str:
    """Write the value of `MARK_HEADER`."""
    return " ".join(f"{number}:{mark.epoch}:{mark.seq}" for number, mark in sorted(marks.items()))


def decode_marks(text: str) -> Marks:
    """Read `encode_marks`' text; ValueError if it is no such text."""
    marks = {}
    for part in text.split():
        partition, epoch, seq = (int(number) for number in part.split(":"))
        marks[partition] = Mark(epoch, seq)
    return marks


class MemorySink:
    """A sink in a dictionary: for tests and simulations, and what the contract looks like bare.

    It is as atomic as a dictionary: within one thread. ``entries`` is by `entry_key`.
    """

    def __init__(self) -> None:
        self.counters = SinkCounters()
        self.entries: dict[str, Entry] = {}

    async def apply(self, message: Fenced, update: Update) -> Verdict:
        """See `Sink`."""
        return self.apply_now(message, update)

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        """`apply` without a loop."""
        self.counters.attempts += 1
        where = entry_key(message)
        entry = self.entries.get(where, Entry())
        if not entry.admits(message, self.counters):
            return Verdict.REPEAT
        value = update(entry.value)
        self.entries[where] = Entry(value, entry.marks_after(message), entry.revision + 1)
        self.counters.applied += 1
        return Verdict.APPLY

    async def value(self, key: bytes) -> bytes | None:
        """See `Sink`."""
        return self.entries.get(entry_key(_Of(key)), Entry()).value


class KvSink:
    """A sink in a JetStream key-value bucket: value and mark are one entry under compare-and-set.

    The value is the entry's plain value, so any key-value client can read it; the mark is in the
    entry's header `MARK_HEADER`. Only this class may write to the bucket, and only one group: the
    epochs of two groups know nothing of each other. One object serves any number of tasks.

    An entry read or written is remembered (``remembered_max`` of them, the last used), so that a
    key's next effect costs one round trip instead of two. That is safe: marks only grow, so a
    refusal by an old mark is right for the newer one as well, and an effect on an old value fails
    its compare-and-set and is done again from the stored one. (Deleting the bucket under a running
    sink ends what any mark can promise.)
    """

    def __init__(
        self,
        jetstream: JetStreamContext,
        bucket: str,
        *,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> None:
        self.counters = SinkCounters()
        self.bucket = bucket
        self._jetstream = jetstream
        self._stream = f"KV_{bucket}"
        self._attempts_max = attempts_max
        self._remembered: OrderedDict[str, Entry] = OrderedDict()
        self._remembered_max = remembered_max
        self._unconfirmed: OrderedDict[tuple[str, int], Mark] = OrderedDict()

    @classmethod
    async def open(
        cls,
        connection: Client,
        bucket: str,
        *,
        replicas: int = 1,
        storage: StorageType = StorageType.FILE,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> Self:
        """Make the sink on ``bucket``, which is made if missing. Raises SinkUnavailable."""
        jetstream = connection.jetstream()
        try:
            try:
                await jetstream.stream_info(f"KV_{bucket}")
            except nats.js.errors.NotFoundError:
                await jetstream.create_key_value(
                    KeyValueConfig(bucket=bucket, replicas=replicas, storage=storage)
                )
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise SinkUnavailable(bucket, _reason(error)) from error
        return cls(jetstream, bucket, attempts_max=attempts_max, remembered_max=remembered_max)

    async def apply(self, message: Fenced, update: Update) -> Verdict:
        """See `Sink`. Raises StaleEpoch, SinkUnavailable, SinkContended or BadMark."""
        self.counters.attempts += 1
        where = entry_key(message)
        for _ in range(self._attempts_max):
            # What failed its compare-and-set is remembered no more.
            entry = self._remembered.get(where) or await self.load(where)
            if self._was_ours(where, entry, message):
                self.counters.applied += 1
                return Verdict.APPLY
            if not entry.admits(message, self.counters):
                return Verdict.REPEAT
            if await self._store(where, entry, message, update(entry.value)):
                self.counters.applied += 1
                return Verdict.APPLY
        raise SinkContended(self.bucket, where, self._attempts_max)

    async def value(self, key: bytes) -> bytes | None:
        """See `Sink`; read from the server. Raises SinkUnavailable."""
        return (await self.load(entry_key(_Of(key)))).value

    async def load(self, where: str) -> Entry:
        """Read the entry at an `entry_key`, from the stream's leader. Raises SinkUnavailable."""
        try:
            stored = await self._jetstream.get_msg(self._stream, subject=self._subject(where))
        except nats.js.errors.NotFoundError as error:
            if error.err_code == _STREAM_NOT_FOUND:
                raise SinkUnavailable(self.bucket, "the bucket is gone") from error
            return Entry()
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise SinkUnavailable(self.bucket, _reason(error)) from error
        headers = stored.headers or {}
        text = headers.get(MARK_HEADER, "")
        try:
            marks = decode_marks(text)
        except ValueError as error:
            raise BadMark(self.bucket, where, text) from error
        is_deleted = "KV-Operation" in headers or "Nats-Marker-Reason" in headers
        value = None if is_deleted else stored.data or b""
        entry = Entry(value, marks, stored.seq or 0)
        self._remember(where, entry)
        return entry

    async def _store(self, where: str, before: Entry, message: Fenced, value: bytes | None) -> bool:
        """Write value and mark if the entry is still ``before``; False if it is not."""
        marks = before.marks_after(message)
        headers = {
            Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(before.revision),
            MARK_HEADER: encode_marks(marks),
            **key_headers(message.key),
        }
        if value is None:
            headers["KV-Operation"] = "DEL"
        self._remembered.pop(where, None)
        try:
            ack = await self._jetstream.publish(self._subject(where), value or b"", headers=headers)
        except nats.js.errors.APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                return False
            raise SinkUnavailable(self.bucket, _reason(error)) from error
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            # It may be stored all the same: the next attempt at this message finds out.
            self._unconfirmed[where, message.partition] = Mark(message.epoch, message.seq)
            _shrink(self._unconfirmed, self._remembered_max)
            raise SinkUnavailable(self.bucket, _reason(error)) from error
        self._unconfirmed.pop((where, message.partition), None)
        self._remember(where, Entry(value, marks, ack.seq))
        return True

    def _was_ours(self, where: str, entry: Entry, message: Fenced) -> bool:
        """Whether the effect is there by this object's own write, whose confirmation was lost."""
        mark = Mark(message.epoch, message.seq)
        written = self._unconfirmed.get((where, message.partition))
        if written != mark or entry.marks.get(message.partition) != mark:
            return False
        del self._unconfirmed[where, message.partition]
        return True

    def _remember(self, where: str, entry: Entry) -> None:
        self._remembered[where] = entry
        self._remembered.move_to_end(where)
        _shrink(self._remembered, self._remembered_max)

    def _subject(self, where: str) -> str:
        return f"$KV.{self.bucket}.{where}"


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_STREAM_NOT_FOUND = 10059
_WRONG_LAST_SEQUENCE = (10071, 10164)


def _shrink(remembered: "OrderedDict[_Key, _Value]", size_max: int) -> None:
    while len(remembered) > size_max:
        remembered.popitem(last=False)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
