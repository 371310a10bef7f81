"""Parked keys: ``parked.<n>`` says whose messages are stored as letters, and what is replayed.

Who parks writes ``parked.<n>`` by compare-and-set before it stores the first letter. A new owner
**claims** the record before its first pull: it reads it, so it knows which keys are parked, and
writes its own epoch into it, so that an owner it replaced, which may not know yet, can park nothing
any more (its compare-and-set meets another revision, and then another epoch). Where there is no
record, because it is the first owner or the bucket was lost, the parked letters themselves say
which keys are parked; and so they do where a resize handed the record on (it has no epoch), which
may not have known all. An owner whose record was lost meanwhile does not begin with an empty one
either: what it knows and what the letters say goes into the new one. So a record with an epoch is
always whole. It may lack a key of which no letter was stored yet, lost with the bucket: that key's
message is not acked, and is tried again.

A **replay** is asked for by an operator, who writes the key's token into ``replay``. The owner then

1. holds the key's lane, so that no later message of it is handled or stored meanwhile,
2. reads the key's letters, oldest first, and calls the handler for one after the other, with their
   own sequences under the current epoch; a letter is deleted after its call returned,
3. when no letter is left takes the key out of ``parked.<n>`` and lets its lane go on.

So a key's messages come in order however often it was parked. A letter whose calls fail
``max_attempts`` times ends the replay: the key stays parked. A crash, or a drain, leaves the
request where it is; the next owner goes on with the letters that are left. A letter whose call
returned and that was not deleted is handled again, and so is, after the letters, what was handled
before them and is delivered again because its progress was lost: a fenced sink refuses both.
"""

from collections.abc import Callable, Generator
from dataclasses import replace

from ..errors import BadRecord
from ..events import KeyReplayed
from ..model import FailurePolicy, Message, ParkedRecord, decode, encode
from ..naming import parked_key
from ..ports import (
    Command,
    DeleteLetter,
    Done,
    FindParked,
    Handle,
    KeyRead,
    Letters,
    ParkedFound,
    ReadKey,
    ReadLetters,
    Reply,
    WriteKey,
    Written,
)
from .context import Part
from .handoff import RETRY_S
from .ownership import GivenUp, Ownership
from .policies import Desk, letter_token, retry_delay_s, store
from .steps import Pause, Script

LETTERS_AT_ONCE = 100
_LOOK_AGAIN_S = 0.05
_Read = Generator[Command | Pause, Reply, tuple[ParkedRecord | None, int] | None]
_Recalled = Generator[Command | Pause, Reply, ParkedRecord | None]


def claim(desk: Desk, one: Ownership) -> Part:
    """Read ``parked.<n>`` and write this epoch into it; False: to be tried again."""
    read = yield from _read(desk, one)
    if read is None:
        return False
    record, revision = read
    if record is None or not record.epoch:
        record = yield from _recall(desk, one, record)
        if record is None:
            return False
    if record.epoch > one.epoch:
        # Only an owner that came later can have written that; the partition's record will say so.
        yield from desk.context.refresh(one.partition)
        return False
    claimed = replace(record, epoch=one.epoch)
    if _is_parking(desk) or record.keys or record.replay:
        one.knows_parked = yield from _write(desk, one, claimed, revision)
    else:
        one.knows_parked = True
    return one.knows_parked


def change_parked(
    desk: Desk, one: Ownership, change: Callable[[ParkedRecord], ParkedRecord]
) -> Part:
    """Change ``parked.<n>`` as its owner; False: it is not this one's any more."""
    while True:
        read = yield from _read(desk, one)
        if read is None:
            yield Pause(RETRY_S)
            continue
        record, revision = read
        if record is not None and record.epoch > one.epoch:
            yield from desk.context.refresh(one.partition)
            return False
        known = record
        if record is None or record.epoch < one.epoch:  # what was claimed is lost
            known = yield from _recall(desk, one, record)
        if known is not None:
            new = replace(change(known), epoch=one.epoch)
            if new == record or (yield from _write(desk, one, new, revision)):
                return True
        yield Pause(RETRY_S)


def park(desk: Desk, one: Ownership, given_up: GivenUp) -> Script:
    """Write the key down as parked, then store its first message."""

    def change(record: ParkedRecord) -> ParkedRecord:
        return replace(record, keys={given_up.token: given_up.message.seq, **record.keys})

    if given_up.token in one.parked or (yield from change_parked(desk, one, change)):
        yield from store(desk, one, given_up)


