"""A producer that keeps a backlog in every partition, and knows what it was acknowledged for.

The truth about order is the sequence in each acknowledgement. A publish whose acknowledgement did
not come is tried again under the same message id until one comes. While a server is killed nothing
is under way (`hold`): a work-queue stream deletes what was handled, and with it the memory that a
message was stored before.
"""

import asyncio
from collections import defaultdict

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from tests.chaos.ground import Ground, Layout
from tests.chaos.group_cluster import Cluster

BACKLOG = 150
"""Messages without an effect that each partition is given at least."""
_BATCH = 60
_LOOK_S = 0.05


class Feed:
    """Publishes what a ground wants while `run` runs. Partitions are those of the first level."""

    def __init__(self, client: Client, group: Cluster, ground: Ground) -> None:
        self.ground = ground
        self._jetstream = client.jetstream(timeout=2)
        self._group = group
        self._published = 0
        self.hold = asyncio.Lock()
        """Who has it keeps the producer still."""
        self.acked: defaultdict[int, int] = defaultdict(int)
        """Partition → messages acknowledged."""
        self.messages: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        """Key → (seq, data) of each acknowledged message."""

    def backlog(self, partition: int) -> int:
        """Messages of a partition that have no effect yet."""
        return self.acked[partition] - len(self._group.done[partition])

    async def run(self) -> None:
        """Until it is cancelled, which may be done only with `hold`."""
        partitions = range(self._group.partitions)
        while True:
            low = [one for one in partitions if self.backlog(one) < BACKLOG]
            if not low:
                await asyncio.sleep(_LOOK_S)
                continue
            async with self.hold:
                await asyncio.gather(*(self._publish(one) for one in low for _ in range(_BATCH)))

    async def _publish(self, partition: int) -> None:
        number = self._published
        self._published += 1
        keys = self.ground.keys[partition]
        key = keys[number % len(keys)]
        data = b"%d" % number
        seq = None
        while seq is None:
            try:
                ack = await self._jetstream.publish(
                    self.ground.subject(key), data, headers={"Nats-Msg-Id": str(number)}
                )
                seq = ack.seq
            except (nats.errors.Error, nats.js.errors.Error, OSError):
                await asyncio.sleep(_LOOK_S)
        self.messages[key].append((seq, data))
        self.acked[partition] += 1

    async def where(self) -> list[str]:
        """What is left of each partition and where the consumers stand: to see why it is late."""
        partitions = range(self._group.partitions)
        lines = [f"    backlogs {[self.backlog(one) for one in partitions]}"]
        try:
            infos = [
                info
                for stream in self.ground.read_streams
                for info in await self._jetstream.consumers_info(stream)
            ]
        except (nats.errors.Error, nats.js.errors.Error) as error:
            return [*lines, f"    no consumers: {error!r}"]
        for one in infos:
            delivered, floor = one.delivered, one.ack_floor
            assert delivered is not None
            assert floor is not None
            lines.append(
                f"    {one.name}: delivered #{delivered.stream_seq} ({delivered.consumer_seq}),"
                f" floor #{floor.stream_seq}, {one.num_ack_pending} unacked,"
                f" {one.num_pending} to come, {one.num_waiting} pulls"
            )
        if self.ground.layout is Layout.SOURCED:
            return lines  # the group's stream counts otherwise than the one published into
        for partition in partitions:
            acked = {seq for key in self.ground.keys[partition] for seq, _ in self.messages[key]}
            missing = sorted(acked - self._group.done[partition])
            entered = len(self._group.entered[partition].intersection(missing))
            lines.append(
                f"    p{partition}: {missing[:5]} … have no effect,"
                f" {entered} of {len(missing)} were entered"
            )
        return lines
