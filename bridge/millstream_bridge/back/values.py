"""Large records' values, which are stored beside their messages, put in place on the way back."""

from collections.abc import Sequence

from ..jetstream.connection import Connection
from ..jetstream.large import LargeValues
from ..jetstream.stream import Stream
from ..records.headers import HeaderError, parse_block
from ..records.mapping import Mapping
from .returning import Delivered


async def with_values(
    connection: Connection, mapping: Mapping, slot: int, messages: Sequence[Delivered]
) -> list[Delivered]:
    """The messages of one stream, each with its whole value; most are so already.

    One whose value is not all there says so in ``trouble``. ConnectionLost.
    """
    values = LargeValues(
        Stream(connection, mapping, slot if mapping.route.mode == "dense" else None)
    )
    return [await _whole(values, one) if one.is_large else one for one in messages]


async def _whole(values: LargeValues, message: Delivered) -> Delivered:
    try:
        found = parse_block(message.block)[1]
        headers, payload = await values.whole(message.seq, found, message.payload)
    except HeaderError as error:
        return message._replace(trouble=str(error))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    block = f"NATS/1.0\r\n{lines}\r\n".encode("latin-1")
    return message._replace(block=block, payload=payload)
