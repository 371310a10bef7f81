"""A wall clock that jumps changes nothing that is moved, and figures stay figures."""

import itertools
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from millstream_bridge import Bridge, KafkaSource
from millstream_bridge.operation.figures import Figures, partition_figures
from millstream_bridge.operation.fleet import Fleet
from millstream_bridge.operation.metrics import FleetMetrics
from millstream_bridge.operation.status import fleet_status
from millstream_bridge.ports import Polled
from tests.bridge.moves import a_route, move_all, offsets, some_records, stored_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 2
COUNT = 6_000
DAY_S, YEAR_S = 86_400.0, 31_536_000.0


class Jumping:
    """A wall clock that is right, a day behind and a year ahead, each time another."""

    def __init__(self) -> None:
        self._right = time.time
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self._right() + (0.0, -DAY_S, YEAR_S)[self.asked % 3]


class Watched(KafkaSource):
    """Looks around before each poll: in the middle of the move, whatever the machine's speed."""

    def __init__(self, kafka: str, topic: str, look: Callable[[], None]) -> None:
        super().__init__(kafka, topic)
        self._look = look

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        self._look()
        return await super().poll(min(records_max, 500), wait_s)


@pytest.mark.parametrize(
    "changes",
    [{}, {"shared": True}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}],
    ids=["chain", "shared", "dense"],
)
async def test_a_clock_that_jumps_while_records_are_moved(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mock.create_topic(topic, PARTITIONS)
    now_ms = round(time.time() * 1000)
    records = some_records(COUNT, PARTITIONS)
    for n, record in enumerate(records):
        # Of last year, of this moment, of a clock a week ahead, and without a time.
        record["timestamp"] = (record["timestamp"], now_ms, now_ms + 604_800_000, 0)[n % 4]
    mock.produce(topic, records)
    clock = Jumping()
    monkeypatch.setattr(time, "time", clock)
    seen: list[Figures] = []
    pages: list[str] = []

    def look() -> None:
        seen.extend(partition_figures(bridge, time.time()).values())
        fleet = SimpleNamespace(bridges={topic: bridge}, error_of=lambda _: None, members=None)
        [status] = fleet_status(cast(Fleet, fleet))
        assert status["lag"] >= 0
        seen.extend(Figures(**it) for it in status["partitions"].values())
        families = FleetMetrics(cast(Fleet, fleet), now=time.time).collect()
        pages.extend(f"{it.name} {it.value}" for family in families for it in family.samples)

    route = a_route(topic, **changes)
    bridge = Bridge(source=Watched(mock.bootstrap, topic, look), nats=nats_server.url, route=route)

    report = await bridge.run(stop_at_end=True)

    assert (report.records, report.sessions, report.refusals) == (COUNT, 1, 0)
    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {p: list(range(COUNT // PARTITIONS)) for p in range(PARTITIONS)}
    ages = [it.lag_seconds for it in seen if it.lag and it.lag_seconds is not None]
    assert ages
    assert all(0 <= age < math.inf for age in ages)
    assert all(it.lag >= 0 and (it.lag_bytes or 0) >= 0 for it in seen)
    assert not [it for it in pages if "nan" in it.lower() or " -" in it]


def test_a_record_of_a_clock_that_is_ahead_is_no_younger_than_now() -> None:
    progress = SimpleNamespace(
        ends={0: 9},
        reached=lambda _: 4,
        positions={0: 4},
        payload_bytes=100,
        records=4,
        newest_ms={0: 2_000},
        epochs={},
    )

    figures = partition_figures(cast(Bridge, SimpleNamespace(progress=progress)), 1.0)[0]

    assert (figures.lag, figures.lag_seconds) == (5, 0.0)


@pytest.mark.parametrize("changes", [{}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}])
async def test_a_clock_that_leaps_ahead_lets_no_answer_be_late(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A day with each look at it: by such a clock every answer would be."""
    mock.create_topic(topic, PARTITIONS)
    mock.produce(topic, some_records(COUNT, PARTITIONS))
    right, days = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: right() + next(days) * DAY_S)

    report = await move_all(mock.bootstrap, nats_server.url, a_route(topic, **changes))

    assert (report.records, report.sessions, report.refusals) == (COUNT, 1, 0)
