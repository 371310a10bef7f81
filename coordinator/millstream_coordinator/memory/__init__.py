"""A group without a server: the port in this process, for users' tests and for the simulation.

`MemoryServer` is what a group needs of a NATS server, as plain data: buckets with revisions and
compare-and-set, streams, consumers with an ack floor, heartbeats and probes. It answers the same
commands with the same replies as a server does over ``jetstream/`` (one set of scenarios runs on
both: ``tests/coordinator/test_port_conformance.py``); what the server pushes (a changed key, a
message, a heartbeat) goes to the client's ``send``.

A whole group in a test, in virtual time, without a server (`run_virtual` is ``asyncio.run`` whose
clock jumps):

    from millstream_coordinator import Group, MemoryServer, Message, run_virtual

    def test_every_leg_is_followed() -> None:
        async def main() -> None:
            server = MemoryServer(seed=7)
            server.add_stream("FLIGHTS")
            for leg in range(20):
                server.publish("FLIGHTS", f"flights.{leg % 4}.N{leg % 4}", b"%d" % leg)
            legs: list[int] = []

            async def follow(message: Message) -> None:
                await asyncio.sleep(1)  # a second of virtual time
                legs.append(int(message.data))

            async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
                members = []
                for name in ("a", "b"):
                    group = Group(server, stream="FLIGHTS", name="g", partitions=4, member=name)
                    group.handler(key="flights.*.{key}")(follow)
                    members.append((group, tasks.create_task(group.run(handle_signals=False))))
                await server.until(lambda: len(legs) == 10)
                members[0][1].cancel()  # a crash; `stop` would be a farewell
                await server.until(lambda: len(set(legs)) == 20)
                await members[1][0].stop()

        run_virtual(main())

Without ``seed`` nothing takes time. With one, everything under way between a member and the server
takes a moment drawn from it: another seed is another interleaving, the same seed the same run, down
to every event. What can be done to a group: `redeliver`, `delete_bucket`, `delete_consumer`,
`purge`, `disconnect` a member and let it come back, cancel the task of a member (a crash).

How far it goes: one node, pull consumers, no subject transforms, no retention but limits and
work-queue, and limits only by `purge`.
"""

from .client import MemoryClient, Observer
from .letters import MemoryLetter
from .server import MemoryServer
from .stream import MemoryStream

__all__ = ["MemoryClient", "MemoryLetter", "MemoryServer", "MemoryStream", "Observer"]
