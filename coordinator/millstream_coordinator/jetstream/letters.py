"""The group's dead letters and parked messages: stored at most once and fenced, read, deleted.

A letter is an effect like any other, and is judged as a fenced sink judges: what counts is the last
letter on the subject of its key. Where that one is of a higher epoch the writer is stale; where it
is of the same or a later message, this letter is there already. Anything else is published with the
sequence that was seen as the expected one, so that judging and writing are one step.

The subject has the message's mark in it, not its partition: a resize leaves letters where they are.

**Headers.** A letter carries the message's own and those of `naming.LETTER_HEADERS`. Stored
messages keep headers that mean something to the server (``Nats-Msg-Id``, ``Nats-Expected-…``,
``Nats-TTL``, …), and on a second publish they would mean it again; those, and what looks like a
letter's own, travel as ``Millstream-Header-<name>`` and come back under their names.
"""

from collections.abc import Mapping
from typing import Any

from .. import naming
from ..model import FailurePolicy, LetterReason, MemberSettings, Message
from ..partitioning.key import KeyRule
from ..ports import (
    DeleteLetter,
    Done,
    Failure,
    FindParked,
    Letter,
    Letters as LettersRead,
    ParkedFound,
    ReadLetters,
    Reply,
    Stale,
    StoreLetter,
)
from .api import (
    MESSAGE_NOT_FOUND,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
    Stored,
)
from .streams import Streams

MESSAGE_GONE = (MESSAGE_NOT_FOUND, 10057)
"""What a server says that is to delete a message which is not there."""
ERROR_MAX = 500
"""So many characters of an error's text are kept."""
CONFLICTS_MAX = 10
"""A key has one owner: that others write its letters as well ends after one or two rounds."""
KEPT_PREFIX = "Millstream-Header-"


def letters_config(group: str, num_replicas: int) -> dict[str, Any]:
    """Return the body of STREAM.CREATE for the stream of a group's letters."""
    return {
        "name": naming.dead_letter_stream(group),
        "subjects": [naming.dead_letter(group, "*", ">")],
        "retention": "limits",
        "storage": "file",
        "num_replicas": num_replicas,
        "allow_direct": True,
    }


def keep_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a message's headers as its letter carries them."""
    return {
        f"{KEPT_PREFIX}{name}" if _is_special(name) else name: headers[name] for name in headers
    }


def original_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a message's own headers from those of its letter."""
    return {
        name.removeprefix(KEPT_PREFIX): value
        for name, value in headers.items()
        if name.startswith(KEPT_PREFIX) or not _is_special(name)
    }


def _is_special(name: str) -> bool:
    return name.startswith(("Nats-", KEPT_PREFIX)) or name in naming.LETTER_HEADERS


