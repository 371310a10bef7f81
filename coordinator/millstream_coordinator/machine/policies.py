"""What becomes of a message whose handler fails: retried in its lane, then by the group's policy.

=============== ==================================================================================
`retry`         tried again for ever
`dead-letter`   after ``max_attempts`` calls it is stored as a letter, and its key goes on
`park`          the key is written into ``parked.<n>``, then the message is stored as a letter, and
                so is every later one of the key, in order, instead of being handled (parking.py)
`stop`          ``part.<n>`` says which message stopped the partition; nothing of it is handed out,
                by any owner, until an operator clears that (tried again) or asks to skip it (stored
                as a letter, then cleared)
=============== ==================================================================================

A letter is an effect: it is stored before the ack, at most once per message, and fenced (the port
judges it as a sink would). Until it is stored its message runs in its lane, so nothing of the key
overtakes it and a drain waits for it. A call refused by a sink for its epoch is no failure of the
message and counts as no attempt.

The backoff doubles from ``retry_min_s`` to ``retry_max_s`` and is spread by a tenth up and down, so
that messages that failed together (a database was away) do not come back together. The spread comes
from the sequence: the core has no chance in it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ..model import Message, ParkedRecord, PartitionRecord, Timing
from ..naming import partition_key
from ..partitioning.key import NULL_TOKEN, to_token
from ..ports import Done, Stale, StoreLetter
from .context import Context
from .handoff import RETRY_S, raise_epoch, write_partition
from .ownership import GivenUp, Holder, Ownership
from .steps import Pause, Script

ERROR_MAX = 500
"""Characters of an error that are kept."""
_GOLDEN = 0.6180339887498949


class Desk(Protocol):
    """Who has messages on their way to the letters and back (`Failures`), as scripts know it."""

    context: Context
    owner: Holder

    def letter_stored(self, one: Ownership, given_up: GivenUp) -> None:
        """A message is among the letters: for the partition's books it is handled."""

    def take_parked(self, one: Ownership, record: ParkedRecord) -> None:
        """Take what is parked from the record, as long as this owner is its last writer."""

    def may_call(self, one: Ownership) -> bool:
        """Whether a letter may be handed to the handler now."""

    def begin_replayed(self, one: Ownership, message: Message) -> int:
        """Note the handler call of a letter; returns the id of its command."""

    def replay_ended(self, one: Ownership, token: str) -> None:
        """Let the key go on; and look again, for it may have been asked for anew meanwhile."""


def retry_delay_s(timing: Timing, attempt: int, seq: int) -> float:
    """How long a message waits after its ``attempt``-th call failed."""
    exponent = min(attempt - 1, 60)
    delay_s = min(timing.retry_min_s * 2.0**exponent, timing.retry_max_s)
    spread = (seq * _GOLDEN) % 1.0
    return delay_s * (0.9 + 0.2 * spread)


def error_line(error: str) -> str:
    """An error as one short line."""
    return " ".join(error.split())[:ERROR_MAX]


def letter_token(message: Message) -> str:
    """What a letter's subject ends with: the key's token; without a key, one of its own."""
    if message.key is None:
        return f"{NULL_TOKEN}.{message.seq}"
    return to_token(message.key)


def store(desk: Desk, one: Ownership, given_up: GivenUp) -> Script:
    """Store a letter, as often as it takes; then its message is handled."""
    message = given_up.message
    while True:
        reply = yield StoreLetter(
            id=desk.context.steps.take_id(),
            message=message,
            token=given_up.token,
            reason=given_up.reason,
            error=given_up.error,
            attempts=message.attempt,
            stored_ns=desk.context.wall_ns,
        )
        if isinstance(reply, Done):
            desk.letter_stored(one, given_up)
            return
        if isinstance(reply, Stale):
            one.given_up.pop(message.seq, None)
            one.lanes.put_back(message)
            one.is_held = True
            yield from raise_epoch(desk.owner, one, reply.seen_epoch)
            return
        yield Pause(RETRY_S)


def stop(desk: Desk, one: Ownership, seq: int, error: str) -> Script:
    """Write into ``part.<n>`` that this message stopped the partition."""
    yield from _change(
        desk, one, lambda record: replace(record, stopped_seq=seq, stopped_error=error)
    )


def skipped(desk: Desk, one: Ownership, seq: int) -> Script:
    """Take the order to skip a message out of ``part.<n>``: it is carried out."""

    def change(record: PartitionRecord) -> PartitionRecord:
        return replace(record, skip_seq=None) if record.skip_seq == seq else record

    yield from _change(desk, one, change)


def _change(
    desk: Desk, one: Ownership, change: Callable[[PartitionRecord], PartitionRecord]
) -> Script:
    """Write a change of the record, until it is there.

    A write that was not answered may have taken place, and an operator may have resumed the
    partition before the record is read again: then it is stopped a second time. That is seen and
    undone; not to stop it could not be told from a stop that nobody has seen.
    """
    context = desk.context
    while desk.owner.is_mine(one):
        record = context.book.partitions[one.partition]
        new = change(record)
        revision = context.book.revision(partition_key(one.partition))
        if new == record or (yield from write_partition(context, one.partition, new, revision)):
            # What an operator wrote since may have come before the reply, and was not obeyed yet.
            context.changed.append(partition_key(one.partition))
            return
        yield Pause(RETRY_S)
