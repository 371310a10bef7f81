"""What a running bridge shows people: a table per partition on a terminal, lines elsewhere."""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from millstream_coordinator.operation.texts import table

from ..errors import BridgeError
from ..kafka.admin import KafkaAdmin
from ..model import Watermarks
from .fleet import Fleet
from .process import tell

if TYPE_CHECKING:
    from rich.table import Table

LINE_EVERY_S: Final = 5.0
_DRAW_EVERY_S: Final = 0.5
_LOOK_EVERY_S: Final = 2.0
_SMOOTH_S: Final = 5.0
_COLUMNS: Final = ("TOPIC", "PARTITION", "STORED TO", "END", "DONE", "LAG", "RATE/S", "ETA")


@dataclass(slots=True)
class Meter:
    """One partition's pace: positions at moments in, a smoothed rate out. Pure."""

    position: int = 0
    per_second: float = 0.0
    _at: float | None = None

    def note(self, position: int, now: float) -> None:
        """Where it stands now; seconds of any clock."""
        if self._at is not None and now > self._at:
            share = min(1.0, (now - self._at) / _SMOOTH_S)
            rate = max(0, position - self.position) / (now - self._at)
            self.per_second += share * (rate - self.per_second)
        self.position, self._at = position, now

    def eta_s(self, end: int) -> float | None:
        """Seconds until ``end`` at this pace; None where it does not move."""
        left = end - self.position
        if left <= 0:
            return 0.0
        return left / self.per_second if self.per_second >= 1 else None


class Live:
    """The figures of a fleet, told until cancelled; the run goes on if the terminal goes away."""

    def __init__(self, fleet: Fleet, admin: KafkaAdmin) -> None:
        self._fleet = fleet
        self._admin = admin
        self._marks: Mapping[str, Mapping[int, Watermarks]] = {}
        self._meters: dict[tuple[str, int], Meter] = {}
        self._before: dict[str, int] = {}

    async def run(self) -> None:
        """Tell on standard error until cancelled."""
        if sys.stderr.isatty():
            with suppress(OSError):
                await asyncio.gather(self._look(), self._draw())
            return
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            self._lines()

    def _lines(self) -> None:
        for topic, bridge in self._fleet.bridges.items():
            progress = bridge.progress
            new = progress.records - self._before.get(topic, 0)
            if new:
                tell(
                    f"bridge {topic} → {bridge.route.stream}: {progress.records} stored,"
                    f" {new / LINE_EVERY_S:,.0f}/s, {progress.lag} behind,"
                    f" {progress.sessions} sessions"
                )
            self._before[topic] = progress.records

    async def _look(self) -> None:
        """Ask for the ends of all partitions again and again; an old answer serves meanwhile."""
        while True:
            with suppress(BridgeError):
                topics = await self._admin.topics()
                mine = {t: topics[t].partitions for t in self._fleet.bridges if t in topics}
                self._marks = await self._admin.watermarks(mine)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _draw(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - 0.1 s that only terminals need
        from rich.live import Live as Drawing  # noqa: PLC0415

        console = Console(stderr=True)
        with Drawing(console=console, auto_refresh=False, transient=True) as drawing:
            while True:
                drawing.update(self.table(console.height - 3), refresh=True)
                await asyncio.sleep(_DRAW_EVERY_S)

    def rows(self, now: float) -> list[tuple[str, ...]]:
        """A row for each partition, in order; ``now`` in seconds of any clock."""
        rows: list[tuple[str, ...]] = []
        for topic, bridge in sorted(self._fleet.bridges.items()):
            progress = bridge.progress
            for partition, mark in sorted(self._marks.get(topic, {}).items()):
                position = max(progress.reached(partition) or 0, mark.low)
                meter = self._meters.setdefault((topic, partition), Meter(position))
                meter.note(position, now)
                size = mark.high - mark.low
                done = 1.0 if size <= 0 else min(1.0, (position - mark.low) / size)
                rows.append(
                    (
                        *(topic, str(partition), f"{position:,}", f"{mark.high:,}"),
                        *(f"{done:.1%}", f"{max(0, mark.high - position):,}"),
                        *(f"{meter.per_second:,.0f}", eta_text(meter.eta_s(mark.high))),
                    )
                )
        return rows

    def table(self, rows_max: int) -> "Table":
        """What is drawn; of many partitions those that are furthest behind."""
        rows = self.rows(time.monotonic())
        shown, caption = rows, None
        if len(rows) > rows_max > 0:
            lag = _COLUMNS.index("LAG")
            shown = sorted(rows, key=lambda row: -int(row[lag].replace(",", "")))[:rows_max]
            caption = f"{len(rows) - rows_max} partitions that are less behind are not shown"
        drawn = table(_COLUMNS, shown)
        drawn.caption = caption
        return drawn


def eta_text(seconds: float | None) -> str:
    """Time left, for people."""
    if seconds is None:
        return "?"
    if not seconds:
        return "-"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{whole % 60:02}"
