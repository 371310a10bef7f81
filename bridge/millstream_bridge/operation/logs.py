"""What a run logs as JSON: one object per line on standard error, for who collects logs.

Each has ``at level logger message``, and what belongs to it: ``event``, ``route`` and the facts of
the event, such as ``partition`` (docs/reference/metrics-and-logs.md). Without JSON, warnings are
lines for people. ``MILLSTREAM_LOG`` is the level of both.
"""

import logging
import sys
from collections.abc import Callable

from ..moving.progress import route_at_work
from .process import log_level, tell

logger = logging.getLogger(__name__)


class _WithRoute(logging.Filter):
    """Says in each record which route it is about, where one is at work."""

    def filter(self, record: logging.LogRecord) -> bool:
        route = route_at_work.get()
        if route and not hasattr(record, "route"):
            record.route = route
        return True


def log_json() -> None:
    """Log as JSON from now on; to be called before anything else sets logging up."""
    from millstream_coordinator import JsonLines  # noqa: PLC0415 - with much that else none needs

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(_WithRoute())
    logging.basicConfig(level=log_level("INFO"), handlers=[handler], force=True)


def teller(*, as_json: bool) -> Callable[[str], None]:
    """What tells people a line: on standard error, or in the log where that is JSON."""

    def log(line: str) -> None:
        logger.info("%s", line, extra={"event": "told"})

    return log if as_json else tell
