"""Bytes of a client into operations, in place and without I/O.

`parse` looks at one position of a buffer and answers with the operation that starts there and
where the next one starts, or with `Incomplete`: how many bytes are missing at least. That is a
value, not an error. Nothing is kept between calls, so a buffer cut anywhere gives the same
operations once it is whole again. What no cut can mend (a wrong verb, a line too long, a payload
too large) raises at the first byte that shows it, as nats-server does: ``X`` is answered without
waiting for its line end.

Verbs ignore case, arguments are split by spaces and tabs, a bare LF ends a line too. PING, PONG
and +OK ignore what follows them. Publishes are the bulk of all traffic and have an expression of
their own; the rest goes the slow way.
"""

import re
from typing import NamedTuple

from ..errors import ControlLineTooLong, MalformedOperation, PayloadTooLarge, UnknownOperation


class Limits(NamedTuple):
    """What one client may send; ``accepts_headers`` is what its CONNECT said."""

    max_control_line: int = 4096
    max_payload: int = 1024 * 1024
    accepts_headers: bool = False


class Incomplete(NamedTuple):
    """The operation needs at least ``missing`` more bytes."""

    missing: int


class Connect(NamedTuple):
    """CONNECT with its JSON, not looked at yet."""

    options: bytes


class Publish(NamedTuple):
    """PUB or HPUB: ``body`` is headers, payload and CR LF; PUB has ``headers_size`` 0."""

    subject: bytes
    reply: bytes | None
    headers_size: int
    body: bytes


class Subscribe(NamedTuple):
    """SUB; the subject is not validated yet."""

    subject: bytes
    queue: bytes | None
    sid: bytes


class Unsubscribe(NamedTuple):
    """UNSUB; ``max_delivered`` 0 means now."""

    sid: bytes
    max_delivered: int


class Ping(NamedTuple):
    """PING."""


class Pong(NamedTuple):
    """PONG."""


class Ignored(NamedTuple):
    """+OK or INFO: allowed from a client, without effect."""


Operation = Connect | Publish | Subscribe | Unsubscribe | Ping | Pong | Ignored

_WORD = rb"([^ \t\r\n]++)[ \t]++"
_SIZE = rb"([0-9]{1,9})"
PUBLISH_LINE = re.compile(
    rb"([Hh])?[Pp][Uu][Bb][ \t]++"
    + _WORD
    + rb"(?:"
    + _WORD
    + rb")?(?(1)"
    + _SIZE
    + rb"[ \t]++)"
    + _SIZE
    + rb"[ \t]*+\r?\n"
)
"""The control line of PUB or HPUB: its H, subject, reply, size of the headers (HPUB), size."""
_SPACE = re.compile(rb"[ \t\r]+")
_SIZE_DIGITS_MAX = 9

_BARE = (b"PING", b"PONG", b"+OK", b"CONNECT")
"""Verbs that need no white space after them."""
_WITH_ARGUMENTS = (b"PUB", b"HPUB", b"SUB", b"UNSUB", b"INFO", b"-ERR")


def parse(buffer: bytes, position: int, limits: Limits) -> tuple[Operation, int] | Incomplete:
    """Parse the operation that starts at ``position``. Raises ClientError for what can't be one."""
    found = PUBLISH_LINE.match(buffer, position)
    if found is not None:
        has_headers, subject, reply, headers_size, size = found.groups()
        if has_headers and (not limits.accepts_headers or int(headers_size) > int(size)):
            raise MalformedOperation
        arguments = (subject, reply, int(headers_size or 0), int(size))
        return _payload(buffer, position, found.end(), limits, arguments)
    end = buffer.find(b"\n", position)
    if end < 0:
        _check_beginning(buffer[position : position + limits.max_control_line + 16], limits)
        return Incomplete(1)
    return _parse_line(buffer[position:end], limits), end + 1


def _payload(
    buffer: bytes,
    start: int,
    end: int,
    limits: Limits,
    arguments: tuple[bytes, bytes | None, int, int],
) -> tuple[Publish, int] | Incomplete:
    subject, reply, headers_size, size = arguments
    if end - start > limits.max_control_line:
        _check_length(buffer[start:end], limits)
    if size > limits.max_payload:
        raise PayloadTooLarge(size, limits.max_payload)
    stop = end + size + 2
    if stop > len(buffer):
        _check_payload_end(buffer[end + size :])
        return Incomplete(stop - len(buffer))
    body = buffer[end:stop]
    if body[size:] != b"\r\n":
        raise UnknownOperation
    return Publish(subject, reply, headers_size, body), stop


def _check_payload_end(rest: bytes) -> None:
    if not b"\r\n".startswith(rest):
        raise UnknownOperation


def _check_length(line: bytes, limits: Limits) -> None:
    """Only the arguments count, not the verb and the white space after it."""
    line = line.rstrip(b"\r\n")
    space = _SPACE.search(line)
    # nats-server has no limit on what follows PING; a buffer needs one.
    if len(line) - (0 if space is None else space.end()) > limits.max_control_line:
        raise ControlLineTooLong


def _check_beginning(line: bytes, limits: Limits) -> None:
    """Refuse a line without its end that can't become an operation."""
    start = line[:8].upper()
    for verb in _BARE:
        if start.startswith(verb) or verb.startswith(start):
            break
    else:
        for verb in _WITH_ARGUMENTS:
            if verb.startswith(start) or (
                start.startswith(verb) and start[len(verb) : len(verb) + 1] in b" \t"
            ):
                break
        else:
            raise UnknownOperation
    _check_length(line, limits)


def _parse_line(line: bytes, limits: Limits) -> Operation:
    start = line[:8].upper()
    if start.startswith(b"PING"):
        return Ping()
    if start.startswith(b"PONG"):
        return Pong()
    if start.startswith(b"+OK"):
        return Ignored()
    if start.startswith(b"CONNECT"):
        _check_length(line, limits)
        return Connect(line[len(b"CONNECT") :].strip(b" \t\r"))
    verb = _SPACE.split(start, maxsplit=1)[0]
    if verb not in _WITH_ARGUMENTS or line[len(verb) : len(verb) + 1] not in (b" ", b"\t"):
        raise UnknownOperation
    _check_length(line, limits)
    rest = line[len(verb) :].strip(b" \t\r")
    if verb == b"INFO":
        return Ignored()
    return _parse_arguments(verb, _SPACE.split(rest) if rest else [])


def _parse_arguments(verb: bytes, arguments: list[bytes]) -> Operation:
    if verb == b"SUB" and len(arguments) == 2:
        return Subscribe(arguments[0], None, arguments[1])
    if verb == b"SUB" and len(arguments) == 3:
        return Subscribe(arguments[0], arguments[1], arguments[2])
    if verb == b"UNSUB" and len(arguments) == 1:
        return Unsubscribe(arguments[0], 0)
    if verb == b"UNSUB" and len(arguments) == 2:
        count = arguments[1]
        # What is no number means now, as nats-server has it.
        is_number = count.isdigit() and len(count) <= _SIZE_DIGITS_MAX
        return Unsubscribe(arguments[0], int(count) if is_number else 0)
    # -ERR from a client closes; a publish only comes here, past its expression, when it is wrong.
    raise MalformedOperation
