"""A stream's configuration and state, of any name."""

from typing import Any, Final, NamedTuple

import msgspec

from ..errors import ConfigurationError
from ..records.headers import parse_block
from .connection import Connection, parse_answer

_NO_MESSAGE, _NO_STREAM = 10037, 10059


class StreamInfo(NamedTuple):
    """What STREAM.INFO says."""

    config: dict[str, Any]
    first_seq: int
    last_seq: int

    def limit(self, name: str) -> int | None:
        """A limit of the configuration, None where there is none."""
        value = int(self.config.get(name, 0))
        return value if value > 0 else None


class Found(NamedTuple):
    """A stored message's sequence and header lines."""

    seq: int
    headers: list[tuple[str, str]]


async def stream_info(connection: Connection, stream: str) -> StreamInfo | None:
    """The stream as it is, None if there is none; ConfigurationError: JetStream refuses."""
    answer = await _api(connection, f"STREAM.INFO.{stream}")
    if (error := answer.get("error")) is not None:
        if error.get("err_code") == _NO_STREAM:
            return None
        raise ConfigurationError(f"stream {stream}: {error.get('description')}")
    state = answer["state"]
    return StreamInfo(answer["config"], int(state["first_seq"]), int(state["last_seq"]))


async def next_message(connection: Connection, stream: str, subject: str, seq: int) -> Found | None:
    """The first message of a subject (wildcards too) at a sequence or later."""
    body = msgspec.json.encode({"seq": seq, "next_by_subj": subject})
    answer = await _api(connection, f"STREAM.MSG.GET.{stream}", body)
    if (error := answer.get("error")) is not None:
        if error.get("err_code") == _NO_MESSAGE:
            return None
        raise ConfigurationError(f"stream {stream}: {error.get('description')}")
    message = answer["message"]
    block = _BLOCK.decode(f'"{message.get("hdrs") or ""}"')
    return Found(int(message["seq"]), parse_block(block)[1] if block else [])


_BLOCK: Final = msgspec.json.Decoder(bytes)
"""Base64, as JSON has bytes."""


async def _api(connection: Connection, verb: str, body: bytes = b"") -> dict[str, Any]:
    return parse_answer(await connection.request(f"{connection.api_prefix}.{verb}", body))
