"""The figures of one running route, as metrics and status tell them."""

from typing import NamedTuple

from ..back.progress import BackProgress
from ..moving.runner import Bridge


class Figures(NamedTuple):
    """How one partition stands. ``lag_bytes`` is an estimate; None is not known.

    ``lag_seconds``: how old the newest record read is while there are later ones; 0.0 if there are
    none. ``epoch``: under which membership gave the partition to this process, if it did.
    """

    position: int | None
    end: int
    lag: int
    lag_bytes: int | None
    lag_seconds: float | None
    epoch: int | None


def partition_figures(bridge: Bridge, now_s: float) -> dict[int, Figures]:
    """The partitions that this process moves now; ``now_s`` is the clock of the records' times."""
    progress = bridge.progress
    found = {}
    for partition, end in sorted(progress.ends.items()):
        reached = progress.reached(partition)
        lag = 0 if reached is None else max(0, end - reached)
        found[partition] = Figures(
            position=progress.positions.get(partition),
            end=end,
            lag=lag,
            lag_bytes=_bytes(lag, progress.payload_bytes, progress.records),
            lag_seconds=_seconds(lag, progress.newest_ms.get(partition, -1), now_s),
            epoch=progress.epochs.get(partition),
        )
    return found


class BackFigures(NamedTuple):
    """How a way back stands; ``lag`` counts messages, those too that came from Kafka."""

    lag: int
    lag_bytes: int | None
    lag_seconds: float | None


def back_figures(progress: BackProgress, now_s: float) -> BackFigures:
    """Of all its streams together."""
    lag = progress.lag
    return BackFigures(
        lag=lag,
        lag_bytes=_bytes(lag, progress.payload_bytes, progress.records),
        lag_seconds=_seconds(lag, progress.newest_ns // 1_000_000 or -1, now_s),
    )


def _bytes(lag: int, payload_bytes: int, records: int) -> int | None:
    return round(lag * payload_bytes / records) if records else None


def _seconds(lag: int, newest_ms: int, now_s: float) -> float | None:
    if not lag:
        return 0.0
    return max(0.0, now_s - newest_ms / 1000) if newest_ms >= 0 else None
