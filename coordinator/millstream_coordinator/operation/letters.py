"""Dead letters and parked keys in an operator's hands: look, replay, drop.

A letter is a message that was given up, in the stream ``MILLSTREAM_DLQ_<group>``: its body, its
headers, and headers that say why, when, after how many attempts. There are two kinds, and two ways
back:

* **Dead letter**: its key went on without it. `replay` publishes it again to its own subject, at
  the end of the stream, so it is handled after everything that is there now. Other groups that read
  the stream skip it (``Millstream-Replay`` names the group it is for). It is deleted when the
  stream has it; should this process die in between, the stream refuses the second copy by its
  ``Nats-Msg-Id`` within the duplicate window. A group's own work queue has no such window: there
  it is handled twice.
* **Parked key**: the message that failed and all later ones of its key wait here, in order. Only
  the key as a whole can be replayed: ``parked.<n>`` asks the partition's owner, which feeds the
  letters into the key's lane under their old sequences, then lets the key go on. `drop` of a parked
  key deletes its letters and then asks for the same, so the key goes on as well. Dropping one
  letter of a parked key by its number leaves the others parked.

A key is given as text, or as the token that the listing shows.
"""

import base64
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, replace as replaced
from typing import Final

from .. import naming
from ..errors import LetterMissing, NotPossible, PartitionMissing
from ..jetstream.api import STREAM_NOT_FOUND, RequestFailed, Stored
from ..jetstream.letters import MESSAGE_GONE, original_headers
from ..model import LetterReason, ParkedRecord
from ..naming import dead_letter, dead_letter_stream, parked_key
from ..partitioning.key import to_token
from ..partitioning.layout import place
from ..ports import Failure
from .admin import Change, Outcome
from .target import Target, side_by_side
from .view import GroupView

REPLAY_ID = "millstream-replay-{group}-{seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message that was given up. ``seq`` is its number among the letters."""

    seq: int
    partition: int
    key: str
    """The key's token."""
    reason: str
    """``dead-letter``, ``park`` or ``skip``."""
    error: str
    attempts: int
    subject: str
    message_seq: int
    """Its sequence in the stream it came from."""
    epoch: int
    given_up_ns: int
    stored_ns: int
    """When its own stream stored it."""
    is_parked: bool
    """Its key is parked: it is replayed with its key only."""
    headers: Mapping[str, str]
    """The message's own."""
    data: bytes

    def as_json(self, *, with_body: bool = False) -> dict[str, object]:
        """The fields by their names; the body as ``data`` (base64), and as ``text`` if UTF-8."""
        names = [it for it in self.__slots__ if it not in ("headers", "data")]
        fields: dict[str, object] = {name: getattr(self, name) for name in names}
        fields["size_bytes"] = len(self.data)
        if with_body:
            fields["headers"] = dict(self.headers)
            fields["data"] = base64.b64encode(self.data).decode("ascii")
            try:
                fields["text"] = self.data.decode()
            except UnicodeDecodeError:
                fields["text"] = None
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Letters, oldest first. ``has_more``: there are others that were asked for too."""

    group: str
    letters: tuple[Letter, ...]
    has_more: bool
    parked: Mapping[int, tuple[str, ...]]
    """Partition → the keys (tokens) that are parked there."""

    def as_json(self) -> dict[str, object]:
        """``{"schema", "group", "has_more", "letters": […], "parked": {"0": ["key", …], …}}``."""
        return {
            "schema": "millstream.coordinator.dlq.ls/1",
            "group": self.group,
            "has_more": self.has_more,
            "letters": [it.as_json() for it in self.letters],
            "parked": {str(number): list(keys) for number, keys in self.parked.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which letters are meant: those with all that is given; nothing given: all."""

    seqs: tuple[int, ...] = ()
    partition: int | None = None
    key: str | None = None

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        if self.seqs and letter.seq not in self.seqs:
            return False
        if self.partition is not None and letter.partition != self.partition:
            return False
        return self.key is None or is_key(self.key, letter.key)


ALL: Final = Choice()


def is_key(text: str, token: str) -> bool:
    """Whether ``text`` is how somebody would name the key of this token."""
    return token in (text, to_token(text.encode()))


