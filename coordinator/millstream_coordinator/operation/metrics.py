"""Prometheus metrics of a worker (`Metrics`) and of the coordinator service (`ServiceMetrics`).

A worker::

    group = Group(…)
    metrics = Metrics(group, sinks=[sink])
    async with metrics.serve("0.0.0.0:9464"):      # /metrics and /healthz
        await group.run()

or, where an application has an endpoint of its own, `Metrics` is a collector in prometheus-client's
default registry like any other. Nothing is computed before somebody asks.

Worker, labels ``group`` (and ``partition`` for those marked p): ``millstream_lag_messages`` p,
``millstream_in_flight_messages`` p, ``millstream_lanes`` p, ``millstream_lane_depth_messages`` p,
``millstream_oldest_message_seconds`` p, ``millstream_partition_epoch`` p,
``millstream_partition_paused`` p, ``millstream_partition_stopped`` p, ``millstream_parked_keys`` p,
``millstream_partitions``, ``millstream_running_handlers``, ``millstream_waiting_messages``,
``millstream_handled_messages_total``, ``millstream_retries_total``,
``millstream_dead_letters_total``, ``millstream_parked_messages_total``,
``millstream_overdue_handlers_total``, ``millstream_refused_effects_total``,
``millstream_moves_total`` (``direction``: in, out, lost), ``millstream_fences_total``,
``millstream_handler_seconds`` (histogram); per ``sink``: ``millstream_sink_attempts_total``,
``millstream_sink_applied_total``, ``millstream_sink_refused_total`` (``why``: repeat, stale).

Service, label ``group``: ``millstream_coordinator_connected`` (no label),
``millstream_coordinator_joined``, ``millstream_coordinator_leads``,
``millstream_coordinator_trouble``, ``millstream_events_total`` (``event``),
``millstream_rebalances_total``, ``millstream_partition_moves_total`` (``cause``); and of each
group, read when it is asked for, ``millstream_group_lag_messages`` p, ``millstream_group_members``,
``millstream_group_partitions`` (``state``: owned, moving, free, paused, stopped),
``millstream_group_letters``. Several coordinators tell the same of a group: take the ``max``.

Labels are bounded: partitions from PARTITIONS_MAX on are one series, ``partition="rest"`` (sums;
the highest of ages and epochs). Member names, keys and error texts are never labels.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..errors import GroupError
from ..events import GroupEvent, PartitionMoved, event_name
from ..group import Group
from ..sinks.contract import Sink
from ..stats import HANDLER_BOUNDS_S, GroupStats, PartitionStats
from .overview import Overview, read_overview
from .service import Service
from .settings import http_address
from .target import side_by_side
from .web import Pages

PARTITIONS_MAX = 1000
REBALANCE_GAP_S = 1.0
"""Moves of a group that come closer together than this are one rebalance."""
_THREAD_RACES = 5


class Metrics(Collector):
    """The metrics of one member of a group, and of its sinks."""

    def __init__(
        self,
        group: Group,
        *,
        sinks: Sequence[Sink[Any]] = (),
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Register with ``registry``; several groups of one process may share it."""
        self._group = group
        self._sinks = tuple(sinks)
        self._registry = registry
        registry.register(self)

    def close(self) -> None:
        """Take the metrics out of the registry."""
        self._registry.unregister(self)

    def serve(self, address: str) -> AbstractAsyncContextManager[str]:
        """Serve ``/metrics`` (all of the registry) and ``/healthz`` on ``HOST:PORT``.

        Gives the URL. Raises ValueError for what is no address, GroupError when it is taken.
        """
        return Pages(self._page, self._health).serve(*http_address(address))

    async def _page(self) -> bytes:
        return generate_latest(self._registry)

    def _health(self) -> tuple[bool, dict[str, object]]:
        group = self._group
        is_well = group.is_healthy
        return is_well, {
            "schema": "millstream.worker.healthz/1",
            "status": "ok" if is_well else "trouble",
            "group": group.name,
            "member": group.member,
            "leads": group.is_leader,
            "partitions": group.partitions,
        }

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering does not collect, and two groups may share names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Everything, from one look at the member's numbers."""
        name = self._group.name
        stats = self._stats()
        yield from _partition_metrics(name, stats.partitions)
        yield from _member_metrics(name, stats)
        yield _handler_times(name, stats)
        if self._sinks:
            yield from _sink_metrics(name, self._sinks)

    def _stats(self) -> GroupStats:
        """Look at the member; a scrape may come on another thread than its loop's."""
        for _ in range(_THREAD_RACES):
            try:
                return self._group.stats()
            except RuntimeError:  # a dictionary changed its size under the copy
                continue
        return self._group.stats()


