"""Where the other side has the place at which a partition is handled up to here. Pure.

Names used throughout: a **record** is a message of the stream that came from Kafka, a **native**
one was published straight to NATS. ``back`` is the offset at which the way back wrote a native
message to Kafka; None: it has not. Sequences and offsets of records rise together, and so do
sequences and ``back`` of natives, because either bridge keeps the order it reads. So on either side
what is handled of each kind is a beginning of it, and four numbers say all.
"""

from typing import NamedTuple


class Edge(NamedTuple):
    """One kind of message at the edge of what is handled: the last handled, the first that is not.

    Each is (sequence, offset), None where there is none; the offset of a native message that is
    not back in Kafka is None.
    """

    last: tuple[int, int | None] | None
    first: tuple[int, int | None] | None


class Place(NamedTuple):
    """A place on the other side. ``obstacle`` says why it is not exact; None: it is."""

    at: int
    obstacle: str | None = None


def in_stream(records: Edge, natives: Edge, end_seq: int) -> Place:
    """The first sequence that is not handled; ``end_seq`` is that of the next message to come."""
    open_seqs = [edge.first[0] for edge in (records, natives) if edge.first is not None]
    handled = [edge.last[0] for edge in (records, natives) if edge.last is not None]
    at = min(open_seqs, default=end_seq)
    last = max(handled, default=0)
    if last < at:
        return Place(at)
    who = "message published straight to NATS"
    if records.first is not None and records.first[0] == at:
        who = f"record of offset {records.first[1]}"
    return Place(
        at,
        f"the {who} at sequence {at} is not handled, and sequence {last} behind it is:"
        " let the group catch up first",
    )


def in_topic(records: Edge, natives: Edge, end_offset: int) -> Place:
    """The first offset that is not handled; ``end_offset`` is where all is handled.

    ``end_offset`` is the first offset that the stream does not hold: the end of what was moved, or
    the topic's end where everything behind that came back from NATS.
    """
    if natives.first is not None and natives.first[1] is None:
        return Place(
            end_offset,
            f"the message published straight to NATS at sequence {natives.first[0]} is not in"
            " Kafka yet: let the way back catch up first (--bring-back)",
        )
    if natives.last is not None and natives.last[1] is None:
        return Place(
            end_offset,
            f"the message published straight to NATS at sequence {natives.last[0]} is handled and"
            " not in Kafka yet, where it would be handled again: let the way back catch up first"
            " (--bring-back)",
        )
    opened = [edge.first[1] for edge in (records, natives) if edge.first is not None]
    handled = [edge.last[1] for edge in (records, natives) if edge.last is not None]
    at = min((it for it in opened if it is not None), default=end_offset)
    at = min(at, end_offset)
    last = max((it for it in handled if it is not None), default=-1)
    if last < at:
        return Place(at)
    return Place(
        at,
        f"offset {at} is not handled, and offset {last} behind it is: let the group catch up first",
    )


def absent_obstacle(stream: str) -> str:
    """A partition that the bridge has not met yet, so that there is nowhere to go on in NATS."""
    return (
        f"stream {stream} is not there yet; `millstream bridge run` makes it, also where the"
        " partition is empty: is the bridge running?"
    )


def letter_obstacle(seq: int, remedy: str) -> str:
    """A dead letter that was published again for the group, which has not handled it."""
    return (
        f"the dead letter published again at sequence {seq} is not handled, and would be missed:"
        f" {remedy}"
    )


def removed_obstacle(offset: int, what: str) -> str:
    """A record that Kafka has and the stream had, and that may not be handled."""
    return (
        "the stream's limits (max_age, max_bytes, a tombstone's lifetime) have removed the record"
        f" of offset {offset}, which Kafka still has, {what}"
    )


def return_obstacle(seq: int | None, offset: int) -> str:
    """A message that came back to Kafka, is not handled there, and is not in the stream any more.

    ``seq`` is None where it came from another stream, which the route had before.
    """
    where = "in another stream than the route's" if seq is None else f"at sequence {seq}"
    return (
        f"the message published straight to NATS {where} is not in the stream, and back in Kafka at"
        f" offset {offset}, before the group handled it: let it catch up in Kafka first"
    )


def replay_obstacle(seq: int, offset: int, *, is_handled: bool, is_behind: bool) -> str | None:
    """Why a record that was parked and replayed, and so is out of its order, is in the way.

    ``is_behind``: whether it is behind the place on the other side.
    """
    if is_handled is not is_behind:
        return None
    what = "handled, and would be again" if is_handled else "not handled, and would be missed"
    return f"the record of offset {offset}, replayed at sequence {seq}, is {what}"