class Letters:
    """The letters of one group."""

    def __init__(
        self, api: Api, settings: MemberSettings, rule: KeyRule | None, streams: Streams
    ) -> None:
        self.stream = naming.dead_letter_stream(settings.group)
        self._api = api
        self._settings = settings
        self._rule = rule
        self._streams = streams

    async def prepare(self) -> None:
        """Make the stream if the group's policy has a use for it."""
        config = self._settings.config
        if config.stream is not None and config.on_failure is not FailurePolicy.RETRY:
            await self._make()

    async def store(self, command: StoreLetter) -> Reply:
        """Store a message as a letter, unless it is there or its owner is stale."""
        message = command.message
        subject = naming.dead_letter(self._settings.group, message.mark, command.token)
        headers = {
            **keep_headers(message.headers),
            naming.LETTER_SUBJECT: message.subject,
            naming.LETTER_SEQ: str(message.seq),
            naming.LETTER_EPOCH: str(message.epoch),
            naming.LETTER_ERROR: command.error[:ERROR_MAX],
            naming.LETTER_ATTEMPTS: str(command.attempts),
            naming.LETTER_REASON: command.reason.value,
            naming.LETTER_TIME: str(command.stored_ns),
            naming.LETTER_STORED: str(message.timestamp_ns),
        }
        for _ in range(CONFLICTS_MAX):
            last, written = await self._last(subject)
            if int(last.get(naming.LETTER_EPOCH, 0)) > message.epoch:
                return Stale(id=command.id, seen_epoch=int(last[naming.LETTER_EPOCH]))
            if int(last.get(naming.LETTER_SEQ, 0)) >= message.seq:
                return Done(id=command.id)
            try:
                await self._api.publish(subject, message.data, headers, expected=written)
            except RequestFailed as error:
                if error.code not in WRONG_LAST_SEQUENCE:
                    raise
            else:
                return Done(id=command.id)
        raise RequestFailed(Failure.REFUSED, f"{subject} is written by others all the time")

    async def read(self, command: ReadLetters) -> Reply:
        """Read the oldest letters of a key."""
        mark = command.partition % self._settings.config.partitions
        subject = naming.dead_letter(self._settings.group, mark, command.token)
        letters: list[Letter] = []
        after = 0
        while len(letters) < command.max_count:
            try:
                found = await self._next(subject, after + 1)
            except RequestFailed as error:
                if error.code != STREAM_NOT_FOUND:
                    raise
                break
            if found is None:
                break
            after = found.seq
            letters.append(Letter(after, self._message(command, found)))
        return LettersRead(id=command.id, letters=tuple(letters))

    async def find_parked(self, command: FindParked) -> Reply:
        """Find the keys with parked letters: the oldest letter of each key says why it is there."""
        mark = command.partition % self._settings.config.partitions
        prefix = naming.dead_letter(self._settings.group, mark, "")
        keys: dict[str, int] = {}
        try:
            for subject in await self._subjects(f"{prefix}*"):
                found = await self._next(subject, 1)
                if found is None:
                    continue
                if found.headers.get(naming.LETTER_REASON) == LetterReason.PARK:
                    keys[subject.removeprefix(prefix)] = int(found.headers[naming.LETTER_SEQ])
        except RequestFailed as error:
            if error.code != STREAM_NOT_FOUND:
                raise
        return ParkedFound(id=command.id, keys=keys)

    async def _subjects(self, pattern: str) -> list[str]:
        found: list[str] = []
        while True:
            wanted = {"subjects_filter": pattern, "offset": len(found)}
            answer = await self._api.call(f"STREAM.INFO.{self.stream}", wanted)
            page = list(answer["state"].get("subjects") or ())
            if not page or page[0] in found:
                return found
            found += page

    async def delete(self, command: DeleteLetter) -> Reply:
        """Delete a letter, if it is there."""
        try:
            await self._api.call(
                f"STREAM.MSG.DELETE.{self.stream}", {"seq": command.letter_seq, "no_erase": True}
            )
        except RequestFailed as error:
            if error.code not in (*MESSAGE_GONE, STREAM_NOT_FOUND):
                raise
        return Done(id=command.id)

    async def _last(self, subject: str) -> tuple[dict[str, str], int]:
        """Read the headers and the sequence of the last letter; nothing and 0: there is none."""
        try:
            found = await self._api.last(self.stream, subject)
        except RequestFailed as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            await self._make()
            found = None
        return ({}, 0) if found is None else (found.headers, found.seq)

    async def _next(self, subject: str, seq: int) -> Stored | None:
        """Read the first letter from ``seq`` on; None: there is none."""
        return await self._api.stored(self.stream, {"seq": seq, "next_by_subj": subject})

    async def _make(self) -> None:
        config = letters_config(self._settings.group, self._streams.num_replicas)
        try:
            await self._api.call(f"STREAM.CREATE.{self.stream}", config)
        except RequestFailed as error:
            if error.code != STREAM_NAME_IN_USE:
                raise

    def _message(self, command: ReadLetters, stored: Stored) -> Message:
        assert self._rule is not None
        headers, data = stored.headers, stored.data
        own = original_headers(headers)
        subject = headers[naming.LETTER_SUBJECT]
        finest = self._rule.partition_of(subject, max(self._rule.finer, default=None))
        return Message(
            subject=subject,
            data=data,
            headers=own,
            key=self._rule.key_of(subject, own, data),
            partition=command.partition,
            seq=int(headers[naming.LETTER_SEQ]),
            epoch=command.epoch,
            timestamp_ns=int(headers.get(naming.LETTER_STORED, 0)),
            mark=command.partition % self._settings.config.partitions,
            finest=command.partition if finest is None else finest,
        )
