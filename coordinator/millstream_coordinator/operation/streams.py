"""Standard streams that a command can rely on, however it was started."""

import io
import os
import sys
from typing import TextIO


def mend_streams() -> None:
    """Let a standard stream that is closed lead nowhere, and one without a buffer have one.

    Who starts daemons may close them. A socket would then get the stream's number, and uvloop
    aborts when it meets one of those.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            lowest_free = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest_free, True)  # what it starts has a stream there, too
            setattr(sys, name, os.fdopen(lowest_free, mode))
        elif mode == "w":
            setattr(sys, name, buffered(stream))


def buffered(stream: TextIO) -> TextIO:
    """The stream, with a buffer if it is without (``PYTHONUNBUFFERED``): each line still goes out.

    Without, Python drops what one write(2) does not take, and says nothing. On a pipe a signal cuts
    a write short, and so does what the io_uring of uvloop has still to tell.
    """
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(stream.buffer, io.RawIOBase):
        return stream
    encoding, errors = stream.encoding, stream.errors
    return io.TextIOWrapper(
        io.BufferedWriter(stream.detach()), encoding, errors, line_buffering=True
    )
