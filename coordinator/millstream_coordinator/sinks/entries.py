"""Entries that are messages of a stream: the marks of a stored one, the last ones remembered."""

from collections import OrderedDict
from collections.abc import Mapping

from .contract import BadMark
from .mark import MARK_HEADER, Entry, Marks, decode_marks


def stored_marks(sink: str, subject: str, headers: Mapping[str, str]) -> Marks:
    """Return the marks that a stored message carries; none is none. Raises BadMark."""
    text = headers.get(MARK_HEADER, "")
    try:
        return decode_marks(text)
    except ValueError as error:
        raise BadMark(sink, subject, text) from error


class Remembered:
    """The entries read or written last, by subject."""

    def __init__(self, limit: int) -> None:
        """``limit``: so many; then the one that was put in longest ago goes."""
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._limit = limit

    def get(self, subject: str) -> Entry | None:
        """Return a subject's entry; None: it is not remembered."""
        return self._entries.get(subject)

    def put(self, subject: str, entry: Entry) -> None:
        """Remember an entry."""
        self._entries[subject] = entry
        self._entries.move_to_end(subject)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def forget(self, subject: str) -> None:
        """Remember a subject's entry no more."""
        self._entries.pop(subject, None)
