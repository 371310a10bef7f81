"""Dead letters that a group had published again into a bridged stream: none is a record there.

They have the headers of the message they were, the record's source among them.
"""

import asyncio
from datetime import timedelta
from typing import Any

import nats
import pytest

from millstream_bridge import verify
from millstream_bridge.model import Route
from millstream_coordinator import Group, Message
from millstream_coordinator.operation.letters import ALL, list_letters, replay
from millstream_coordinator.operation.target import Target
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until
from tests.bridge.test_back import PARTITIONS, back, fill, natives, publish
from tests.bridge.test_cutover import commit, cut
from tests.bridge.test_rollback import roll
from tests.bridge.topics import all_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

MODES: dict[str, dict[str, Any]] = {
    "chain": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
}


async def published_again(server: Server, stream: str, seq: int, group: str) -> None:
    """A stored message, as ``millstream coordinator dlq replay`` publishes it."""
    client = await nats.connect(server.url)
    try:
        jetstream = client.jetstream()
        found = await jetstream.get_msg(stream, seq)
        kept = (found.headers or {}).items()
        headers = {name: value for name, value in kept if not name.startswith("Nats-")}
        headers["Millstream-Replay"] = group
        await jetstream.publish(str(found.subject), found.data or b"", headers=headers)
    finally:
        await client.close()


@pytest.mark.parametrize("mode", MODES)
async def test_a_bridge_goes_on_behind_its_newest_record_and_not_behind_a_letter(
    nats_server: Server, mock: Kafka, topic: str, mode: str
) -> None:
    mock.create_topic(topic, 1)
    records = [{"partition": 0, "key": b"k", "value": b"%d" % n} for n in range(10)]
    mock.produce(topic, records)
    route = a_route(topic, **MODES[mode])
    await move_all(mock.bootstrap, nats_server.url, route)
    await published_again(nats_server, route.stream.replace("{partition}", "0"), 3, "billing")
    mock.produce(topic, records)

    report = await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_records(nats_server.url, route, dense_partitions=1)
    assert report.records == 10
    assert offsets(stored) == {0: [*range(20)]}


async def test_a_proof_counts_it_as_replayed(nats_server: Server, mock: Kafka, topic: str) -> None:
    route = await fill(mock, nats_server, topic)
    await publish(nats_server, range(2))
    for seq in (5, await last_seq(nats_server)):  # a record, and a native message
        await published_again(nats_server, "FLIGHTS", seq, "billing")

    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert proof.equal, proof.difference
    assert (proof.apart.replayed, proof.foreign) == (2, 2)


async def last_seq(server: Server) -> int:
    client = await nats.connect(server.url)
    try:
        return (await client.jetstream().stream_info("FLIGHTS")).state.last_seq
    finally:
        await client.close()


async def test_it_does_not_go_back_to_kafka(nats_server: Server, mock: Kafka, topic: str) -> None:
    route = await fill(mock, nats_server, topic)
    await publish(nats_server, range(1))
    await back(mock, nats_server, route)
    for seq in (5, await last_seq(nats_server)):
        await published_again(nats_server, "FLIGHTS", seq, "billing")

    await back(mock, nats_server, route)

    assert [it.value for it in natives(all_records(mock, topic), route)] == [b"native 0"]


class Worker:
    """A worker that gives a message up at once, as long as ``is_bad`` of its value."""

    def __init__(self, server: Server, route: Route, group: str) -> None:
        self.seen: list[bytes] = []
        self.bad: set[bytes] = set()
        self._is_at_work = False
        self._group = Group(
            server.url,
            stream=route.stream,
            name=group,
            partitions=PARTITIONS,
            on_failure="dead-letter",
            max_attempts=1,
            retry_min=timedelta(milliseconds=10),
            on_assigned=self._note,
        )
        self._group.handler(key=route.subject)(self._handle)

    def _note(self, *_: object) -> None:
        self._is_at_work = True

    async def _handle(self, message: Message) -> None:
        if message.data in self.bad:
            self.bad.remove(message.data)
            raise ValueError("not this one")
        self.seen.append(message.data)

    async def until_seen(self, count: int) -> None:
        """Work until so many were handled and all that is bad was given up, and leave."""
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self._group.run(), name="worker")
            await until(lambda: self._is_at_work and len(self.seen) >= count and not self.bad)
            await self._group.stop()
            await running


async def cut_over_to_one_that_gives_up(
    kafka: Kafka, server: Server, topic: str
) -> tuple[Route, Worker]:
    """Twelve records, and a group that is to have all of them; its worker."""
    route = await fill(kafka, server, topic, records=0)
    await Worker(server, route, topic).until_seen(0)  # makes the group with its policy
    kafka.produce(
        topic,
        [{"partition": n % PARTITIONS, "key": b"K%d" % n, "value": b"%d" % n} for n in range(12)],
    )
    await move_all(kafka.bootstrap, server.url, route)
    commit(kafka, topic, topic, dict.fromkeys(range(PARTITIONS), 0))
    await cut(kafka, server, route, topic, apply=True)
    return route, Worker(server, route, topic)


async def test_a_group_is_switched_home_when_it_has_handled_its_letters(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """One of its records is given up, published again, and then handled."""
    route, worker = await cut_over_to_one_that_gives_up(mock, nats_server, topic)
    worker.bad = {b"4"}
    await worker.until_seen(11)
    await replay_all(nats_server, topic)

    refused = await roll(mock, nats_server, route, topic, apply=True)
    last = Worker(nats_server, route, topic)
    await last.until_seen(1)
    done = await roll(mock, nats_server, route, topic, apply=True)

    assert not refused.applied
    (problem,) = refused.problems
    assert problem.startswith("partition 1: the dead letter published again at sequence")
    assert problem.endswith("let the group handle it first")
    assert last.seen == [b"4"]
    assert done.problems == []
    assert {it.partition: it.after for it in done.partitions} == dict.fromkeys(range(PARTITIONS), 4)


async def test_a_letter_of_a_group_that_is_at_home_is_not_passed_over(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    route, worker = await cut_over_to_one_that_gives_up(mock, nats_server, topic)
    worker.bad = {b"4"}
    await worker.until_seen(11)
    await roll(mock, nats_server, route, topic, apply=True)
    await replay_all(nats_server, topic)
    mock.produce(topic, [{"partition": p, "value": b"new"} for p in range(PARTITIONS)])
    await move_all(mock.bootstrap, nats_server.url, route)
    commit(mock, topic, topic, dict.fromkeys(range(PARTITIONS), 5))

    proof = await cut(mock, nats_server, route, topic, apply=True)

    assert not proof.applied
    (problem,) = proof.problems
    assert "published again at sequence" in problem
    assert "would be missed: handle it by other means" in problem


async def replay_all(server: Server, group: str) -> None:
    """Have a group's dead letters, of which there is one, published again."""
    client = await nats.connect(server.url)
    try:
        target = Target(client, group)
        assert len((await list_letters(target)).letters) == 1
        await replay(target, ALL)
    finally:
        await client.close()