def _gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"millstream_{name}", text, labels=labels)


def _counter(name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"millstream_{name}", text, labels=labels)


_PER_PARTITION: tuple[
    tuple[str, str, Callable[[PartitionStats], float | None], Callable[[Iterable[float]], float]],
    ...,
] = (
    ("lag_messages", "Messages not handled yet.", lambda it: it.lag, sum),
    ("in_flight_messages", "Delivered and not handled.", lambda it: it.in_flight, sum),
    ("lanes", "Keys with messages in hand.", lambda it: it.lanes, sum),
    ("lane_depth_messages", "Messages in the longest lane.", lambda it: it.deepest_lane, max),
    ("oldest_message_seconds", "Age of the oldest one in hand.", lambda it: it.oldest_s, max),
    ("partition_epoch", "Epoch under which it is served.", lambda it: it.epoch, max),
    ("partition_paused", "1: an operator paused it.", lambda it: it.is_paused, max),
    ("partition_stopped", "1: a failing message stopped it.", lambda it: it.is_stopped, max),
    ("parked_keys", "Keys whose messages are parked.", lambda it: it.parked_keys, sum),
)


def _partition_metrics(group: str, partitions: Mapping[int, PartitionStats]) -> Iterable[Metric]:
    for name, text, read, together in _PER_PARTITION:
        values = {number: read(it) for number, it in partitions.items()}
        known = {number: float(it) for number, it in values.items() if it is not None}
        yield _by_partition(_gauge(name, text, ("group", "partition")), group, known, together)


def _by_partition(
    family: GaugeMetricFamily,
    group: str,
    values: Mapping[int, float],
    together: Callable[[Iterable[float]], float],
) -> GaugeMetricFamily:
    rest = []
    for number, value in values.items():
        if number < PARTITIONS_MAX:
            family.add_metric((group, str(number)), value)
        else:
            rest.append(value)
    if rest:
        family.add_metric((group, "rest"), together(rest))
    return family


def _member_metrics(group: str, stats: GroupStats) -> Iterable[Metric]:
    gauges = (
        ("partitions", "Partitions this member serves.", len(stats.partitions)),
        ("running_handlers", "Handler calls under way.", stats.running),
        ("waiting_messages", "Messages in lanes that are not being handled.", stats.waiting),
    )
    for name, text, value in gauges:
        gauge = _gauge(name, text, ("group",))
        gauge.add_metric((group,), value)
        yield gauge
    counters = (
        ("handled_messages", "Messages whose handler returned.", stats.handled),
        ("retries", "Handler calls that raised and are repeated.", stats.retries),
        ("dead_letters", "Messages given up.", stats.dead_letters),
        ("parked_messages", "Messages stored because their key is parked.", stats.parked),
        ("overdue_handlers", "Handler calls past their deadline.", stats.overdue),
        ("refused_effects", "Effects a sink refused for their epoch.", stats.refused),
        ("fences", "Times this member could not confirm what it owns.", stats.fenced),
    )
    for name, text, value in counters:
        counter = _counter(name, text, ("group",))
        counter.add_metric((group,), value)
        yield counter
    moves = _counter("moves", "Partitions that came, went, or were taken.", ("group", "direction"))
    for direction, value in (
        ("in", stats.moves_in),
        ("out", stats.moves_out),
        ("lost", stats.lost),
    ):
        moves.add_metric((group, direction), value)
    yield moves


def _handler_times(group: str, stats: GroupStats) -> Metric:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*HANDLER_BOUNDS_S, None), stats.handler_buckets, strict=True):
        total += count
        buckets.append(("+Inf" if bound is None else str(float(bound)), total))
    times = HistogramMetricFamily(
        "millstream_handler_seconds", "How long handler calls take.", labels=("group",)
    )
    times.add_metric((group,), buckets, stats.handler_seconds)
    return times


