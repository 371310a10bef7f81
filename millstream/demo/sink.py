"""The sink's final content: every entry of the bucket the workers wrote to."""

import asyncio
from dataclasses import dataclass, field

from nats.aio.client import Client

from millstream_coordinator.sinks import key_of_entry

from .tracks import Track, decode

READ_TIMEOUT_S = 30.0


@dataclass(slots=True)
class SinkContent:
    """Tracks by aircraft; and one for each row without a tail number, in no order."""

    aircraft: dict[str, Track] = field(default_factory=dict)
    without_key: list[Track] = field(default_factory=list)

    @property
    def effects(self) -> int:
        """How many effects are in it: each leg is one."""
        return sum(track.legs for track in [*self.aircraft.values(), *self.without_key])


async def read_sink(client: Client, bucket: str) -> SinkContent:
    """Read the bucket from the server, entry by entry; nobody writes to it any more.

    The bucket's own count says when all are there: the client's "that is all" comes too early when
    the server has sent everything before the client looked at the first entry. TimeoutError if the
    entries do not come.
    """
    content = SinkContent()
    store = await client.jetstream().key_value(bucket)
    missing = (await store.status()).values
    watcher = await store.watchall()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while missing:
                entry = await anext(watcher)
                if entry is None:
                    continue
                missing -= 1
                track = decode(entry.value)
                key = key_of_entry(entry.key)
                if key is None:
                    content.without_key.append(track)
                else:
                    content.aircraft[key.decode()] = track
    finally:
        await watcher.stop()  # type: ignore[no-untyped-call]
    content.without_key.sort(key=lambda track: (track.kafka_partition, track.offset))
    return content
