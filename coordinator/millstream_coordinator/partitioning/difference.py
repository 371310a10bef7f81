"""A stream as it is wanted beside the one on the server: what differs, what can be done. Pure.

**What may change** (`differences`): limits and replicas can be updated. What decides where a key's
messages are cannot, once there are messages: what is stored keeps its old subjects, and a key's
order would be spread over two partitions. Retention and storage the server itself does not change
(nats-server 2.15.1). What a description says nothing of stays as it was found.

**Where a source began** is no difference, and is taken out once it has begun: a nats-server that is
killed (not stopped) goes back there if nothing is left in the queue (seen on 2.12.8 and 2.15.1).

**Servers differ** (`ServerTraits`), and older ones take fields they do not know and drop them
(`dropped`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ..model import Retention

CONSUMERS_MAX: Final = 1000
"""What a stream takes where its own limit says nothing (nats-server 2.15.1, error 10026)."""
LEVELS_KEY: Final = "millstream.levels"
PARTITIONER_KEY: Final = "millstream.partitioner"
UNLIMITED: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTraits:
    """What differs between the servers that can carry a group (all seen, 2.10.26 to 2.15.1)."""

    has_zero_window: bool = True
    """A sourced stream can be without a window of duplicates (2.14)."""
    changes_max_consumers: bool = True
    """An update may do so (2.12)."""
    keeps_first_seq: bool = True
    """A stream with ``first_seq`` survives a restart whatever is left in it (2.11)."""
    default_max_consumers: int | None = CONSUMERS_MAX
    """What -1 means (2.15; none before)."""

    @classmethod
    def of(cls, major: int, minor: int) -> "ServerTraits":
        """The traits of a version; of one that says 0.0, the newest."""
        version = (major, minor)
        if version == (0, 0):
            return cls()
        return cls(
            has_zero_window=version >= (2, 14),
            changes_max_consumers=version >= (2, 12),
            keeps_first_seq=version >= (2, 11),
            default_max_consumers=CONSUMERS_MAX if version >= (2, 15) else None,
        )


NEWEST: Final = ServerTraits()


class Change(StrEnum):
    """What can be done about a difference."""

    UPDATE = "update"
    REPLACE = "replace"
    """Nothing, on the stream that is there: it takes a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field of something on the server that is not as described; ``str`` is its one line."""

    field: str
    found: object
    wanted: object
    change: Change
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        how = "can be updated" if self.change is Change.UPDATE else "cannot be changed"
        found, wanted = _text(self.field, self.found), _text(self.field, self.wanted)
        return f"{self.field} is {found}, wanted {wanted}, {how}{why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedStream:
    """A stream as described. ``needed_consumers`` is what its groups need of ``max_consumers``."""

    name: str
    config: Mapping[str, Any]
    needed_consumers: int = 0
    source: str | None = None
    """The origin of a group's own stream."""


_KEPT_SUBJECTS = "what is stored keeps its subjects, so a key would be in two partitions at once"
_NANOSECONDS = ("max_age", "duplicate_window")
_REPLACED = {
    "retention": "the server does not change to or from a work queue",
    "storage": "the server does not move a stream between file and memory",
}
_STARTS = ("opt_start_seq", "opt_start_time")
_STARTS_AGAIN = "a server that is killed while the queue is empty would begin there again"
_LOWERED = ("max_age", "max_bytes", "max_msgs")
_WHERE_KEYS_ARE = ("subject_transform", "sources", LEVELS_KEY, PARTITIONER_KEY)


def differences(
    wanted: WantedStream,
    found: Mapping[str, Any],
    *,
    messages: int = 0,
    sourced: int = 0,
    server: ServerTraits = NEWEST,
) -> tuple[Difference, ...]:
    """Compare a described stream with its configuration on the server.

    It has ``messages``, and has been sourced up to the origin's sequence ``sourced``.
    """
    fields: list[Difference] = []
    for state in ("sealed", "mirror"):
        if found.get(state):
            reason = "nothing can be written to it"
            fields.append(_difference(state, found[state], None, Change.REPLACE, reason))
    if found.get("no_ack"):
        reason = "producers would not learn what was stored"
        fields.append(_difference("no_ack", True, False, Change.UPDATE, reason))
    limit = found.get("max_consumers", UNLIMITED)
    room = limit if limit > 0 else server.default_max_consumers
    if room is not None and room < wanted.needed_consumers:
        reason = f"its groups need {wanted.needed_consumers}"
        asked = wanted.config["max_consumers"]
        change = Change.UPDATE
        if not server.changes_max_consumers:
            change, reason = Change.REPLACE, f"{reason}, and servers before 2.12 do not change it"
        fields.append(_difference("max_consumers", limit, asked, change, reason))
    if start := sourced and start_of(found):
        fields.append(_difference("start", start, None, Change.UPDATE, _STARTS_AGAIN))
    for field, value in _compared(wanted.config).items():
        there = _compared(found).get(field, _DEFAULTS.get(field))
        if there != value:
            fields.append(_judge(field, there, value, messages))
    return tuple(fields)


