r"""Header blocks: ``NATS/1.0[ code[ text]]\r\n(Name: value\r\n)*\r\n``.

A block stays bytes on its way through the server; only who asks for a header parses. Names compare
by case, values lose the white space around them, repeated names are kept and the first one counts.
A block that is none (the core delivers any bytes) holds no headers: nothing here raises on a
client's bytes.
"""

from collections.abc import Iterable

VERSION = b"NATS/1.0"
_END = b"\r\n\r\n"
SERVER_LINE = b"\r\nNats-"
"""Begins each header by which a client asks something of the server."""
_SERVER_PREFIX = b"Nats-"


def get(block: bytes | None, name: str) -> str | None:
    """The value of the first header called exactly ``name``, or None."""
    if block is None:
        return None
    wanted = b"\r\n%b:" % name.encode("utf-8", "surrogateescape")
    start = block.find(wanted)
    if start < 0:
        return None
    start += len(wanted)
    end = block.find(b"\r\n", start)
    value = block[start:] if end < 0 else block[start:end]
    return value.strip(b" \t").decode("utf-8", "surrogateescape")


def server_headers(block: bytes) -> dict[str, str]:
    """The value of the first header of each name that begins with ``Nats-``, as `get` gives it.

    Who asks for more than two or three of them is served faster by this.
    """
    found: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        if line.startswith(_SERVER_PREFIX):
            name, colon, value = line.partition(b":")
            if colon:
                found.setdefault(_text(name), _text(value.strip(b" \t")))
    return found


def parse(block: bytes | None) -> list[tuple[str, str]]:
    """All headers in order, repeated ones too; lines without a colon are passed over."""
    if block is None or not block.startswith(VERSION):
        return []
    found = []
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon and name:
            found.append((_text(name), _text(value.strip(b" \t"))))
    return found


def status(code: int, text: str = "", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A block that carries a status, e.g. ``NATS/1.0 404 No Messages``."""
    line = b"%b %d" % (VERSION, code)
    if text:
        line += b" " + _bytes(text)
    return b"%b\r\n%b\r\n" % (line, _lines(headers))


def add(block: bytes | None, headers: Iterable[tuple[str, str]]) -> bytes:
    """``block``, or a new one, with headers after those it has."""
    lines = _lines(headers)
    if block is None:
        return b"%b\r\n%b\r\n" % (VERSION, lines)
    body = block[:-2] if block.endswith(_END) else block
    return b"%b%b\r\n" % (body, lines)


def remove(block: bytes | None, names: Iterable[str]) -> bytes | None:
    """``block`` without every header of these names; None when no header is left."""
    if block is None:
        return None
    gone = {_bytes(name) for name in names}
    first, *lines = block.split(b"\r\n")
    kept = [line for line in lines if line and line.partition(b":")[0] not in gone]
    return b"\r\n".join([first, *kept, b"", b""]) if kept or first != VERSION else None


def _lines(headers: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % (_bytes(name), _bytes(value)) for name, value in headers)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
