"""A group's dead letters in memory: stored at most once and fenced, read, deleted.

They are kept by `Message.mark`, so a resize leaves them where they are.
"""

from dataclasses import dataclass, replace

from ..model import LetterReason, Message
from ..ports import (
    DeleteLetter,
    Done,
    FindParked,
    Letter,
    Letters,
    ParkedFound,
    ReadLetters,
    Reply,
    Stale,
    StoreLetter,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLetter:
    """A dead letter or parked message."""

    seq: int
    """Its sequence among the letters."""
    message: Message
    """As it was delivered; ``epoch`` is that of the owner who stored it."""
    token: str
    """Its key's token (what the subject ends in)."""
    reason: LetterReason
    error: str
    attempts: int
    stored_ns: int


class MemoryLetters:
    """The letters of one group, oldest first."""

    def __init__(self) -> None:
        self._letters: dict[int, MemoryLetter] = {}
        self._last_seq = 0

    def all(self) -> list[MemoryLetter]:
        """Return every letter that is there."""
        return list(self._letters.values())

    def execute(
        self, command: StoreLetter | ReadLetters | FindParked | DeleteLetter, partitions: int
    ) -> Reply:
        """Carry out a command of a group that began with so many partitions."""
        match command:
            case StoreLetter():
                return self._store(command)
            case ReadLetters():
                return self._read(command, command.partition % partitions)
            case FindParked():
                return self._find_parked(command, command.partition % partitions)
            case DeleteLetter():
                self._letters.pop(command.letter_seq, None)
                return Done(id=command.id)

    def _of_key(self, mark: int, token: str) -> list[MemoryLetter]:
        return [
            one for one in self._letters.values() if one.message.mark == mark and one.token == token
        ]

    def _store(self, command: StoreLetter) -> Reply:
        message = command.message
        before = self._of_key(message.mark, command.token)
        if before and before[-1].message.epoch > message.epoch:
            return Stale(id=command.id, seen_epoch=before[-1].message.epoch)
        if not before or before[-1].message.seq < message.seq:
            self._last_seq += 1
            self._letters[self._last_seq] = MemoryLetter(
                seq=self._last_seq,
                message=replace(message),
                token=command.token,
                reason=command.reason,
                error=command.error,
                attempts=command.attempts,
                stored_ns=command.stored_ns,
            )
        return Done(id=command.id)

    def _find_parked(self, command: FindParked, mark: int) -> Reply:
        keys: dict[str, int] = {}
        for one in self._letters.values():
            if one.message.mark == mark and one.reason is LetterReason.PARK:
                keys.setdefault(one.token, one.message.seq)
        return ParkedFound(id=command.id, keys=keys)

    def _read(self, command: ReadLetters, mark: int) -> Reply:
        found = self._of_key(mark, command.token)[: command.max_count]
        letters = tuple(
            Letter(
                one.seq,
                replace(
                    one.message,
                    partition=command.partition,
                    epoch=command.epoch,
                    num_delivered=1,
                    reply="",
                    consumer_seq=0,
                    attempt=1,
                ),
            )
            for one in found
        )
        return Letters(id=command.id, letters=letters)
