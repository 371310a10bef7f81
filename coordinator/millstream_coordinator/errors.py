"""What can go wrong with a group, as one tree.

GroupError
├── BadName              a group or member name outside its alphabet
├── BadRecord            bytes in the bucket that are no such record
├── ConfigMismatch       the group exists with another configuration
├── GroupTooNew          a newer version of this software made the group's bucket
├── StreamMissing        no such stream on this server
├── StreamUnfit          the stream cannot carry this group
├── ServerUnfit          the server is too old
├── ServerUnreachable    no connection, or no JetStream on it
├── PermissionMissing    the user may not publish or subscribe where the group has to
├── MemberReplaced       another process took this member's name over
├── GroupMissing         no such group on this server
├── MemberMissing        no such member in the group
├── PartitionMissing     the group has no partition of this number
├── LetterMissing        the group has no dead letter of this number or key
├── NotPossible          what an operator asked for does not fit the group as it is
└── Contended            others kept writing what an operator wanted to write
"""

from collections.abc import Sequence

_NAMED = 4
"""So many missing permissions are named in one line."""


class GroupError(Exception):
    """Base of everything a group raises."""


class BadName(GroupError):
    """A name outside ``[A-Za-z0-9_-]{1,64}``."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} name {name!r} is not 1 to 64 of A-Z a-z 0-9 _ -")
        self.kind, self.name = kind, name


class BadRecord(GroupError):
    """Bytes in a group's bucket that cannot be read as what their key says."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"not a {kind}: {reason}")
        self.kind, self.reason = kind, reason


class GroupMissing(GroupError):
    """The group has no bucket on this server."""

    def __init__(self, group: str) -> None:
        super().__init__(f"group {group!r} not found")
        self.group = group


class ConfigMismatch(GroupError):
    """The group is there already, with another configuration; ``wanted`` and ``found`` say what."""

    def __init__(self, group: str, wanted: str, found: str) -> None:
        super().__init__(f"group {group!r} exists with {found}, wanted {wanted}")
        self.group, self.wanted, self.found = group, wanted, found


class GroupTooNew(GroupError):
    """The group's bucket has a layout of a newer version."""

    def __init__(self, group: str, version: int, known: int) -> None:
        super().__init__(
            f"group {group!r} has records of version {version}, this member knows {known}:"
            " it must be updated"
        )
        self.group, self.version, self.known = group, version, known


class StreamMissing(GroupError):
    """The stream is not on this server."""

    def __init__(self, stream: str) -> None:
        super().__init__(f"stream {stream!r} not found")
        self.stream = stream


class StreamUnfit(GroupError):
    """The stream is there and cannot carry the group: retention, subjects or its consumer limit.

    ``stream`` is empty where the group has none, and its bucket cannot be made.
    """

    def __init__(self, stream: str, reason: str) -> None:
        what = f"stream {stream!r}" if stream else "JetStream"
        super().__init__(f"{what} cannot carry the group: {reason}")
        self.stream, self.reason = stream, reason


class ServerUnfit(GroupError):
    """The server answers and lacks what every group needs."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"NATS server {url}: {reason}")
        self.url, self.reason = url, reason


class ServerUnreachable(GroupError):
    """Nobody answers at the URL, or what answers has no JetStream."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"NATS server {url}: {reason}")
        self.url, self.reason = url, reason


class PermissionMissing(GroupError):
    """The user's permissions lack something the group needs; nothing was changed.

    ``group`` None: what was asked is about no single one. ``missing``: what the user may not do,
    such as ``publish to '$JS.API.INFO'``, all of it.
    """

    def __init__(self, group: str | None, missing: Sequence[str]) -> None:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        listed = ", ".join(missing[:_NAMED])
        whose = "" if group is None else f"group {group!r}: "
        super().__init__(f"{whose}no permission to {listed}{more}")
        self.group, self.missing = group, tuple(missing)


class MemberReplaced(GroupError):
    """Another process joined under this member's name; only the newer one goes on."""

    def __init__(self, member: str) -> None:
        super().__init__(f"member {member!r} was taken over by a newer process")
        self.member = member


class MemberMissing(GroupError):
    """The group has no such member now."""

    def __init__(self, group: str, member: str) -> None:
        super().__init__(f"group {group!r} has no member {member!r}")
        self.group, self.member = group, member


class PartitionMissing(GroupError):
    """The group has no partition of this number."""

    def __init__(self, group: str, partition: int, count: int) -> None:
        super().__init__(f"group {group!r} has no partition {partition}: they are 0 to {count - 1}")
        self.group, self.partition, self.count = group, partition, count


class LetterMissing(GroupError):
    """The group has no such dead letter; ``which`` is its number, or ``of key 'a'``."""

    def __init__(self, group: str, which: int | str) -> None:
        super().__init__(f"group {group!r} has no dead letter {which}")
        self.group, self.which = group, which


class NotPossible(GroupError):
    """What an operator asked for does not fit the group as it is; nothing was changed."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"group {group!r}: {reason}")
        self.group, self.reason = group, reason


class Contended(GroupError):
    """Others kept writing the same key; what was asked for did not take place."""

    def __init__(self, group: str, key: str, attempts: int) -> None:
        super().__init__(f"group {group!r}: {key!r} changed {attempts} times while it was written")
        self.group, self.key, self.attempts = group, key, attempts