async def list_letters(target: Target, choice: Choice = ALL, *, limit: int | None = 100) -> Listing:
    """The first ``limit`` letters meant (None: all). No letter yet: an empty listing.

    Raises GroupMissing, PartitionMissing, ServerUnreachable.
    """
    view = await target.view()
    letters: list[Letter] = []
    has_more = False
    async for letter in _read(target, view, choice):
        has_more = len(letters) == limit
        if has_more:
            break
        letters.append(letter)
    if not letters:
        _check_partition(target, view, choice)
    parked = {it: tuple(sorted(record.keys)) for it, record in view.parked.items() if record.keys}
    return Listing(group=target.group, letters=tuple(letters), has_more=has_more, parked=parked)


async def read_letter(target: Target, seq: int) -> Letter:
    """One letter by its number. Raises LetterMissing."""
    view = await target.view()
    found = await _stored(target, {"seq": seq})
    if found is None:
        raise LetterMissing(target.group, seq)
    return _letter(found, view)


async def replay(target: Target, choice: Choice, *, dry_run: bool = False) -> Outcome:
    """Have the letters handled again: see this module's text for how.

    Raises LetterMissing, PartitionMissing, and NotPossible for single letters of a parked key and
    for a message that its stream does not take back.
    """
    view = await target.view()
    letters = await _chosen(target, view, choice)
    parked = _parked_keys(letters)
    if choice.seqs and parked:
        (number, token), *_ = parked
        raise NotPossible(
            target.group,
            f"key {token!r} of partition {number} is parked: replay the key, not single letters",
        )
    changes = [
        Change(what=f"key {token} of partition {number}", before="parked", after="replayed")
        for number, token in parked
    ]
    by_subject: dict[str, list[Letter]] = {}
    for letter in letters:
        if not letter.is_parked:
            by_subject.setdefault(letter.subject, []).append(letter)
            changes.append(_change(letter, "published again"))
    await _check_may(target, letters, parked)
    if not dry_run:
        # In order per subject, which is in order per key; the subjects side by side.
        await side_by_side(_publish(target, view, it) for it in by_subject.values())
        await _ask_for_replay(target, parked)
    return Outcome(
        group=target.group, operation="dlq.replay", changes=tuple(changes), is_dry_run=dry_run
    )


async def drop(target: Target, choice: Choice, *, dry_run: bool = False) -> Outcome:
    """Delete the letters for good. A parked key that is dropped as a whole goes on afterwards.

    Raises LetterMissing, PartitionMissing.
    """
    view = await target.view()
    letters = await _chosen(target, view, choice)
    changes = [_change(letter, "dropped") for letter in letters]
    parked = [] if choice.seqs else _parked_keys(letters)
    await _check_may(target, letters, parked)
    if not dry_run:
        await side_by_side(_delete(target, it) for it in letters)
        await _ask_for_replay(target, parked)
    changes += [
        Change(what=f"key {token} of partition {number}", before="parked", after="goes on")
        for number, token in parked
    ]
    return Outcome(
        group=target.group, operation="dlq.drop", changes=tuple(changes), is_dry_run=dry_run
    )


def _change(letter: Letter, after: str) -> Change:
    what = f"letter {letter.seq} (key {letter.key}, message {letter.message_seq})"
    return Change(what=what, before=letter.reason, after=after)


def _parked_keys(letters: Iterable[Letter]) -> list[tuple[int, str]]:
    return sorted({(it.partition, it.key) for it in letters if it.is_parked})


async def _chosen(target: Target, view: GroupView, choice: Choice) -> list[Letter]:
    """All letters meant. Raises LetterMissing, PartitionMissing where what was named is not there.

    Not for a partition without letters, of which the group has one of that number.
    """
    letters = [letter async for letter in _read(target, view, choice)]
    if not letters:
        _check_partition(target, view, choice)
    missing = set(choice.seqs) - {it.seq for it in letters}
    if missing:
        raise LetterMissing(target.group, min(missing))
    if choice.key is not None and not letters:
        raise LetterMissing(target.group, f"of key {choice.key!r}")
    return letters


def _check_partition(target: Target, view: GroupView, choice: Choice) -> None:
    """A partition that is named is there; for where no letter is: those of before a merge stay."""
    if choice.partition is not None and choice.partition not in range(view.config.active):
        raise PartitionMissing(target.group, choice.partition, view.config.active)


