"""Texts as the nats command line prints and reads them.

That tool is written in Go, and three of Go's forms reach its users: quoted strings (``%q``),
durations (``1.787288ms``, and ``300ms`` as a flag) and templates (``Message {{Count}}``). People
grep for these, and scripts pass them, so ``millstream pub``, ``sub``, ``req`` and ``reply`` keep
them. Behaviour seen on nats CLI 0.5.0.
"""

import random
import re
import string
import time
from datetime import datetime

_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)")
_ACTION = re.compile(r"\{\{-?\s*\.?(\w+)((?:\s+\S+)*?)\s*-?\}\}")
_ID_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_LETTERS = string.ascii_letters


class TemplateError(ValueError):
    """A template names a function there is not, or gives one the wrong arguments."""


def quoted(text: str) -> str:
    """``text`` in double quotes, as Go's ``%q`` writes it."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    point = ord(character)
    if point < 0x80:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def duration(seconds: float) -> str:
    """Seconds as Go prints a duration: the largest unit that keeps the figure above one."""
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.9f}".rstrip("0").rstrip(".") + unit
    return f"{nanoseconds}ns" if nanoseconds else "0s"


def parse_duration(text: str) -> float:
    """Seconds of a duration flag: ``300ms``, ``1m30s``, or a bare number of seconds.

    Raises ValueError for anything else.
    """
    if not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        try:
            seconds = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is no duration, as in 300ms, 5s or 1m30s") from None
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"{text!r} is no duration of at least zero")
        return seconds
    return sum(_part_s(part) for part in _DURATION.findall(text))


def _part_s(part: str) -> float:
    unit = part.lstrip("0123456789.")
    return float(part[: -len(unit)]) * _UNITS_S[unit]


def expand(template: str, *, count: int, request: str | None = None) -> str:
    """Fill in ``{{Count}}``, ``{{Time}}``, ``{{Random 10 100}}`` and the like.

    ``count`` is the message's number, ``request`` the text ``{{Request}}`` stands for in a reply.
    Raises TemplateError for a function there is not.
    """

    def one(match: re.Match[str]) -> str:
        return _call(match[1], match[2].split(), count, request)

    return _ACTION.sub(one, template)


def _call(name: str, arguments: list[str], count: int, request: str | None) -> str:
    now = datetime.now().astimezone()
    values = {
        "Count": str(count),
        "Cnt": str(count),
        "Unix": str(int(now.timestamp())),
        "UnixNano": str(time.time_ns()),
        "TimeStamp": now.isoformat(timespec="seconds"),
        "Time": now.strftime("%I:%M%p").lstrip("0"),
        "ID": "".join(random.choices(_ID_ALPHABET, k=22)),  # noqa: S311  a label, no secret
    }
    if name == "Random":
        return _random(arguments)
    if name == "Request" and request is not None:
        return request
    if name not in values or arguments:
        raise TemplateError(f'function "{name}" not defined')
    return values[name]


def _random(arguments: list[str]) -> str:
    try:
        shortest, longest = (int(argument) for argument in arguments)
        length = random.randint(shortest, longest)  # noqa: S311  filler, no secret
    except ValueError:
        raise TemplateError("Random takes the shortest and the longest length") from None
    return "".join(random.choices(_LETTERS, k=length))  # noqa: S311  filler, no secret
