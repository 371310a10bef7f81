"""Per-message time to live: reading Nats-TTL, and Go's way of writing durations.

A TTL is a Go duration of at least a second, whole seconds, or ``never``, which is -1 here and
exempts the message from the stream's ``max_age`` too.
"""

from __future__ import annotations

import re
from typing import Final

NEVER: Final = -1
_SECOND_NS: Final = 1_000_000_000
_UNITS_NS: Final = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 1_000_000,
    "s": _SECOND_NS,
    "m": 60 * _SECOND_NS,
    "h": 3600 * _SECOND_NS,
}
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


class InvalidTtl(Exception):
    """The text is no time to live."""


def parse_duration(text: str) -> int | None:
    """Give the nanoseconds of a Go duration such as ``1m30s``; None when it is none."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, position = 0, 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None:
            return None
        whole, _, fraction = part[1].partition(".")
        unit = _UNITS_NS[part[2]]
        total += int(whole or "0") * unit
        if fraction:
            total += int(fraction) * unit // 10 ** len(fraction)
        position = part.end()
    return sign * total if position and total < 1 << 63 else None


def parse_ttl(text: str) -> int:
    """Give the nanoseconds of a Nats-TTL, NEVER for ``never``. Raises InvalidTtl."""
    if text.lower() == "never":
        return NEVER
    if text.isascii() and text.isdigit():
        ttl_ns = int(text) * _SECOND_NS
    else:
        parsed = parse_duration(text)
        ttl_ns = 0 if parsed is None else parsed
    if not _SECOND_NS <= ttl_ns < 1 << 63:
        raise InvalidTtl(text)
    return ttl_ns


def duration_text(ns: int) -> str:
    """Write a duration as Go does: ``1h2m3.5s``, ``250ms``, ``0s``."""
    if ns < _SECOND_NS:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if ns >= size:
                return _trimmed(ns, size) + unit
        return "0s"
    minutes, rest = divmod(ns, 60 * _SECOND_NS)
    hours, minutes = divmod(minutes, 60)
    seconds = _trimmed(rest, _SECOND_NS) + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _trimmed(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0")
