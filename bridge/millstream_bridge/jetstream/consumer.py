"""Pull consumers without acks: made, looked for, deleted, and what their deliveries say.

Where a wildcard matches small messages of a few thousand subjects, nats-server 2.15.1 takes 90 µs
of a core for each, and 2 µs where it need not look for them. So where most of a stream is wanted
(`is_most`) `ALL` of it is asked for, and the rest dropped (`matcher`). ``>`` needs no other right
than the wildcard does.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError
from .api import ApiError, call
from .connection import Connection

ALL: Final = ">"
FEW: Final = 5_000
"""So many messages are soon found, whatever they cost."""
_MOST: Final = 0.5
"""The share of a stream from which on all of it is read."""
_SUBJECTS: Final = 65_536
_NOT_FOUND: Final = 10014
_PLAIN_ACK_TOKENS: Final = 9


class Place(NamedTuple):
    """Where a delivered message is: in the stream, among the consumer's, in time, before others."""

    seq: int
    consumer_seq: int
    time_ns: int
    pending: int


def place_of(ack: bytes) -> Place:
    """What an ack subject of either form tells.

    ``$JS.ACK.stream.consumer.delivered.seq.consumer_seq.time.pending``, and the longer one with
    domain and account before the stream and a random token at the end.
    """
    tokens = ack.split(b".")
    at = 5 if len(tokens) == _PLAIN_ACK_TOKENS else 7
    return Place(int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 2]), int(tokens[at + 3]))


async def create(
    connection: Connection,
    stream: str,
    name: str,
    subject: str,
    first_seq: int,
    **config: Any,
) -> tuple[int, bool]:
    """Make a consumer of ``subject`` from a sequence on.

    How many messages it has to deliver, as far as its node knows, and whether that is one of a
    cluster. ``config``: what else is set. ConfigurationError, ConnectionLost.
    """
    body = {
        "stream_name": stream,
        "config": {
            "name": name,
            "filter_subject": subject,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, first_seq),
            "replay_policy": "instant",
            **config,
        },
        "action": "create",
    }
    try:
        made = await call(connection, f"CONSUMER.CREATE.{stream}.{name}.{subject}", body)
    except ApiError as error:
        raise ConfigurationError(f"stream {stream}: {error}") from error
    return int(made["num_pending"]), bool(made.get("cluster"))


async def delete(connection: Connection, stream: str, name: str) -> bool:
    """Delete a consumer; whether there was one. ConfigurationError, ConnectionLost."""
    return await _ask(connection, "DELETE", stream, name) is not None


async def pending_of(connection: Connection, stream: str, name: str) -> int | None:
    """How many messages a consumer still has to deliver, None if there is no such consumer.

    ConfigurationError, ConnectionLost.
    """
    info = await _ask(connection, "INFO", stream, name)
    return None if info is None else int(info["num_pending"])


def is_most(pending: int, of_all: int) -> bool:
    """Whether a consumer has most of what one of `ALL` has to deliver."""
    return pending >= _MOST * of_all


def matcher(subject: str) -> Callable[[bytes], object]:
    """True of the subjects that a wildcard subject matches; the same ones come again."""
    forms = {"*": r"[^.]+", ">": r".+"}
    pattern = r"\.".join(forms.get(it, re.escape(it)) for it in subject.split(".")).encode()
    return functools.lru_cache(_SUBJECTS)(re.compile(pattern, re.DOTALL).fullmatch)


async def _ask(connection: Connection, verb: str, stream: str, name: str) -> dict[str, Any] | None:
    try:
        return await call(connection, f"CONSUMER.{verb}.{stream}.{name}")
    except ApiError as error:
        if error.code == _NOT_FOUND:
            return None
        raise ConfigurationError(f"stream {stream}: {error}") from error
