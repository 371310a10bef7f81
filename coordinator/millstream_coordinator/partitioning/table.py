"""Reading one table of a description: each key is taken once, with its type, and the rest refused.

Everything that can be wrong is a `TopicError`, one line with file, table and key.
"""

import difflib
import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from ..errors import GroupError

_DURATION = re.compile(r"([0-9]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"([0-9]+) ?(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)")
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class TopicError(GroupError, ValueError):
    """A description that cannot be used: where in it, and why."""

    def __init__(self, file: str, table: str, key: str, reason: str) -> None:
        place = " ".join(part for part in (f"[{table}]" if table else "", key) if part)
        super().__init__(f"{file}: {place}: {reason}" if place else f"{file}: {reason}")
        self.file, self.table, self.key, self.reason = file, table, key, reason


Choice = TypeVar("Choice", bound=StrEnum)


class Table:
    """One table being read: every value is taken once by its key, and `end` refuses the rest."""

    def __init__(self, file: str, name: str, values: Mapping[str, Any]) -> None:
        self._file, self._name = file, name
        self._left = dict(values)
        self._known: list[str] = []

    def error(self, key: str, reason: str) -> TopicError:
        """The error to raise about ``key``; "" is the table itself."""
        return TopicError(self._file, self._name, key, reason)

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and was not taken yet."""
        return key in self._left

    def take(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
        """The value, None if it is not there; ``what`` is how to call ``kind``."""
        self._known.append(key)
        value = self._left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"{value!r} is not {what}")
        return value

    def text(self, key: str) -> str | None:
        """A text."""
        value: str | None = self.take(key, str, "a text in quotes")
        return value

    def number(self, key: str, low: int, high: int) -> int | None:
        """A whole number from ``low`` to ``high``."""
        value: int | None = self.take(key, int, "a whole number")
        if value is not None and not low <= value <= high:
            raise self.error(key, f"{value} is not from {low} to {high}")
        return value

    def choice(self, key: str, default: Choice) -> Choice:
        """One of the values of the default's kind."""
        value = self.text(key)
        if value is None:
            return default
        try:
            return type(default)(value)
        except ValueError as error:
            known = ", ".join(repr(str(one)) for one in type(default))
            raise self.error(key, f"{value!r} is none of {known}") from error

    def duration(self, key: str) -> timedelta | None:
        """A time such as ``7d`` or ``500ms``, not zero."""
        value = self.text(key)
        if value is None:
            return None
        found = _DURATION.fullmatch(value)
        if found is None or not int(found[1]):
            raise self.error(key, f"{value!r} is no duration such as '7d', '12h', '30m' or '500ms'")
        return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])

    def size(self, key: str) -> int | None:
        """A number of bytes, or a text such as ``10GiB``."""
        value: str | int | None = self.take(key, (str, int), "a size such as '10GiB'")
        if value is None:
            return None
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        size = value if isinstance(value, int) else int(found[1]) * _BYTES[found[2]] if found else 0
        if not 0 < size < 2**63:
            raise self.error(key, f"{value!r} is no size such as '10GiB', '500MB' or 1048576")
        return size

    def table(self, key: str) -> "Table | None":
        """A table inside this one; the caller ends it, too."""
        value = self.take(key, dict, "a table")
        return None if value is None else Table(self._file, f"{self._name}.{key}", value)

    def end(self) -> None:
        """Refuse what is left, with the key that was perhaps meant."""
        for key in self._left:
            close = difflib.get_close_matches(key, self._known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self._known)}"
            raise self.error(key, f"no such key here ({hint})")
