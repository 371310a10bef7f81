"""The bridge on every server: each way to write, the proof, the way back, and what is beside."""

import asyncio
from typing import Any

import pytest

from millstream_bridge import BackBridge, Bridge, ConfigurationError, Route, verify
from millstream_bridge.moving.sharing import Members
from tests.bridge.moves import some_records, until, until_moved
from tests.bridge.test_back_fidelity import without_offsets
from tests.bridge.test_cutover import commit, cut, handled_by
from tests.bridge.test_parked import a_desk
from tests.bridge.test_rollback import roll
from tests.bridge.topics import all_records
from tests.helpers.kafka import Kafka, mock_kafka
from tests.helpers.versions import VersionServer

PARTITIONS = 3
MODES: dict[str, dict[str, Any]] = {
    "chain": {},
    "dense": {"mode": "dense", "stream": "{name}-{{partition}}"},
    "shared": {"shared": True},
}
WITH_BATCHES = ("2.12", "2.14", "2.15")


def route_of(name: str, mode: str, **changes: Any) -> Route:
    settings = {"stream": name, **MODES[mode], **changes}
    settings["stream"] = str(settings["stream"]).format(name=name)
    return Route(topic=name, subject=f"{name}.{{partition}}.{{key}}", **settings)


def produce(kafka: Kafka, topic: str) -> None:
    kafka.produce(
        topic,
        [{"partition": n % PARTITIONS, "key": b"k%d" % n, "value": b"%d" % n} for n in range(600)],
    )


@pytest.mark.parametrize("mode", list(MODES))
async def test_records_are_moved_over_a_restart(
    server: VersionServer, name: str, mode: str
) -> None:
    route = route_of(name, mode)
    with mock_kafka({name: PARTITIONS}) as kafka:
        if mode == "shared" and not server.version.startswith(WITH_BATCHES):
            with pytest.raises(ConfigurationError, match=r"2\.12 or later"):
                await Bridge(kafka=kafka.bootstrap, nats=server.url, route=route).run()
            return
        moved = 0
        for _ in range(2):
            await asyncio.to_thread(produce, kafka, name)
            bridge = Bridge(kafka=kafka.bootstrap, nats=server.url, route=route)
            moved += (await bridge.run(stop_at_end=True)).records
            server.kill()
            await server.restart()
        proof = await verify(kafka=kafka.bootstrap, nats=server.url, route=route)

    assert moved == 1_200
    assert (proof.equal, proof.records) == (True, 1_200), proof.difference


async def test_a_dense_stream_that_begins_later_survives_a_restart_or_is_refused(
    server: VersionServer, name: str
) -> None:
    route = route_of(name, "dense")
    with mock_kafka({name: 1}) as kafka:
        # The mock keeps 5 MiB of a partition.
        await asyncio.to_thread(kafka.produce, name, [{"value": b"x" * 60_000}] * 120)
        bridge = Bridge(kafka=kafka.bootstrap, nats=server.url, route=route)
        if server.version.startswith("2.10"):
            with pytest.raises(ConfigurationError, match=r"2\.11 or later"):
                await bridge.run()
            return
        await bridge.run(stop_at_end=True)
        server.kill()
        await server.restart()
        proof = await verify(kafka=kafka.bootstrap, nats=server.url, route=route)

    assert proof.equal, proof.difference
    assert proof.records > 0


@pytest.mark.parametrize("large", ["chunks", "object-store"])
async def test_records_come_back_as_they_were(server: VersionServer, name: str, large: str) -> None:
    copy = f"{name}-copy"
    with mock_kafka({name: PARTITIONS, copy: PARTITIONS}) as kafka:
        records = [*some_records(60, PARTITIONS), {"partition": 1, "value": b"x" * 2_500_000}]
        await asyncio.to_thread(kafka.produce, name, records)
        route = route_of(name, "chain", large=large)
        await Bridge(kafka=kafka.bootstrap, nats=server.url, route=route).run(stop_at_end=True)
        home = BackBridge(
            kafka=kafka.bootstrap, nats=server.url, route=route, topic=copy, everything=True
        )
        await home.run(stop_at_end=True)

        there, back = all_records(kafka, name), all_records(kafka, copy)

    assert len(there) == 61
    assert without_offsets(back) == without_offsets(there)


