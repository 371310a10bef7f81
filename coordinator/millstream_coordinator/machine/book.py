"""The group's bucket as this member knows it: newest value and revision of each key.

Filled by the watch and by the member's own writes and reads, whichever is first; an older revision
never replaces a newer one, so the order in which news comes does not matter. Progress
(``done.<member>``) is not kept here: it is written ten times a second by everybody and read only
when a partition changes hands.

A partition's record with epoch 0 is a **place**: nobody's yet, and absent. It is written so that
the record itself, compare-and-set on it, can get into no other bucket (`Leader`).

A value that cannot be read counts as absent, and the next write replaces it. Not so one whose
``version`` is above ours: it is absent too, but ``too_new`` says so, and nobody may write over it.
"""

import msgspec

from ..errors import BadRecord
from ..model import (
    ConfigRecord,
    ControlRecord,
    LeaderRecord,
    MemberRecord,
    ParkedRecord,
    PartitionRecord,
    decode,
)
from ..naming import (
    CONFIG_KEY,
    CONTROL_KEY,
    LEADER_KEY,
    MEMBER_PREFIX,
    PARKED_PREFIX,
    PARTITION_PREFIX,
)

VERSION = 1
"""Of the records this code reads and writes."""


class _Versioned(msgspec.Struct):
    version: int = 1


class Book:
    """What is known of the bucket. Read the attributes, change them only through `note`."""

    def __init__(self) -> None:
        self.config: ConfigRecord | None = None
        self.control = ControlRecord()
        self.leader: LeaderRecord | None = None
        self.members: dict[str, MemberRecord] = {}
        self.partitions: dict[int, PartitionRecord] = {}
        self.places: set[int] = set()
        """Partitions that have a place and no record."""
        self.parked: dict[int, ParkedRecord] = {}
        self.too_new: dict[str, int] = {}
        """Keys whose values a newer version wrote → that version."""
        self.last_revision = 0
        """The highest of any key."""
        self._revisions: dict[str, int] = {}

    def revision(self, key: str) -> int:
        """Return the key's newest known revision (a deletion has one too); 0 if none is known."""
        return self._revisions.get(key, 0)

    def note(self, key: str, value: bytes | None, revision: int) -> bool:
        """Take news of a key; False if it is old news."""
        if revision <= self._revisions.get(key, -1):
            return False
        self._revisions[key] = revision
        self.last_revision = max(self.last_revision, revision)
        self.too_new.pop(key, None)
        version = 1 if value is None else version_of(value)
        if version > VERSION:
            self.too_new[key] = version
            self._set(key, None)
            return True
        try:
            self._set(key, value)
        except BadRecord:
            self._set(key, None)
        return True

    def reset(self, key: str) -> None:
        """Forget the key's revision: the server has no trace of it (it ran out, marker and all)."""
        self._revisions.pop(key, None)

    def _set(self, key: str, value: bytes | None) -> None:
        if key == CONFIG_KEY:
            self.config = None if value is None else decode(ConfigRecord, value)
        elif key == CONTROL_KEY:
            self.control = ControlRecord()
            if value is not None:
                self.control = decode(ControlRecord, value)
        elif key == LEADER_KEY:
            self.leader = None if value is None else decode(LeaderRecord, value)
        elif key.startswith(MEMBER_PREFIX):
            member = key.removeprefix(MEMBER_PREFIX)
            self.members.pop(member, None)
            if value is not None:
                self.members[member] = decode(MemberRecord, value)
        elif (number := numbered(key, PARTITION_PREFIX)) is not None:
            self.partitions.pop(number, None)
            self.places.discard(number)
            if value is not None:
                record = decode(PartitionRecord, value)
                if record.is_place:
                    self.places.add(number)
                else:
                    self.partitions[number] = record
        elif (number := numbered(key, PARKED_PREFIX)) is not None:
            self.parked.pop(number, None)
            if value is not None:
                self.parked[number] = decode(ParkedRecord, value)


def numbered(key: str, prefix: str) -> int | None:
    """Return the number a key ends with, after this prefix; None: it is another kind of key."""
    number = key.removeprefix(prefix)
    return int(number) if number != key and number.isdecimal() else None


def version_of(value: bytes) -> int:
    """Return the version a record says it has; 1 where it says none or is no record at all."""
    try:
        return msgspec.json.decode(value, type=_Versioned).version
    except msgspec.DecodeError:
        return 1