def _sink_metrics(group: str, sinks: Sequence[Sink[Any]]) -> Iterable[Metric]:
    labels = ("group", "sink")
    attempts = _counter("sink_attempts", "Effects tried.", labels)
    applied = _counter("sink_applied", "Effects applied.", labels)
    refused = _counter("sink_refused", "Effects refused.", (*labels, "why"))
    for sink in sinks:
        counters = sink.counters
        attempts.add_metric((group, sink.name), counters.attempts)
        applied.add_metric((group, sink.name), counters.applied)
        refused.add_metric((group, sink.name, "repeat"), counters.refused_repeat)
        refused.add_metric((group, sink.name, "stale"), counters.refused_stale)
    return attempts, applied, refused


class ServiceMetrics(Collector):
    """The metrics of a coordinator service, in a registry of their own."""

    def __init__(self, service: Service, *, now: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._service = service
        self._now = now
        self._events: Counter[tuple[str, str]] = Counter()
        self._moves: Counter[tuple[str, str]] = Counter()
        self._rebalances: Counter[str] = Counter()
        self._moved_at: dict[str, float] = {}
        self._overviews: dict[str, Overview] = {}
        self.registry.register(self)

    def count(self, group: str, event: GroupEvent) -> None:
        """Count an event of a group; every member of it tells each move, this process once."""
        self._events[group, event_name(event)] += 1
        if isinstance(event, PartitionMoved):
            self._moves[group, event.cause or "unknown"] += 1
            now = self._now()
            if now - self._moved_at.get(group, float("-inf")) > REBALANCE_GAP_S:
                self._rebalances[group] += 1
            self._moved_at[group] = now

    async def page(self) -> bytes:
        """Look at the groups, and print everything."""

        async def look(name: str) -> Overview | None:
            try:
                return await read_overview(self._service.target(name), listen=False)
            except GroupError:  # the other metrics say that something is wrong
                return None

        found = await side_by_side(look(name) for name in self._service.led)
        self._overviews = {it.group: it for it in found if it is not None}
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering does not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        service = self._service
        connected = _gauge("coordinator_connected", "1: the NATS server is there.", ())
        connected.add_metric((), service.connection.is_connected)
        yield connected
        joined = _gauge("coordinator_joined", "1: this process is a member.", ("group",))
        leads = _gauge("coordinator_leads", "1: this process leads the group.", ("group",))
        trouble = _gauge("coordinator_trouble", "1: the group cannot be led.", ("group",))
        for name in sorted({*service.led, *service.troubles}):
            group = service.led.get(name)
            joined.add_metric((name,), name in service.names)
            leads.add_metric((name,), group is not None and group.is_leader)
            trouble.add_metric((name,), name in service.troubles)
        yield from (joined, leads, trouble)
        yield from self._counted()
        yield from _overview_metrics(self._overviews)

    def _counted(self) -> Iterable[Metric]:
        events = _counter("events", "What happened.", ("group", "event"))
        for labels, count in sorted(self._events.items()):
            events.add_metric(labels, count)
        moves = _counter("partition_moves", "Changes of owner.", ("group", "cause"))
        for labels, count in sorted(self._moves.items()):
            moves.add_metric(labels, count)
        rebalances = _counter("rebalances", "Bursts of changes of owner.", ("group",))
        for group, count in sorted(self._rebalances.items()):
            rebalances.add_metric((group,), count)
        return events, moves, rebalances


def _overview_metrics(overviews: Mapping[str, Overview]) -> Iterable[Metric]:
    lag = _gauge("group_lag_messages", "Messages not handled yet.", ("group", "partition"))
    members = _gauge("group_members", "Members, those that only lead too.", ("group",))
    partitions = _gauge("group_partitions", "Partitions by state.", ("group", "state"))
    letters = _gauge("group_letters", "Dead letters and parked messages.", ("group",))
    for name, overview in sorted(overviews.items()):
        lags = {row.partition: float(row.lag) for row in overview.partitions if row.lag is not None}
        _by_partition(lag, name, lags, sum)
        members.add_metric((name,), len(overview.members))
        letters.add_metric((name,), overview.letters)
        states = Counter(row.state for row in overview.partitions)
        states["paused"] = sum(row.is_paused for row in overview.partitions)
        states["stopped"] = sum(row.stopped_seq is not None for row in overview.partitions)
        for state in ("owned", "moving", "free", "paused", "stopped"):
            partitions.add_metric((name, state), states[state])
    return lag, members, partitions, letters
