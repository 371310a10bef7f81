"""What Prometheus scrapes of a worker and of the coordinator service."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from nats.aio.client import Client
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from millstream_coordinator.events import Joined, PartitionMoved
from millstream_coordinator.group import Group
from millstream_coordinator.model import ControlRecord, PartitionRecord, Record
from millstream_coordinator.operation import metrics as metrics_module
from millstream_coordinator.operation.metrics import Metrics, ServiceMetrics
from millstream_coordinator.operation.service import Service
from millstream_coordinator.operation.settings import CoordinatorSettings
from millstream_coordinator.sinks import MemorySink
from millstream_coordinator.stats import HANDLER_BOUNDS_S, GroupStats, PartitionStats
from tests.coordinator.made_group import make_group, make_letters, make_stream, served
from tests.coordinator.test_web import get

Labels = frozenset[tuple[str, str]]


def partition_stats(**more: Any) -> PartitionStats:
    some: dict[str, Any] = {
        "epoch": 7,
        "lag": 30,
        "in_flight": 5,
        "lanes": 2,
        "deepest_lane": 4,
        "oldest_s": 1.5,
        "is_paused": False,
        "is_stopped": False,
        "parked_keys": 1,
    }
    return PartitionStats(**some | more)


def group_stats(partitions: Mapping[int, PartitionStats], **more: Any) -> GroupStats:
    names = (
        *("handled", "retries", "dead_letters", "parked", "refused", "overdue"),
        *("moves_in", "moves_out", "lost", "fenced", "running", "waiting"),
    )
    counts: dict[str, Any] = {name: number for number, name in enumerate(names, 1)}
    counts["handler_buckets"] = (1, 0, 2, *[0] * (len(HANDLER_BOUNDS_S) - 3), 4)
    counts["handler_seconds"] = 60.5
    return GroupStats(partitions=partitions, **counts | more)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """A worker that has these numbers."""
    one = Group("nats://nowhere", stream="S", name="g", partitions=2, member="w")
    stats = group_stats({0: partition_stats(), 3: partition_stats(lag=None, is_stopped=True)})
    monkeypatch.setattr(one, "stats", lambda: stats)
    return one


def samples(page: bytes) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            values[frozenset(sample.labels.items())] = sample.value
    return found


def at(found: dict[str, dict[Labels, float]], name: str, **labels: str) -> float:
    return found[name][frozenset(labels.items())]


async def scrape(group: Group, *sinks: MemorySink) -> dict[str, dict[Labels, float]]:
    registry = CollectorRegistry()
    async with Metrics(group, sinks=sinks, registry=registry).serve("127.0.0.1:0") as url:
        status, _, body = await get(url, "/metrics")
    assert status.endswith("200 OK")
    return samples(body)


async def test_a_workers_partitions_are_told_one_by_one(group: Group) -> None:
    found = await scrape(group)

    assert at(found, "millstream_lag_messages", group="g", partition="0") == 30
    assert len(found["millstream_lag_messages"]) == 1  # of partition 3 it is not known
    assert at(found, "millstream_in_flight_messages", group="g", partition="3") == 5
    assert at(found, "millstream_lane_depth_messages", group="g", partition="0") == 4
    assert at(found, "millstream_oldest_message_seconds", group="g", partition="0") == 1.5
    assert at(found, "millstream_partition_stopped", group="g", partition="3") == 1
    assert at(found, "millstream_partitions", group="g") == 2


async def test_a_workers_counters_are_told(group: Group) -> None:
    found = await scrape(group)

    counters = {
        "handled_messages": 1,
        "retries": 2,
        "dead_letters": 3,
        "parked_messages": 4,
        "refused_effects": 5,
        "overdue_handlers": 6,
        "fences": 10,
    }
    told = {it: at(found, f"millstream_{it}_total", group="g") for it in counters}
    assert told == counters
    moves = {
        it: at(found, "millstream_moves_total", group="g", direction=it)
        for it in ("in", "out", "lost")
    }
    assert moves == {"in": 7, "out": 8, "lost": 9}
    assert at(found, "millstream_running_handlers", group="g") == 11


async def test_handler_times_are_a_histogram(group: Group) -> None:
    found = await scrape(group)

    buckets = found["millstream_handler_seconds_bucket"]
    assert at(found, "millstream_handler_seconds_bucket", group="g", le="0.001") == 1
    assert at(found, "millstream_handler_seconds_bucket", group="g", le="0.005") == 3
    assert at(found, "millstream_handler_seconds_bucket", group="g", le="+Inf") == 7
    assert at(found, "millstream_handler_seconds_count", group="g") == 7
    assert at(found, "millstream_handler_seconds_sum", group="g") == 60.5
    assert len(buckets) == len(HANDLER_BOUNDS_S) + 1


async def test_a_sink_tells_what_it_refused(group: Group) -> None:
    sink = MemorySink()
    sink.counters.attempts, sink.counters.applied = 9, 5
    sink.counters.refused_repeat, sink.counters.refused_stale = 3, 1

    found = await scrape(group, sink)

    assert at(found, "millstream_sink_applied_total", group="g", sink=sink.name) == 5
    for why, count in (("repeat", 3), ("stale", 1)):
        labels = {"group": "g", "sink": sink.name, "why": why}
        assert at(found, "millstream_sink_refused_total", **labels) == count


async def test_partitions_beyond_a_number_are_one_series(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "PARTITIONS_MAX", 2)
    stats = group_stats({it: partition_stats(lag=it, oldest_s=it) for it in range(5)})
    monkeypatch.setattr(group, "stats", lambda: stats)

    found = await scrape(group)

    assert len(found["millstream_lag_messages"]) == 3
    assert at(found, "millstream_lag_messages", group="g", partition="rest") == 9
    assert at(found, "millstream_oldest_message_seconds", group="g", partition="rest") == 4


async def test_two_groups_of_one_process_share_a_registry(group: Group) -> None:
    registry = CollectorRegistry()
    other = Group("nats://nowhere", stream="S", name="other", partitions=2, member="w")
    Metrics(group, registry=registry)

    async with Metrics(other, registry=registry).serve("127.0.0.1:0") as url:
        _, _, body = await get(url, "/metrics")

    partitions = samples(body)["millstream_partitions"]
    assert {dict(it)["group"] for it in partitions} == {"g", "other"}


async def test_a_worker_that_is_not_in_its_group_is_not_healthy(group: Group) -> None:
    async with Metrics(group, registry=CollectorRegistry()).serve("127.0.0.1:0") as url:
        status, _, body = await get(url, "/healthz")

    assert status.startswith("HTTP/1.1 503")
    assert json.loads(body)["schema"] == "millstream.worker.healthz/1"


async def test_closed_metrics_are_told_no_more(group: Group) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(group, registry=registry)

    metrics.close()

    assert list(registry.collect()) == []


# ---- the service


class Leading:
    """A member that leads."""

    is_leader = True


async def test_a_service_tells_of_its_groups(client: Client, name: str) -> None:
    await make_stream(client, name, ["0.a", "1.x", "1.y"])
    records: dict[str, Record] = {**served(["a"]), "ctl": ControlRecord(paused=(1,))}
    records["part.1"] = PartitionRecord(epoch=1, stopped_seq=2)
    await make_group(client, name, records, partitions=2)
    await make_letters(client, name, "k")
    service = Service(client, CoordinatorSettings())
    service.led[name] = Leading()  # type: ignore[assignment]
    service.troubles["bad"] = "no stream"

    found = samples(await ServiceMetrics(service).page())

    lags = [at(found, "millstream_group_lag_messages", group=name, partition=it) for it in "01"]
    states = {
        dict(labels)["state"]: value
        for labels, value in found["millstream_group_partitions"].items()
    }
    assert lags == [1, 2]
    assert states == {"owned": 1, "moving": 0, "free": 1, "paused": 1, "stopped": 1}
    assert at(found, "millstream_group_members", group=name) == 1
    assert at(found, "millstream_group_letters", group=name) == 1
    assert at(found, "millstream_coordinator_leads", group=name) == 1
    assert at(found, "millstream_coordinator_trouble", group="bad") == 1
    assert at(found, "millstream_coordinator_connected") == 1


async def test_a_group_that_cannot_be_read_spoils_no_page(client: Client, name: str) -> None:
    service = Service(client, CoordinatorSettings())
    service.led[name] = Leading()  # type: ignore[assignment]

    found = samples(await ServiceMetrics(service).page())

    assert at(found, "millstream_coordinator_leads", group=name) == 1
    assert "millstream_group_members" not in found


async def test_moves_that_come_together_are_one_rebalance(client: Client) -> None:
    now = 0.0
    metrics = ServiceMetrics(Service(client, CoordinatorSettings()), now=lambda: now)

    def move(cause: str) -> None:
        event = PartitionMoved(partition=0, epoch=1, owner="a", previous="b", cause=cause)
        metrics.count("g", event)

    for at_s, cause in ((0.0, "left"), (0.5, "left"), (1.2, "left"), (5.0, "drained")):
        now = at_s
        move(cause)
    metrics.count("g", Joined(member="a"))
    found = samples(await metrics.page())

    assert at(found, "millstream_rebalances_total", group="g") == 2
    assert at(found, "millstream_partition_moves_total", group="g", cause="left") == 3
    assert at(found, "millstream_events_total", group="g", event="partition_moved") == 4
    assert at(found, "millstream_events_total", group="g", event="joined") == 1
