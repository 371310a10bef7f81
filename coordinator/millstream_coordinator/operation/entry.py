"""How a program begins and ends, whatever happens on the way: no tracebacks, its exit codes.

Only what costs nothing is imported here.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from .streams import mend_streams

CHECK_FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def begin() -> None:
    """To be called before all else: standard streams are there, and ^C ends it at once.

    Until `begun`. While modules are imported nothing is to be cleaned up, and what becomes of a
    KeyboardInterrupt in there is each module's own: another error, or nothing at all.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _end)
    mend_streams()


def begun() -> None:
    """What the program is to do is imported: ^C is a KeyboardInterrupt from now on."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def guarded(program: str, work: Callable[[], int]) -> int:
    """The exit code of ``work``; of ^C, of a reader that went away, and of a full disk."""
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()  # what fails here can be told; Python would only complain at exit
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as in `millstream sub … | head`
        _silence()
        return CHECK_FAILED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _silence()
        sys.stderr.write(f"{program}: the output cannot be written: {error.strerror}\n")
        return USAGE_ERROR


def _silence() -> None:
    """Point standard output elsewhere: it is flushed once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
