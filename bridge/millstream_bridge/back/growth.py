"""What came after a session of the way back began: partitions of the topic, streams of a dense one.

The next session reads them. Somebody has to look, for neither side tells.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from ..errors import SessionLost, Unreachable
from ..jetstream.api import stream_info
from ..jetstream.connection import Connection
from ..kafka.sink import KafkaSink

LOOK_S = 10.0


class Growth:
    """Of one session: the topic had ``partitions``, and ``missing`` streams were not there."""

    def __init__(
        self, sink: KafkaSink, connection: Connection, partitions: int, missing: Mapping[int, str]
    ) -> None:
        self._sink = sink
        self._connection = connection
        self._partitions = partitions
        self._missing = missing
        self._looked_at = asyncio.get_running_loop().time()

    async def check_in_time(self) -> None:
        """As `check`, where that was `LOOK_S` ago."""
        if asyncio.get_running_loop().time() - self._looked_at >= LOOK_S:
            await self.check()

    async def check(self) -> None:
        """SessionLost: there is more now. A side that does not answer is asked again later."""
        self._looked_at = asyncio.get_running_loop().time()
        with suppress(Unreachable):
            count = await self._sink.partition_count()
            if count != self._partitions:
                raise SessionLost(f"the topic has {count} partitions now")
        for name in self._missing.values():
            if await stream_info(self._connection, name) is not None:
                raise SessionLost(f"stream {name} is there now")