async def test_a_group_is_switched_there_and_home(server: VersionServer, name: str) -> None:
    with mock_kafka({name: PARTITIONS}) as kafka:
        values = [b"%d" % n for n in range(12)]
        kafka.produce(
            name,
            [
                {"partition": n % PARTITIONS, "key": b"k%d" % n, "value": value}
                for n, value in enumerate(values)
            ],
        )
        route = route_of(name, "chain")
        await Bridge(kafka=kafka.bootstrap, nats=server.url, route=route).run(stop_at_end=True)
        commit(kafka, name, name, {0: 0, 1: 2, 2: 4})

        there = await cut(kafka, server, route, name, apply=True)
        seen = await handled_by(server, route, name, 6)
        home = await roll(kafka, server, route, name, apply=True)

    assert (there.applied, there.problems) == (True, [])
    assert sorted(data for _, data in seen) == sorted(values[n] for n in (0, 3, 6, 9, 7, 10))
    assert (home.applied, home.problems) == (True, [])
    assert {it.partition: it.after for it in home.partitions} == {0: 4, 1: 4, 2: 4}


async def test_a_parked_record_is_repaired_and_replayed(server: VersionServer, name: str) -> None:
    with mock_kafka({name: 1}) as kafka:
        kafka.produce(
            name, [{"key": b"k", "value": b"x" * 1_048_500}, {"key": b"k", "value": b"v"}]
        )
        route = route_of(name, "chain", on_poison="park")
        report = await Bridge(kafka=kafka.bootstrap, nats=server.url, route=route).run(
            stop_at_end=True
        )
        desk = await a_desk(server.url, route)
        _, record = await desk.records.get(0, 0)
        await desk.records.repair(record._replace(value=b"repaired"))
        seq = await desk.records.replay(0, 0)
        proof = await verify(kafka=kafka.bootstrap, nats=server.url, route=route)
        parked = await desk.parked()
        await desk.connection.close()

    assert (report.records, report.parked, parked) == (2, 1, [])
    assert seq > 1
    assert proof.equal, proof.difference


async def test_tombstones_run_out_where_the_server_can_and_it_is_said_where_not(
    server: VersionServer, name: str
) -> None:
    with mock_kafka({name: 1}) as kafka:
        kafka.produce(name, [{"key": b"k", "value": b"v"}, {"key": b"k", "value": None}])
        route = route_of(name, "dense", tombstone_ttl_s=1)
        bridge = Bridge(kafka=kafka.bootstrap, nats=server.url, route=route)
        if server.version.startswith("2.10"):
            with pytest.raises(ConfigurationError, match=r"2\.11 or later"):
                await bridge.run(stop_at_end=True)
            return
        await bridge.run(stop_at_end=True)
        async with asyncio.timeout(30):
            while True:
                proof = await verify(kafka=kafka.bootstrap, nats=server.url, route=route)
                if proof.apart.expired:
                    break
                await asyncio.sleep(0.2)

    assert proof.equal, proof.difference


async def test_two_processes_share_the_partitions(server: VersionServer, name: str) -> None:
    with mock_kafka({name: PARTITIONS}) as kafka:
        route, url = route_of(name, "dense"), server.url
        async with (
            asyncio.timeout(120),
            Members(url, group=name, slots=PARTITIONS, member="a") as a,
            Members(url, group=name, slots=PARTITIONS, member="b") as b,
            asyncio.TaskGroup() as tasks,
        ):
            bridges = [
                Bridge(kafka=kafka.bootstrap, nats=url, route=route, share=it.share(route))
                for it in (a, b)
            ]
            for bridge in bridges:
                tasks.create_task(bridge.run(), name="bridge")
            await until(lambda: sorted(len(it.progress.epochs) for it in bridges) == [1, 2])
            await asyncio.to_thread(produce, kafka, name)
            await until_moved(bridges, PARTITIONS, 200)
            for bridge in bridges:
                bridge.stop()
        proof = await verify(kafka=kafka.bootstrap, nats=url, route=route)

    assert (proof.equal, proof.records) == (True, 600), proof.difference


async def test_a_replicated_stream_is_refused_in_one_line_where_it_cannot_be(
    server: VersionServer, name: str
) -> None:
    """Without batches by the bridge, and by a server that is alone."""
    reason = "cannot be made" if server.version.startswith(WITH_BATCHES) else r"2\.12 or later"
    route = route_of(name, "chain", replicas=3)
    with mock_kafka({name: 1}) as kafka:
        bridge = Bridge(kafka=kafka.bootstrap, nats=server.url, route=route)
        with pytest.raises(ConfigurationError, match=reason) as refused:
            await bridge.run()

    assert "\n" not in str(refused.value)