def restore(desk: Desk, one: Ownership) -> Script:
    """Write a record anew that was lost."""
    yield from change_parked(desk, one, lambda record: record)


def replay(desk: Desk, one: Ownership, token: str) -> Script:
    """Handle a parked key's letters, then let the key go on."""
    count = 0
    while any(given_up.token == token for given_up in one.given_up.values()) or any(
        letter_token(message) == token for message, _ in one.replayed.values()
    ):
        # The latter: a drain that was called off ended an earlier replay, but not its call.
        yield Pause(_LOOK_AGAIN_S)
    is_parked = False
    while not is_parked:
        reply = yield ReadLetters(
            id=desk.context.steps.take_id(),
            partition=one.partition,
            token=token,
            epoch=one.epoch,
            max_count=LETTERS_AT_ONCE,
        )
        if not isinstance(reply, Letters):
            yield Pause(RETRY_S)
            continue
        if not reply.letters:
            break
        for letter in reply.letters:
            if not (yield from _handle(desk, one, letter.message)):
                is_parked = True
                break
            count += 1
            while not isinstance((yield _delete(desk, letter.letter_seq)), Done):
                yield Pause(RETRY_S)

    def change(record: ParkedRecord) -> ParkedRecord:
        keys = dict(record.keys)
        if not is_parked:
            keys.pop(token, None)
        left = tuple(other for other in record.replay if other != token)
        return replace(record, keys=keys, replay=left)

    if (yield from change_parked(desk, one, change)):
        event = KeyReplayed(partition=one.partition, key=token, count=count, is_parked=is_parked)
        desk.context.tell(event)
        desk.replay_ended(one, token)


def _handle(desk: Desk, one: Ownership, message: Message) -> Part:
    """Call the handler for a letter until it returns; False: it failed too often."""
    config, timing = desk.context.settings.config, desk.context.settings.timing
    while True:
        while not desk.may_call(one):
            yield Pause(_LOOK_AGAIN_S)
        id_ = desk.begin_replayed(one, message)
        if isinstance((yield Handle(messages=(message,), id=id_)), Done):
            return True
        if message.attempt > config.max_attempts:
            return False
        yield Pause(retry_delay_s(timing, message.attempt, message.seq))


def _delete(desk: Desk, letter_seq: int) -> DeleteLetter:
    return DeleteLetter(id=desk.context.steps.take_id(), letter_seq=letter_seq)


def _read(desk: Desk, one: Ownership) -> _Read:
    """Read the record (None: there is none to read) and its revision; None: try again."""
    key = parked_key(one.partition)
    reply = yield ReadKey(id=desk.context.steps.take_id(), key=key)
    if not isinstance(reply, KeyRead):
        return None
    if reply.value is None:
        return None, reply.revision
    try:
        return decode(ParkedRecord, reply.value), reply.revision
    except BadRecord:
        return None, reply.revision


def _recall(desk: Desk, one: Ownership, found: ParkedRecord | None = None) -> _Recalled:
    """Put together what a lost record said; None: to be tried again.

    ``found`` is what an owner before wrote into a bucket made anew, or a resize handed on. The
    letters tell of every key one was stored of, and this owner of those whose first letter is on
    its way.
    """
    keys = {} if found is None else dict(found.keys)
    replay = one.replaying if found is None else (*found.replay, *one.replaying)
    if _is_parking(desk):
        letters = yield FindParked(id=desk.context.steps.take_id(), partition=one.partition)
        if not isinstance(letters, ParkedFound):
            return None
        keys.update(letters.keys)
    keys.update(one.parked)
    return ParkedRecord(keys=keys, replay=tuple(dict.fromkeys(replay)))


def _is_parking(desk: Desk) -> bool:
    return desk.context.settings.config.on_failure is FailurePolicy.PARK


def _write(desk: Desk, one: Ownership, record: ParkedRecord, revision: int) -> Part:
    key = parked_key(one.partition)
    value = encode(record)
    id_ = desk.context.steps.take_id()
    reply = yield WriteKey(id=id_, key=key, value=value, revision=revision)
    if not isinstance(reply, Written):
        return False
    desk.context.note(key, value, reply.revision)
    # What is known by now may be newer than what was written: an operator was faster.
    desk.take_parked(one, desk.context.book.parked.get(one.partition, record))
    return True
