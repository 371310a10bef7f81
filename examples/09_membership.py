"""Slots without a stream: each job runs in one process at a time, whoever comes or goes."""

import asyncio

import nats
from servers import nats_server

from millstream_coordinator import Membership

JOBS = ("report", "cleanup", "backup")


async def main() -> None:
    """Run the example."""
    async with nats_server() as url:
        client = await nats.connect(url)
        first = Membership(client, name="jobs", slots=len(JOBS), member="first")
        second = Membership(client, name="jobs", slots=len(JOBS), member="second")
        async with first:
            await holding(first, 3)
            print("first alone has", names(first))

            async with second:
                await holding(second, 1)
                print("with second, first has", len(first.slots), "and second has 1")

                for slot, epoch in first.slots.items():
                    # Right before each effect; the epoch goes along wherever it can be compared.
                    assert first.holds(slot, epoch)

            await holding(first, 3)
            print("second left, first has", names(first))

        await client.jetstream().delete_stream("KV_MILLSTREAM_jobs")
        await client.close()


def names(member: Membership) -> str:
    """The jobs a member runs."""
    return ", ".join(JOBS[slot] for slot in sorted(member.slots))


async def holding(member: Membership, count: int) -> None:
    """Wait until a member has so many slots."""
    async for change in member.changes():
        assert change.epoch > 0  # of which slot, gained, released or lost: `change.slot`, `.kind`
        if len(member.slots) == count:
            return


asyncio.run(main())
