"""Bytes for a client: INFO, MSG and HMSG lines, and the words that never change."""

import json
from collections.abc import Mapping

OK = b"+OK\r\n"
PING = b"PING\r\n"
PONG = b"PONG\r\n"


def info(fields: Mapping[str, object]) -> bytes:
    """INFO with its one space before the line end, as nats-server writes it."""
    return b"INFO %b \r\n" % json.dumps(fields, separators=(",", ":")).encode()


def message_prefix(subject: bytes, sid: bytes) -> bytes:
    """``MSG subject sid ``; the reply, if any, and the size follow. HMSG puts an H before it."""
    return b"MSG %b %b " % (subject, sid)


def no_responders(subject: bytes, reply: bytes, sid: bytes) -> bytes:
    """HMSG for a request nobody got: status 503 and the subject that was asked."""
    block = b"NATS/1.0 503\r\nNats-Subject: %b\r\n\r\n" % subject
    return b"HMSG %b %b %d %d\r\n%b\r\n" % (reply, sid, len(block), len(block), block)
