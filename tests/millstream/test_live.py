"""How a run is shown, on a terminal and off it."""

import asyncio
import contextlib
import io
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from millstream.demo.board import Board, Happening, WorkerLine
from millstream.demo.ledger import Call, Effect
from millstream.demo.live import frame, show
from millstream.demo.scene import Scene


@pytest.fixture
def board() -> Board:
    """Half-way through: one worker killed, one stopped, a long story."""
    board = Board.for_run(3000, 10)
    states = {"worker-1": "killed", "worker-2": "running", "worker-3": "stopped"}
    board.workers = {name: WorkerLine(state) for name, state in states.items()}
    for number in range(10):
        board.note_owner(number, "worker-2", 3)
    board.note_produced({number: 100 + number for number in range(10)})
    board.happenings = [Happening(n, f"thing {n} " + "and more " * 9) for n in range(30)]
    return board


def picture(board: Board, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(frame(board, height))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (200, 60)])
def test_the_picture_fits_the_terminal(board: Board, width: int, height: int) -> None:
    lines = picture(board, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


def test_the_picture_shows_owners_lag_and_what_happened_last(board: Board) -> None:
    text = "\n".join(picture(board, 100, 40))
    assert "0   worker-2           3" in text
    assert "worker-2 10p   worker-3 stopped" in text
    assert "thing 29" in text
    assert "worker-1" not in text


async def test_off_a_terminal_each_happening_is_one_line_however_long(board: Board) -> None:
    out = io.StringIO()
    scene = SimpleNamespace(board=board, changed=asyncio.Event())
    task = asyncio.create_task(show(cast("Scene", scene), Console(file=out, width=80)))
    scene.changed.set()
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    lines = out.getvalue().splitlines()
    assert len(lines) == 30
    assert lines[7].startswith("  7.00 s  thing 7 and more")


def call(worker: str, time: int, *, seq: int = 1, epoch: int = 1) -> Call:
    return Call(
        worker=worker, epoch=epoch, kafka_partition=4, offset=9, key="N1", seq=seq, time=time
    )  # fmt: skip


def effect(worker: str, outcome: str, *, seq: int = 1, epoch: int = 1) -> Effect:
    return Effect(
        worker=worker, epoch=epoch, kafka_partition=4, offset=9, seq=seq, time=0, outcome=outcome
    )  # fmt: skip


def test_a_call_is_unfinished_until_its_effect_is_written(board: Board) -> None:
    board.note_calls([call("worker-2", 1), call("worker-2", 2, seq=2), call("worker-3", 3)])
    board.note_effects([effect("worker-2", "applied")])
    assert [one.seq for one in board.unfinished("worker-2")] == [2]
    board.note_calls([call("worker-2", 4)])
    assert [one.seq for one in board.unfinished("worker-2")] == [2, 1]


def test_a_message_is_settled_by_an_applied_or_a_repeated_effect_only(board: Board) -> None:
    board.note_calls([call("worker-2", 1)])
    board.note_effects([effect("worker-2", "stale"), effect("worker-2", "failed")])
    assert (board.settled, board.partitions[4].lag) == (set(), 104)
    board.note_effects([effect("worker-2", "repeat"), effect("worker-3", "applied")])
    assert (board.settled, board.partitions[4].lag) == ({(4, 9)}, 103)
    assert (board.repeats_refused, board.stale_refused, board.failed) == (1, 1, 1)


def test_a_takeover_is_the_first_later_call_by_somebody_else(board: Board) -> None:
    board.note_calls([call("worker-2", 5), call("worker-3", 30), call("worker-1", 10)])
    assert board.first_call_after(6, 4, ["worker-1"]) == call("worker-3", 30)
    assert board.first_call_after(6, 4, []) == call("worker-1", 10)
    assert board.first_call_after(30, 4, []) is None
    assert board.first_call_after(0, 5, []) is None
