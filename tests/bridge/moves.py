"""What the bridge's tests do again and again: records to move, routes, reading a stream back."""

import asyncio
from collections.abc import Callable, Mapping as AbcMapping, Sequence
from typing import Any

from millstream_bridge import Bridge, BridgeReport, Record, Route
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.large import LargeValues
from millstream_bridge.jetstream.reader import read_stream
from millstream_bridge.jetstream.stream import Stream
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.records.headers import parse_block
from millstream_bridge.records.mapping import Mapping

STRANGE_HEADERS: Sequence[tuple[str, bytes | None]] = [
    ("trace-id", b"00-ab"),
    ("twice", b"1"),
    ("twice", b"2"),
    ("null", None),
    ("binary", b"\x00\xff\r\n"),
    ("Nats-Msg-Id", b"not the server's"),
    ("", b"no name"),
    ("ключ", b""),
]
KEYS: Sequence[bytes | None] = [b"N14228", None, b"", b"a.b*c >", b"\xff\x00", b"x" * 300, b"%null"]


def some_records(count: int, partitions: int) -> list[dict[str, Any]]:
    """Keywords for ``produce``: all kinds of keys, values and headers, spread over partitions."""
    return [
        {
            "partition": n % partitions,
            "key": KEYS[n % len(KEYS)],
            "value": None if n % 11 == 0 else b"" if n % 13 == 0 else b"leg %d" % n,
            "timestamp": 1_357_034_400_000 + n,
            "headers": list(STRANGE_HEADERS) if n % 3 == 0 else [("n", b"%d" % n)],
        }
        for n in range(count)
    ]


def a_route(topic: str, **changes: Any) -> Route:
    """``flights.{partition}.{key}`` into FLIGHTS."""
    settings = {"stream": "FLIGHTS", "subject": "flights.{partition}.{key}", **changes}
    return Route(topic=topic, **settings)


async def move_all(
    kafka: str, nats: str | NatsTarget, route: Route, **options: Any
) -> BridgeReport:
    """Run a bridge until all that is in the topic now is stored."""
    return await Bridge(kafka=kafka, nats=nats, route=route, **options).run(stop_at_end=True)


async def stored_records(
    nats: str | NatsTarget, route: Route, *, dense_partitions: int = 0
) -> AbcMapping[int, list[Record]]:
    """All records of the route as its streams hold them, per partition, in their order."""
    found: dict[int, list[Record]] = {}
    for seq_and_record in await stored_messages(nats, route, dense_partitions=dense_partitions):
        record = seq_and_record[1]
        found.setdefault(record.kafka_partition, []).append(record)
    return found


async def stored_messages(
    nats: str | NatsTarget, route: Route, *, dense_partitions: int = 0
) -> list[tuple[int, Record]]:
    """All records of the route with their sequences; of a dense route, stream after stream."""
    mapping = Mapping(route)
    found: list[tuple[int, Record]] = []
    parts = [(route.stream, mapping.route_filter)]
    if route.mode == "dense":
        parts = [
            (mapping.stream_name(p), mapping.partition_filter(p)) for p in range(dense_partitions)
        ]
    connection = await Connection.open(nats, name="test")
    large = LargeValues(Stream(connection, mapping))
    try:
        for stream, subject in parts:
            async for messages in read_stream(connection, stream, subject, last_seq=1 << 62):
                for seq, message in messages:
                    headers = parse_block(message.block)[1] if message.block else []
                    if mapping.source_in(headers) is not None:
                        whole = await large.whole(seq, headers, message.payload)
                        found.append((seq, mapping.record(message.subject, *whole)))
    finally:
        await connection.close()
    return found


def offsets(records: AbcMapping[int, Sequence[Record]]) -> dict[int, list[int]]:
    """The offsets per partition, in the stream's order."""
    return {p: [record.offset for record in of_p] for p, of_p in sorted(records.items())}


async def until_moved(
    bridges: Sequence[Bridge], partitions: int, end: int, timeout_s: float = 60.0
) -> None:
    """Wait until some bridge knows of each partition that all below offset ``end`` is stored.

    The sum of their records does not tell: what was stored when a connection went is never counted.
    """

    def is_moved() -> bool:
        known = [bridge.progress.positions for bridge in bridges]
        return all(max(it.get(p, 0) for it in known) >= end for p in range(partitions))

    await until(is_moved, timeout_s=timeout_s)


async def until(
    is_true: Callable[[], bool], pause_s: float = 0.01, timeout_s: float = 60.0
) -> None:
    """Bounded polling, for what has no event to wait on; TimeoutError if it never comes true."""
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110 - see above
            await asyncio.sleep(pause_s)
