"""JetStream's API over the bridge's own connection: requests, refusals, streams, stored messages.

All of it may raise ConnectionLost: the connection went, or JetStream gave no answer, or not now.
"""

import base64
import math
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from ..errors import ConfigurationError, ConnectionLost
from ..records.frames import encode
from ..records.headers import lines_of
from .connection import Connection, parse_answer

STREAM_NOT_FOUND: Final = 10059
_SUBJECTS_OVERLAP: Final = 10065
_NO_MESSAGE: Final = 10037
_WITHOUT_LEADER: Final = frozenset({10008, 10009})
"""A cluster that has no leader at the moment, or asked one that is it no longer."""
_REMEDIES: Final = {
    STREAM_NOT_FOUND: "`millstream bridge run` makes a route's stream; is the name right?",
    _SUBJECTS_OVERLAP: "`nats stream ls --subject SUBJECT` names it; give the route that stream, or"
    " other subjects",
}


class ApiError(Exception):
    """JetStream refused a request."""

    def __init__(self, code: int, description: str) -> None:
        remedy = f": {_REMEDIES[code]}" if code in _REMEDIES else ""
        super().__init__(f"{description} ({code}){remedy}")
        self.code, self.description = code, description


class StoredMessage(NamedTuple):
    """A message as the stream holds it."""

    seq: int
    subject: str
    headers: list[tuple[str, str]]
    payload: bytes

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)


class StreamInfo(NamedTuple):
    """What STREAM.INFO says.

    By the server's clock, ``age_s`` is how long ago the stream was made, and ``now_ns`` when it
    said so; 0: it does not tell. ``messages`` is how many it has.
    """

    config: dict[str, Any]
    first_seq: int
    last_seq: int
    age_s: float = math.inf
    now_ns: int = 0
    messages: int = 0

    def limit(self, name: str) -> int | None:
        """A limit of the configuration, None where there is none."""
        value = int(self.config.get(name, 0))
        return value if value > 0 else None


async def call(
    connection: Connection, verb: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One request; ApiError: it is refused."""
    payload = b"" if body is None else msgspec.json.encode(body)
    answer = parse_answer(await connection.request(f"{connection.api_prefix}.{verb}", payload))
    error = _refusal(answer)
    if error is not None and error.code in _WITHOUT_LEADER:
        raise ConnectionLost(str(error))
    if error is not None:
        raise error
    return answer


async def stream_info(connection: Connection, stream: str) -> StreamInfo | None:
    """The stream as it is, None if there is none; ConfigurationError: JetStream refuses."""
    try:
        answer = await call(connection, f"STREAM.INFO.{stream}")
    except ApiError as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise ConfigurationError(f"stream {stream}: {error}") from error
    state = answer["state"]
    first_seq, last_seq = int(state["first_seq"]), int(state["last_seq"])
    messages = int(state["messages"])
    if "ts" not in answer:
        return StreamInfo(answer["config"], first_seq, last_seq, messages=messages)
    created, now = (datetime.fromisoformat(answer[it]) for it in ("created", "ts"))
    age_s, now_ns = (now - created).total_seconds(), int(now.timestamp() * 1e9)
    return StreamInfo(answer["config"], first_seq, last_seq, age_s, now_ns, messages)


async def stored_message(
    connection: Connection,
    stream: str,
    *,
    seq: int | None = None,
    last_of: str | None = None,
    next_of: str | None = None,
) -> StoredMessage | None:
    """A message from the stream's leader, None if it has none such; ApiError: it is refused.

    The one at ``seq``; or the first of the subject ``next_of`` there or later; or the newest of the
    subject ``last_of``. Subjects may have wildcards.
    """
    wanted = {"seq": seq, "last_by_subj": last_of, "next_by_subj": next_of}
    body = {name: value for name, value in wanted.items() if value is not None}
    try:
        answer = await call(connection, f"STREAM.MSG.GET.{stream}", body)
    except ApiError as error:
        if error.code == _NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    block = base64.b64decode(message.get("hdrs") or "")
    return StoredMessage(
        int(message["seq"]),
        message["subject"],
        lines_of(block),
        base64.b64decode(message.get("data") or ""),
    )


async def store(connection: Connection, subject: str, payload: bytes, lines: str = "") -> None:
    """Store one message, with header ``lines``; ApiError: it is refused."""
    message = await connection.publish_and_wait(
        lambda reply: encode(subject, reply, f"NATS/1.0\r\n{lines}\r\n", payload)
    )
    if (error := _refusal(parse_answer(message))) is not None:
        raise error


def _refusal(answer: dict[str, Any]) -> ApiError | None:
    error = answer.get("error")
    if not error:
        return None
    return ApiError(int(error.get("err_code", 0)), str(error.get("description", "")))
