"""What a run tells of itself: one line per event, for people or as JSON.

`JsonLines` is a formatter for Python's logging that prints each record as one JSON object with
everything that was attached to it, so a worker has the same logs with three lines of its own::

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    {"at": "2026-11-25T02:30:00.123+00:00", "level": "info",
     "logger": "millstream_coordinator.worker",
     "message": "group delays member w1: joined: member=w1",
     "event": "joined", "group": "delays", "member": "w1", "facts": {"member": "w1"}}
"""

import json
import logging
from datetime import UTC, datetime

from ..events import GroupEvent, event_object
from .history import sentence
from .process import say

LOGGER = "millstream_coordinator"

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Each record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """``at level logger message``, then what was attached, then ``error`` if one was."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in fields:
                fields[name] = value
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class _Said(logging.Handler):
    """To standard output, whose reader may go."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def log_lines(*, as_json: bool) -> None:
    """Send what a coordinator logs to standard output.

    As JSON that is every event of its groups too; for people those are printed by themselves
    (`event_line`), and this is what the service says of itself.
    """
    handler = _Said()
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(LOGGER if as_json else f"{LOGGER}.operation.service")
    logger.handlers = [it for it in logger.handlers if not isinstance(it, _Said)] + [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def event_line(group: str, event: GroupEvent) -> str:
    """One line for people: when, which group, what."""
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    told = event_object(event, group=group, member="", at_ns=0)
    return f"{now} {group}: {sentence(told)}"
