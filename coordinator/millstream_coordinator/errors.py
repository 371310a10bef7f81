"""What can go wrong with a group, as one tree.

GroupError
├── BadName              a group or member name outside its alphabet
├── BadRecord            bytes in the bucket that are no such record
├── ConfigMismatch       the group exists with another configuration
├── StreamMissing        no such stream on this server
├── StreamUnfit          the stream cannot carry this group
├── ServerUnreachable    no connection, or no JetStream on it
└── MemberReplaced       another process took this member's name over
"""


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
    """The group is there already, with another number of partitions, stream or filter."""

    def __init__(self, group: str, wanted: str, found: str) -> None:
        super().__init__(f"group {group!r} exists with {found}, wanted {wanted}")
        self.group, self.wanted, self.found = group, wanted, found


class StreamMissing(GroupError):
    """The stream is not on this server."""

    def __init__(self, stream: str) -> None:
        super().__init__(f"stream {stream!r} not found")
        self.stream = stream


class StreamUnfit(GroupError):
    """The stream is there and cannot carry the group: retention, subjects or its consumer limit."""

    def __init__(self, stream: str, reason: str) -> None:
        super().__init__(f"stream {stream!r} cannot carry the group: {reason}")
        self.stream, self.reason = stream, reason


class ServerUnreachable(GroupError):
    """Nobody answers at the URL, or what answers has no JetStream."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"NATS server {url}: {reason}")
        self.url, self.reason = url, reason


class MemberReplaced(GroupError):
    """Another process joined under this member's name; only the newer one goes on."""

    def __init__(self, member: str) -> None:
        super().__init__(f"member {member!r} was taken over by a newer process")
        self.member = member
