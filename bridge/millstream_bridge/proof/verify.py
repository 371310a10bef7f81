"""The proof: both sides of a route compared record by record, once or beside a running bridge.

`verify` compares all that Kafka has when it begins; with ``sample_blocks`` only some blocks of each
partition, found in the stream by bisection. `verify_online` goes on, round after round. How it is
done is in `check`.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ..errors import ConnectionLost, Unreachable
from ..jetstream.connection import Connection
from ..jetstream.target import NatsTarget
from ..kafka.source import source_of
from ..model import Route
from ..moving.barrier import barrier
from ..ports import Source
from ..records.mapping import Mapping
from .check import Check
from .seen import Seen
from .sides import LiveSides
from .values import Proof

ROUND_S: Final = 5.0


async def verify(
    *,
    kafka: str | None = None,
    source: Source | None = None,
    nats: str | NatsTarget,
    route: Route,
    kafka_options: dict[str, str] | None = None,
    sample_blocks: int | None = None,
    seed: int = 0,
) -> Proof:
    """Compare both sides; `Proof.equal` says how it went. Changes nothing on either.

    ``source``: what the route was moved from, where that is no Kafka; it is closed.
    ``sample_blocks``: only the first, the last and so many random blocks of each partition (of
    ``seed``). Unreachable, ConfigurationError as for a run; RecordError: a record went from Kafka
    meanwhile.
    """
    async with _check(source, kafka, nats, route, kafka_options) as check:
        if sample_blocks is not None:
            return await check.sample(sample_blocks, random.Random(seed))  # noqa: S311
        return await check.full()


async def verify_online(
    *,
    kafka: str,
    nats: str | NatsTarget,
    route: Route,
    kafka_options: dict[str, str] | None = None,
    round_s: float = ROUND_S,
    timeout_s: float = 60.0,
) -> AsyncGenerator[Proof]:
    """Proofs of what came since the one before, beside a running bridge, until closed.

    Each round waits until the bridge has stored what is in Kafka by then. TimeoutError: it did not
    within ``timeout_s``. ConfigurationError too: a stream that keeps only the newest messages.
    """
    seen = Seen()
    while True:
        goal = await barrier(
            kafka=kafka, nats=nats, route=route, timeout_s=timeout_s, kafka_options=kafka_options
        )
        async with _check(None, kafka, nats, route, kafka_options) as check:
            yield await check.round(goal, seen)
        await asyncio.sleep(round_s)


@asynccontextmanager
async def _check(
    source: Source | None,
    kafka: str | None,
    nats: str | NatsTarget,
    route: Route,
    kafka_options: dict[str, str] | None,
) -> "AsyncIterator[Check]":
    mapping = Mapping(route)
    source = source_of(source, kafka, route.topic, kafka_options)
    connection: Connection | None = None
    try:
        marks = await source.watermarks()
        connection = await Connection.open(nats, name=f"millstream verify {route.name}")
        yield Check(LiveSides(source, connection, mapping, marks, kafka, kafka_options), mapping)
    except ConnectionLost as lost:
        raise Unreachable("JetStream", str(NatsTarget.of(nats)), str(lost)) from lost
    finally:
        await source.close()
        if connection is not None:
            await connection.close()
