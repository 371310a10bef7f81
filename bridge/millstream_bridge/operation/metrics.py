"""Prometheus metrics of a running bridge, read when somebody asks.

Labels ``route``, and ``partition`` for those marked p: ``millstream_bridge_lag_records`` p,
``millstream_bridge_lag_bytes`` p (an estimate from the mean size of what was moved),
``millstream_bridge_lag_seconds`` p, ``millstream_bridge_position_offset`` p,
``millstream_bridge_end_offset`` p, ``millstream_bridge_partition_epoch`` p (where several processes
share the route), ``millstream_bridge_state`` (``state``; 1 for the one it is in),
``millstream_bridge_failed`` (1: it ended with an error), and the counters
``millstream_bridge_records_total``, ``…_payload_bytes_total``, ``…_sessions_total``,
``…_refusals_total``, ``…_stood_back_total``, ``…_foreign_messages_total``, ``…_parked_total``,
``…_skipped_total``, ``…_missed_offsets_total``. Rates are Prometheus's: ``rate(…_records_total)``.
Beside them prometheus-client's ``process_*`` (memory, CPU).

Labels are bounded: partitions from PARTITIONS_MAX on are one series, ``partition="rest"``.
"""

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..moving.runner import Bridge, Progress, State
from .figures import Figures, partition_figures
from .fleet import Fleet

PARTITIONS_MAX = 1000
_PREFIX = "millstream_bridge_"

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
    ("refusals", "Sessions ended because somebody else wrote.", lambda it: it.refusals),
    ("stood_back", "Times it gave way to another bridge.", lambda it: it.stood_back),
    ("foreign_messages", "Stray messages met.", lambda it: len(it.foreign_seqs)),
    ("parked", "Records parked.", lambda it: it.parked),
    ("skipped", "Records skipped.", lambda it: it.skipped),
    ("missed_offsets", "Offsets that Kafka no longer had.", lambda it: it.missed),
)


class FleetMetrics(Collector):
    """The metrics of all bridges of a process, in a registry of their own."""

    def __init__(self, fleet: Fleet, *, now: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry()
        self._fleet = fleet
        self._now = now
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    async def page(self) -> bytes:
        """Print everything."""
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering does not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        bridges = {it.route.name: it for _, it in sorted(self._fleet.bridges.items())}
        figures = {name: partition_figures(it, self._now()) for name, it in bridges.items()}
        for name, text, read, together in _PER_PARTITION:
            yield _by_partition(name, text, figures, read, together)
        for name, text, count in _COUNTED:
            counter = CounterMetricFamily(_PREFIX + name, text, labels=("route",))
            for route, bridge in bridges.items():
                counter.add_metric((route,), count(bridge.progress))
            yield counter
        yield from self._states(bridges)

    def _states(self, bridges: Mapping[str, Bridge]) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            f"{_PREFIX}state", "What it is doing.", labels=("route", "state")
        )
        failed = GaugeMetricFamily(
            f"{_PREFIX}failed", "1: it ended with an error.", labels=("route",)
        )
        for route, bridge in bridges.items():
            for state in State:
                states.add_metric((route, state), bridge.progress.state is state)
            failed.add_metric((route,), self._fleet.error_of(bridge) is not None)
        return states, failed


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
