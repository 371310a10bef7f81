"""The rule of fenced sinks: what a mark is, and what it says about the next effect. No I/O.

**The mark.** A message may be delivered more than once, and a worker that was paused may wake after
its partition went to another. Neither can be prevented at the worker: it may be paused between its
last look and its write. So the sink keeps, beside each key's value, what the value already holds:
(epoch, seq) of the newest message applied. An effect is applied in one atomic step with the new
mark, and only if

* its epoch is not below the mark's (else it is *stale*: an owner that was replaced), and
* its seq is above the mark's (else it is a *repeat*).

`judge` is that rule and nothing else. A key that records of several partitions carry (a topic that
was given more partitions, a producer that chose partitions by hand) has one mark for each of them,
as epochs and sequences of different partitions have nothing to do with each other. Which of them
a message is judged by is its `Fenced.mark`: its partition at the number of partitions that the
group began with, so that no resize makes a key's marks start anew.

**What holds for one key in one partition**, with messages handled in order by each owner:

1. Each message's effect is applied at most once, and exactly once if the handler is called until it
   returns, which is what a group does.
2. Effects are applied in the order of their sequences.
3. Once an effect of epoch E is there, no effect of a lower epoch is applied: not later and not at
   the same moment (one of the two compare-and-sets fails, and it is judged again).

**What a key's mark alone cannot know.** It knows an epoch only from the effects it has seen. When a
partition has gone to a new owner which did not yet apply anything to this key, the old owner can
still apply the key's *next* message. That effect is the one the new owner would make from the same
message and the same value, it is in order, and the new owner's own delivery of that message is
refused as a repeat; so 1 and 2 hold and the value is right. But it is made by a worker that no
longer owns the partition. A handler with effects elsewhere (a mail sent, a row in another place) is
not covered by any mark here.

**The fence of a partition** closes that gap where a sink can judge two things in one step: beside
the keys' marks it keeps the highest epoch it has seen of each partition, raised by a new owner's
first effect, or before that by ``fence``. An effect of a lower epoch is refused whatever its key.
A fence belongs to a partition as it is owned (`Fenced.partition`): after a split the halves of a
partition have epochs of their own. A worker that was cut off before a resize is refused once the
partition of that number has a new owner; where a merge left no partition of that number, by the
marks of the keys alone. The package's docstring says which sink has a fence.

**A refusal of a stale effect is an error** (`StaleEpoch`), a repeat is not: a repeat is done with,
but a message whose effect was refused for its epoch may not be acknowledged. A replaced owner could
not do so anyway; an owner that the group still confirms has an epoch that is too low, as after the
loss of the group's bucket, and the group has to raise it above the sink's first.

Messages without a key have no order. Each is an entry of its own by (mark, seq): a repeat finds the
entry and is refused, whatever its epoch.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from ..partitioning.key import KEY_HEADER, to_token

MARK_HEADER: Final = "Millstream-Mark"
"""On a stored message: ``<mark>:<epoch>:<seq>`` for each `Fenced.mark`, separated by spaces."""


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
"""An entry's marks by `Fenced.mark`; nearly always one."""

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
        """The message's partition, whose owner handles it."""

    @property
    def mark(self) -> int:
        """The partition at the group's first number of partitions: no resize changes it."""

    @property
    def epoch(self) -> int:
        """The epoch under which the message is handled."""

    @property
    def seq(self) -> int:
        """The message's stream sequence."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with its marks. ``revision`` is 0 where there never was one."""

    value: bytes | None = None
    marks: Marks = field(default_factory=lambda: _NO_MARKS)
    revision: int = 0

    def marks_after(self, message: Fenced) -> Marks:
        """Return the marks once the message is applied."""
        return {**self.marks, message.mark: Mark(message.epoch, message.seq)}


def entry_key(message: Fenced) -> str:
    """Where the message's effect lives: a key-value key made of ``A-Z a-z 0-9 - _ / =`` and dots.

    A key stands for itself, with ``=XX`` for every other byte; a key over 128 bytes is its start
    and a hash, as in a subject. Keyless messages are ``=none.<mark>.<seq>``: no key has a dot.
    """
    if message.key is None:
        return f"=none.{message.mark}.{message.seq}"
    return entry_of_key(message.key)


def entry_of_key(key: bytes) -> str:
    """`entry_key` of the messages with this key."""
    return re.sub(r"[^A-Za-z0-9_/-]", _escape_match, to_token(key))


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
        number, epoch, seq = (int(digits) for digits in part.split(":"))
        marks[number] = Mark(epoch, seq)
    return marks