def start_of(config: Mapping[str, Any]) -> str:
    """Where a stream's source is told to begin; "" if it is not."""
    for source in config.get("sources") or []:
        for name in _STARTS:
            if source.get(name):
                return str(source[name])
    return ""


def begun(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the place where its source began."""
    sources = [
        {name: value for name, value in source.items() if name not in _STARTS}
        for source in config["sources"]
    ]
    return {**config, "sources": sources}


def updated(wanted: WantedStream, found: Mapping[str, Any], *, sourced: int = 0) -> dict[str, Any]:
    """The configuration for ``STREAM.UPDATE``: what was found, with what the description says."""
    config = {**found, **wanted.config}
    config["metadata"] = {**(found.get("metadata") or {}), **wanted.config.get("metadata", {})}
    limit = found.get("max_consumers", UNLIMITED)
    if (limit if limit > 0 else CONSUMERS_MAX) >= wanted.needed_consumers:
        config["max_consumers"] = limit
    if found.get("sources") and "sources" in wanted.config:
        config["sources"] = (begun(found) if sourced else found)["sources"]
    config["first_seq"] = found.get("first_seq", 0)
    config.pop("no_ack", None)
    return config


def dropped(asked: Mapping[str, Any], echoed: Mapping[str, Any]) -> list[str]:
    """Fields that a server did not take over: one it is too old for is ignored without a word."""
    mine, theirs = _compared(asked), _compared(echoed)
    names = [name for name, value in mine.items() if theirs.get(name, _DEFAULTS.get(name)) != value]
    if "max_consumers" in asked and asked["max_consumers"] != echoed.get("max_consumers"):
        names.append("max_consumers")
    return names


_DEFAULTS: Mapping[str, object] = {
    "max_age": 0,
    "duplicate_window": 0,
    "compression": "none",
    "allow_direct": False,
    "num_replicas": 1,
}


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are compared one to one, in a form that does not depend on their order."""
    fields = {
        name: value
        for name, value in config.items()
        if name not in ("name", "max_consumers", "first_seq", "metadata", "subjects", "sources")
    }
    fields["subjects"] = sorted(config.get("subjects") or [])
    if config.get("sources"):
        # Where a source began counts only when the stream is made.
        fields["sources"] = [
            (
                source["name"],
                [(it["src"], it["dest"]) for it in source.get("subject_transforms", [])],
            )
            for source in config["sources"]
        ]
    for name in (LEVELS_KEY, PARTITIONER_KEY):
        if name in (config.get("metadata") or {}):
            fields[name] = config["metadata"][name]
    return fields


def _judge(field: str, found: object, wanted: object, messages: int) -> Difference:
    if field in _WHERE_KEYS_ARE:
        if field in (LEVELS_KEY, PARTITIONER_KEY) and found is None:
            return _difference(field, found, wanted, Change.UPDATE, "nothing says so yet")
        if field == "sources":
            reason = "what it holds came by the other; a resize makes a new generation"
            return _difference(field, found, wanted, Change.REPLACE, reason)
        if messages:
            return _difference(field, found, wanted, Change.REPLACE, _KEPT_SUBJECTS)
        return _difference(field, found, wanted, Change.UPDATE, "it is empty")
    if field in _REPLACED and Retention.INTEREST not in (found, wanted):
        return _difference(field, found, wanted, Change.REPLACE, _REPLACED[field])
    if field == "retention" and wanted != Retention.LIMITS:
        return _difference(field, found, wanted, Change.REPLACE, _REPLACED[field])
    if field in _LOWERED and _is_lower(wanted, found):
        return _difference(field, found, wanted, Change.UPDATE, "what is over it goes at once")
    if field == "max_msgs_per_subject":
        reason = "it drops a key's older messages, read or not"
        return _difference(field, found, wanted, Change.UPDATE, reason)
    return _difference(field, found, wanted, Change.UPDATE)


def _is_lower(wanted: object, found: object) -> bool:
    """Whether a limit is lower than another; -1 and 0 are none."""
    assert isinstance(wanted, int)
    assert isinstance(found, int)
    return wanted > 0 and (found <= 0 or wanted < found)


def _difference(
    field: str, found: object, wanted: object, change: Change, reason: str = ""
) -> Difference:
    return Difference(field=field, found=found, wanted=wanted, change=change, reason=reason)


def _text(field: str, value: object) -> str:
    match value:
        case None:
            return "not set"
        case [str(), *_]:
            return ", ".join(map(str, value))
        case {"src": source, "dest": destination}:
            return f"{source} -> {destination}"
        case -1:
            return "no limit"
        case int() if field in _NANOSECONDS:
            return f"{value / 1e9:g} s" if value else "no limit"
        case _:
            return str(value)
