"""Prometheus metrics of a running bridge, read when somebody asks.

`FleetMetrics`, of `run`: labels ``route``, and ``partition`` for those marked p:
``millstream_bridge_lag_records`` p, ``millstream_bridge_lag_bytes`` p (an estimate from the mean
size of what was moved), ``millstream_bridge_lag_seconds`` p, ``millstream_bridge_position_offset``
p, ``millstream_bridge_end_offset`` p, ``millstream_bridge_partition_epoch`` p (where several
processes share the route), ``millstream_bridge_state`` (``state``; 1 for the one it is in),
``millstream_bridge_failed`` (1: it ended with an error), and the counters
``millstream_bridge_records_total``, ``…_payload_bytes_total``, ``…_sessions_total``,
``…_refusals_total``, ``…_stood_back_total``, ``…_foreign_messages_total``, ``…_parked_total``,
``…_skipped_total``, ``…_missed_offsets_total``. Rates are Prometheus's: ``rate(…_records_total)``.
Labels are bounded: partitions from PARTITIONS_MAX on are one series, ``partition="rest"``.

`BackMetrics`, of the way back: labels ``route``, and ``stream`` for s:
``millstream_bridge_back_lag_messages``, ``…_back_lag_bytes`` (an estimate), ``…_back_lag_seconds``,
``…_back_position_seq`` s, ``…_back_state`` (``state``), ``…_back_failed``, and the counters
``…_back_records_total``, ``…_back_payload_bytes_total``, ``…_back_from_kafka_total``,
``…_back_passed_over_total``, ``…_back_transactions_total``, ``…_back_sessions_total``.

Beside either prometheus-client's ``process_*`` (memory, CPU).
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..back.progress import BackProgress
from ..back.runner import BackBridge
from ..errors import BridgeError
from ..moving.progress import Progress, State
from .figures import BackFigures, Figures, back_figures, partition_figures
from .fleet import Fleet

PARTITIONS_MAX = 1000
_PREFIX = "millstream_bridge_"
_BACK_PREFIX = "millstream_bridge_back_"

P = TypeVar("P", Progress, BackProgress)

_PER_PARTITION: tuple[
    tuple[str, str, Callable[[Figures], float | None], Callable[[Iterable[float]], float]], ...
] = (
    ("lag_records", "Offsets not stored yet.", lambda it: it.lag, sum),
    ("lag_bytes", "Payload of them, estimated.", lambda it: it.lag_bytes, sum),
    ("lag_seconds", "Age of the newest record read, while behind.", lambda it: it.lag_seconds, max),
    ("position_offset", "One past the newest stored offset.", lambda it: it.position, max),
    ("end_offset", "The topic's end as last heard.", lambda it: it.end, max),
    ("partition_epoch", "Epoch under which it is moved.", lambda it: it.epoch, max),
)
_COUNTED: tuple[tuple[str, str, Callable[[Progress], int]], ...] = (
    ("records", "Records stored.", lambda it: it.records),
    ("payload_bytes", "Payload of stored records.", lambda it: it.payload_bytes),
    ("sessions", "Publishing sessions begun.", lambda it: it.sessions),
    (
        "refusals",
        "Sessions the server refused to go on with, mostly because somebody else wrote.",
        lambda it: it.refusals,
    ),
    ("stood_back", "Times it gave way to another bridge.", lambda it: it.stood_back),
    ("foreign_messages", "Stray messages met.", lambda it: len(it.foreign_seqs)),
    ("parked", "Records parked.", lambda it: it.parked),
    ("skipped", "Records skipped.", lambda it: it.skipped),
    ("missed_offsets", "Offsets that Kafka no longer had.", lambda it: it.missed),
)
_BACK_GAUGES: tuple[tuple[str, str, Callable[[BackFigures], float | None]], ...] = (
    ("lag_messages", "Messages not read yet.", lambda it: it.lag),
    ("lag_bytes", "Payload of them, estimated.", lambda it: it.lag_bytes),
    ("lag_seconds", "Age of the newest message read, while behind.", lambda it: it.lag_seconds),
)
_BACK_COUNTED: tuple[tuple[str, str, Callable[[BackProgress], int]], ...] = (
    ("records", "Records written to Kafka.", lambda it: it.records),
    ("payload_bytes", "Payload of written records.", lambda it: it.payload_bytes),
    ("from_kafka", "Messages that Kafka had already.", lambda it: it.from_kafka),
    ("passed_over", "Messages that could not go back.", lambda it: it.passed_over),
    ("transactions", "Transactions committed.", lambda it: it.transactions),
    ("sessions", "Sessions begun.", lambda it: it.sessions),
)


class _Page(Collector):
    """Metrics in a registry of their own."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._now = now
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    async def page(self) -> bytes:
        """Print everything."""
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering does not collect."""
        return ()

    @abstractmethod
    def collect(self) -> Iterable[Metric]:
        """What is known now."""


class FleetMetrics(_Page):
    """Of all bridges of a process."""

    def __init__(self, fleet: Fleet, *, now: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        super().__init__(now)

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        bridges = {it.route.name: it for _, it in sorted(self._fleet.bridges.items())}
        figures = {name: partition_figures(it, self._now()) for name, it in bridges.items()}
        for name, text, read, together in _PER_PARTITION:
            yield _by_partition(name, text, figures, read, together)
        progress = {name: it.progress for name, it in bridges.items()}
        yield from _counters(_PREFIX, _COUNTED, progress)
        yield _states(_PREFIX, progress)
        errors = {route: self._fleet.error_of(it) for route, it in bridges.items()}
        yield _failures(_PREFIX, errors)


class BackMetrics(_Page):
    """Of the ways back of a process."""

    def __init__(
        self, bridges: Sequence[BackBridge], *, now: Callable[[], float] = time.time
    ) -> None:
        self._bridges = bridges
        super().__init__(now)

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        progress = {it.route.name: it.progress for it in self._bridges}
        for name, text, read in _BACK_GAUGES:
            gauge = GaugeMetricFamily(_BACK_PREFIX + name, text, labels=("route",))
            for route, it in progress.items():
                value = read(back_figures(it, self._now()))
                if value is not None:
                    gauge.add_metric((route,), value)
            yield gauge
        positions = GaugeMetricFamily(
            f"{_BACK_PREFIX}position_seq", "Next to be read.", labels=("route", "stream")
        )
        for route, it in progress.items():
            for at in it.positions.values():
                positions.add_metric((route, at.stream), at.next_seq)
        yield positions
        yield from _counters(_BACK_PREFIX, _BACK_COUNTED, progress)
        yield _states(_BACK_PREFIX, progress)
        yield _failures(_BACK_PREFIX, {route: it.error for route, it in progress.items()})


def _counters(
    prefix: str, counted: Iterable[tuple[str, str, Callable[[P], int]]], progress: Mapping[str, P]
) -> Iterable[Metric]:
    for name, text, count in counted:
        counter = CounterMetricFamily(prefix + name, text, labels=("route",))
        for route, it in progress.items():
            counter.add_metric((route,), count(it))
        yield counter


def _failures(prefix: str, errors: Mapping[str, BridgeError | None]) -> Metric:
    failed = GaugeMetricFamily(f"{prefix}failed", "1: it ended with an error.", labels=("route",))
    for route, error in errors.items():
        failed.add_metric((route,), error is not None)
    return failed


def _states(prefix: str, progress: Mapping[str, Progress | BackProgress]) -> Metric:
    states = GaugeMetricFamily(f"{prefix}state", "What it is doing.", labels=("route", "state"))
    for route, it in progress.items():
        for state in State:
            states.add_metric((route, state), it.state is state)
    return states


def _by_partition(
    name: str,
    text: str,
    figures: Mapping[str, Mapping[int, Figures]],
    read: Callable[[Figures], float | None],
    together: Callable[[Iterable[float]], float],
) -> Metric:
    gauge = GaugeMetricFamily(_PREFIX + name, text, labels=("route", "partition"))
    for route, of_route in figures.items():
        rest = []
        for partition, it in of_route.items():
            value = read(it)
            if value is None:
                continue
            if partition < PARTITIONS_MAX:
                gauge.add_metric((route, str(partition)), value)
            else:
                rest.append(value)
        if rest:
            gauge.add_metric((route, "rest"), together(rest))
    return gauge
