"""The seam between what is stored and what is read next, looked at whenever a session begins.

An offset of Kafka's log is to mean one record for good. It does not where a broker was elected that
lacked records (an unclean election), or where a topic was deleted and made again under its name: a
position then fits the new log as well, and what would be stored behind it belongs to another story.

So a session reads each partition from the record right before its position on, which costs no
request. That record is not moved again but held against the one the stream has. Where Kafka no
longer has it, because of compaction or retention, nothing is known, and the session goes on.
"""

from collections.abc import Callable, Mapping as AbcMapping

from ..errors import OffsetGone, RecordError, SessionLost
from ..model import Positions, Record, Watermarks
from ..ports import Polled


class Seam:
    """Of one session. ``check_same`` raises RecordError for a record that is not the stored one.

    ``unreadable``: partitions whose last stored record could not be read in Kafka; grows.
    """

    def __init__(
        self,
        positions: Positions,
        marks: AbcMapping[int, Watermarks],
        check_same: Callable[[Record], None],
        unreadable: set[int],
    ) -> None:
        self._check_same = check_same
        self._unreadable = unreadable
        self._before = {
            p: at - 1 for p, at in positions.items() if at > marks[p].low and p not in unreadable
        }
        self.starts = {**positions, **self._before}
        """Where to read from."""

    @property
    def is_closed(self) -> bool:
        """Whether everything was looked at."""
        return not self._before

    def look(self, polled: Polled) -> Polled:
        """What was polled without the records that are stored.

        RecordError: one of them is another now. SessionLost: one cannot be read; the next session
        goes on without it.
        """
        new = []
        for record in polled.records:
            before = self._before.pop(record.kafka_partition, None)
            if record.offset == before:
                self._check_same(record)
            else:
                new.append(record)
        for partition in polled.ends:
            self._before.pop(partition, None)
        if isinstance(polled.error, RecordError) and self._is_in_the_way(polled.error):
            self._unreadable.add(polled.error.kafka_partition)
            raise SessionLost(f"the last stored record cannot be read again: {polled.error}")
        return polled._replace(records=new)

    def _is_in_the_way(self, error: RecordError) -> bool:
        """Whether it is of a record that is stored already, so that nobody needs it."""
        before = self._before.get(error.kafka_partition)
        return before is not None and (isinstance(error, OffsetGone) or 0 <= error.offset <= before)
