"""The group's bucket as this member knows it: newest value and revision of each key.

Filled by the watch and by the member's own writes and reads, whichever is first; an older revision
never replaces a newer one, so the order in which news comes does not matter. Progress
(``done.<member>``) is not kept here: it is written ten times a second by everybody and read only
when a partition changes hands.
"""

from ..errors import BadRecord
from ..model import ConfigRecord, LeaderRecord, MemberRecord, PartitionRecord, decode
from ..naming import CONFIG_KEY, LEADER_KEY, MEMBER_PREFIX, PARTITION_PREFIX


class Book:
    """What is known of the bucket. Read the attributes, change them only through `note`."""

    def __init__(self) -> None:
        self.config: ConfigRecord | None = None
        self.leader: LeaderRecord | None = None
        self.members: dict[str, MemberRecord] = {}
        self.partitions: dict[int, PartitionRecord] = {}
        self._revisions: dict[str, int] = {}

    def revision(self, key: str) -> int:
        """Return the key's newest known revision (a deletion has one too); 0 if none is known."""
        return self._revisions.get(key, 0)

    def note(self, key: str, value: bytes | None, revision: int) -> bool:
        """Take news of a key; False if it is old news or cannot be read.

        A value that cannot be read counts as absent; the next write replaces it.
        """
        if revision <= self._revisions.get(key, -1):
            return False
        self._revisions[key] = revision
        try:
            self._set(key, value)
        except BadRecord:
            self._set(key, None)
            return False
        return True

    def reset(self, key: str) -> None:
        """Forget the key's revision: the server has no trace of it (it ran out, marker and all)."""
        self._revisions.pop(key, None)

    def _set(self, key: str, value: bytes | None) -> None:
        if key == CONFIG_KEY:
            self.config = None if value is None else decode(ConfigRecord, value)
        elif key == LEADER_KEY:
            self.leader = None if value is None else decode(LeaderRecord, value)
        elif key.startswith(MEMBER_PREFIX):
            member = key.removeprefix(MEMBER_PREFIX)
            self.members.pop(member, None)
            if value is not None:
                self.members[member] = decode(MemberRecord, value)
        elif key.startswith(PARTITION_PREFIX):
            number = key.removeprefix(PARTITION_PREFIX)
            if number.isdecimal():
                self.partitions.pop(int(number), None)
                if value is not None:
                    self.partitions[int(number)] = decode(PartitionRecord, value)
