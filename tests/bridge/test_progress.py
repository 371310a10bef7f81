"""What a running bridge shows: lines, and a table with a row for each partition."""

import errno
import io
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from millstream_bridge.kafka.admin import KafkaAdmin
from millstream_bridge.model import Watermarks
from millstream_bridge.moving.progress import Progress
from millstream_bridge.operation.fleet import Fleet
from millstream_bridge.operation.live import Live, Meter, eta_text
from millstream_bridge.operation.process import tell


def a_live(**positions: dict[int, int]) -> Live:
    bridges = {
        topic: SimpleNamespace(
            progress=Progress(records=7, sessions=1, positions=known),
            route=SimpleNamespace(topic=topic, stream="S"),
        )
        for topic, known in positions.items()
    }
    return Live(cast(Fleet, SimpleNamespace(bridges=bridges)), cast(KafkaAdmin, SimpleNamespace()))


class OnAFullDisk(io.StringIO):
    def write(self, text: str, /) -> int:
        raise OSError(errno.ENOSPC, text)


def test_a_line_that_cannot_be_written_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", OnAFullDisk())

    tell("flights: 7 stored")


def test_a_meter_that_moves_evenly_tells_that_rate_and_what_is_left() -> None:
    meter = Meter(0)
    for second in range(100):
        meter.note(10 * second, float(second))

    assert meter.per_second == pytest.approx(10, rel=0.01)
    assert meter.eta_s(990 + 50) == pytest.approx(5, rel=0.01)
    assert meter.eta_s(990) == 0
    assert Meter(0).eta_s(1) is None


def test_each_partition_has_a_row_with_what_is_done_and_what_is_left() -> None:
    shown = a_live(b={0: 5_000}, a={1: 70, 2: 8})
    of_a = shown._fleet.bridges["a"].progress
    of_a.read[2], of_a.due[2] = 10, 8  # two offsets at its end have no record
    shown._marks = {
        "a": {0: Watermarks(3, 3), 1: Watermarks(20, 120), 2: Watermarks(0, 10)},
        "b": {0: Watermarks(0, 20_000)},
    }

    shown.rows(0.0)
    shown._fleet.bridges["b"].progress.positions[0] = 10_000
    rows = shown.rows(5.0)

    assert rows == [
        ("a", "0", "3", "3", "100.0%", "0", "0", "-"),
        ("a", "1", "70", "120", "50.0%", "50", "0", "?"),
        ("a", "2", "10", "10", "100.0%", "0", "0", "-"),
        ("b", "0", "10,000", "20,000", "50.0%", "10,000", "1,000", "0:10"),
    ]


def test_of_many_partitions_those_that_are_furthest_behind_are_shown() -> None:
    shown = a_live(t={})
    shown._marks = {"t": {p: Watermarks(0, p) for p in range(50)}}

    table = shown.table(10)

    assert table.row_count == 10
    assert [*table.columns[1].cells][:2] == ["49", "48"]
    assert table.caption == "40 partitions that are less behind are not shown"


def test_time_left_is_told_in_minutes_or_hours() -> None:
    assert [eta_text(it) for it in (None, 0.0, 61.0, 3_660.0)] == ["?", "-", "1:01", "1 h 01 min"]