async def _check_may(
    target: Target, letters: Collection[Letter], parked: Iterable[tuple[int, str]]
) -> None:
    """Whether letters may be deleted and their partitions' owners asked."""
    calls = [f"STREAM.MSG.DELETE.{dead_letter_stream(target.group)}"] if letters else []
    await target.check_may(calls=calls, keys=sorted({parked_key(number) for number, _ in parked}))


async def _ask_for_replay(target: Target, keys: Collection[tuple[int, str]]) -> None:
    for number in sorted({number for number, _ in keys}):
        tokens = {token for partition, token in keys if partition == number}

        def ask(record: ParkedRecord, tokens: Collection[str] = tokens) -> ParkedRecord:
            asked = {*record.replay, *tokens} & set(record.keys)
            return replaced(record, replay=tuple(sorted(asked)))

        await target.update(
            parked_key(number), ParkedRecord(), ask, kind=ParkedRecord, dry_run=False
        )


async def _publish(target: Target, view: GroupView, letters: Iterable[Letter]) -> None:
    for letter in letters:
        where = place(view.config, letter.partition)
        # Headers that are the server's would mean once more what they meant the first time.
        own = {it: value for it, value in letter.headers.items() if not it.startswith("Nats-")}
        headers = {
            **own,
            naming.REPLAY: target.group,
            "Nats-Msg-Id": REPLAY_ID.format(group=target.group, seq=letter.seq),
        }
        if where is not None:
            headers["Nats-Expected-Stream"] = where.stream
        with target.errors():
            try:
                await target.api.publish(letter.subject, letter.data, headers)
            except RequestFailed as error:
                if error.reason is Failure.NO_RESPONDERS:
                    reason = (
                        f"no stream takes {letter.subject!r}, where letter {letter.seq} is from"
                    )
                    raise NotPossible(target.group, reason) from error
                if error.code:
                    reason = f"letter {letter.seq} is not taken back: {error.detail}"
                    raise NotPossible(target.group, reason) from error
                raise
        await _delete(target, letter)


async def _delete(target: Target, letter: Letter) -> None:
    """Delete a letter; one that is not there counts as deleted."""
    with target.errors():
        try:
            stream = dead_letter_stream(target.group)
            body = {"seq": letter.seq, "no_erase": True}
            await target.api.call(f"STREAM.MSG.DELETE.{stream}", body)
        except RequestFailed as error:
            if error.code not in MESSAGE_GONE:
                raise


async def _read(target: Target, view: GroupView, choice: Choice) -> AsyncIterator[Letter]:
    """The letters meant, oldest first, one request each."""
    partition = "*" if choice.partition is None else choice.partition
    wanted = {"next_by_subj": dead_letter(target.group, partition, ">")}
    seq = min(choice.seqs, default=1)
    last = max(choice.seqs, default=None)
    while last is None or seq <= last:
        found = await _stored(target, {"seq": seq, **wanted})
        if found is None:
            return
        letter = _letter(found, view)
        if choice.takes(letter):
            yield letter
        seq = letter.seq + 1


async def _stored(target: Target, wanted: Mapping[str, object]) -> Stored | None:
    """A message of the letters' stream; None when there is none, or no such stream."""
    with target.errors():
        try:
            return await target.api.stored(dead_letter_stream(target.group), wanted)
        except RequestFailed as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            return None


def _letter(stored: Stored, view: GroupView) -> Letter:
    """Read a stored letter; what another program left out of its headers is 0 or empty."""
    headers = stored.headers
    _, _, _, number, token = stored.subject.split(".", 4)
    partition = int(number) if number.isdecimal() else -1
    parked = view.parked.get(partition)
    return Letter(
        seq=stored.seq,
        partition=partition,
        key=token,
        reason=headers.get(naming.LETTER_REASON, LetterReason.DEAD_LETTER),
        error=headers.get(naming.LETTER_ERROR, ""),
        attempts=_number(headers, naming.LETTER_ATTEMPTS),
        subject=headers.get(naming.LETTER_SUBJECT, ""),
        message_seq=_number(headers, naming.LETTER_SEQ),
        epoch=_number(headers, naming.LETTER_EPOCH),
        given_up_ns=_number(headers, naming.LETTER_TIME),
        stored_ns=_number(headers, naming.LETTER_STORED),
        is_parked=parked is not None and token in parked.keys,
        headers=original_headers(headers),
        data=stored.data,
    )


def _number(headers: Mapping[str, str], name: str) -> int:
    text = headers.get(name, "")
    return int(text) if text.isdecimal() else 0
