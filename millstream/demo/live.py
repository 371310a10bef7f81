"""How the run is shown: a live table on a terminal, plain lines elsewhere.

Both show the same story. The table has a line per partition (who owns it, under which epoch, how
far behind it is) and the last things that happened; the plain form has a line per happening, with
the time since the start, and ends with the report.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .board import Board, Happening, PartitionLine
from .scene import Scene

REFRESH_S = 0.15
HAPPENINGS_SHOWN = 9
_OTHER_LINES = 11
"""Lines of a picture beside those of the partitions and the story."""
_LAG_BAR_WIDTH = 20
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red", "bright_cyan", "white")
_STATES = {"running": "dim", "starting": "dim italic", "stopped": "bold yellow"}


async def show(scene: Scene, console: Console) -> None:
    """Show the run until cancelled."""
    if console.is_terminal:
        await _show_table(scene.board, console)
    else:
        await _show_lines(scene, console)


async def _show_lines(scene: Scene, console: Console) -> None:
    shown = 0
    try:
        while True:
            await scene.changed.wait()
            scene.changed.clear()
            shown = _print_new(scene.board, shown, console)
    finally:
        _print_new(scene.board, shown, console)


def _print_new(board: Board, shown: int, console: Console) -> int:
    for happening in board.happenings[shown:]:
        console.print(_line(happening), highlight=False, soft_wrap=True)
    return len(board.happenings)


async def _show_table(board: Board, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(frame(board, console.height), refresh=True)
                await asyncio.sleep(REFRESH_S)
        finally:
            live.update(Group(*map(_line, board.happenings)), refresh=True)


def frame(board: Board, height: int) -> Group:
    """One picture of the run; ``height`` is what the terminal has."""
    room = height - len(board.partitions) - _OTHER_LINES
    story = board.happenings[-max(2, min(HAPPENINGS_SHOWN, room)) :]
    return Group(_head(board), _partitions(board), _workers(board), _story(board, story))


def _head(board: Board) -> Panel:
    handled = len(board.settled)
    counts = Text.assemble(
        ("produced ", "dim"), f"{board.produced:,}   ",
        ("moved ", "dim"), f"{board.moved:,}   ",
        ("handled ", "dim"), f"{handled:,}", ("  of ", "dim"), f"{board.records:,}",
        no_wrap=True,
    )  # fmt: skip
    bar = ProgressBar(total=board.records, completed=handled, width=None)
    title = f"[bold]millstream demo[/]  Kafka → NATS → workers   [dim]{board.elapsed_s:5.1f} s[/]"
    return Panel(Group(counts, bar), title=title, subtitle=board.phase, box=box.ROUNDED)


def _partitions(board: Board) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), show_edge=False)
    table.add_column("partition", justify="right", style="bold", width=9)
    table.add_column("owner", width=12)
    table.add_column("epoch", justify="right", width=5)
    table.add_column("produced", justify="right", width=8)
    table.add_column("handled", justify="right", width=8)
    table.add_column("lag", justify="right", width=5)
    table.add_column("", ratio=1)
    most = max(100, *(line.lag for line in board.partitions.values()))
    for number, line in board.partitions.items():
        table.add_row(
            str(number),
            _worker_name(board, line.owner),
            str(line.epoch or ""),
            f"{line.produced:,}",
            f"{line.settled:,}",
            f"{line.lag:,}",
            _lag_bar(line, most),
        )
    return table


def _lag_bar(line: PartitionLine, most: int) -> Text:
    filled = round(_LAG_BAR_WIDTH * line.lag / most)
    return Text("▇" * filled, style="yellow" if line.lag > most / 2 else "green")


def _worker_name(board: Board, name: str | None) -> Text:
    if name is None:
        return Text("nobody", style="dim")
    state = board.workers[name].state if name in board.workers else "running"
    colour = (
        _COLOURS[list(board.workers).index(name) % len(_COLOURS)] if name in board.workers else ""
    )
    return Text(name, style=colour if state == "running" else f"{colour} strike")


def _workers(board: Board) -> Text:
    shares = board.shares()
    words = Text(no_wrap=True, overflow="ellipsis")
    for name, line in board.workers.items():
        if line.state == "killed":
            continue
        words.append(" ")
        words.append_text(_worker_name(board, name))
        state = f"{len(shares.get(name, []))}p" if line.state == "running" else line.state
        words.append(f" {state}  ", style=_STATES[line.state])
    return words


def _story(board: Board, happenings: Iterable[Happening]) -> Panel:
    lines = [_line(happening) for happening in happenings]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    refused = f"{board.repeats_refused} repeats and {board.stale_refused} stale effects refused"
    return Panel(
        Group(*lines),
        title="what happened",
        title_align="left",
        subtitle=f"[dim]{refused}[/]",
        subtitle_align="right",
        box=box.ROUNDED,
    )


def _line(happening: Happening) -> Text:
    style = "bold red" if happening.is_fault else ""
    return Text.assemble((f"{happening.at_s:6.2f} s  ", "dim"), (happening.text, style))


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report for people; the same figures as the JSON."""
    records, effects, aircraft = report["records"], report["effects"], report["aircraft"]
    takeover, rates = report["takeover_ms"], report["rates_per_second"]
    rows = [
        (
            "records",
            (
                f"{records['produced']:,} produced, {records['moved']:,} moved, "
                f"{records['handled']:,} handled ({records['without_key']} without a key)"
            ),
        ),
        ("lost", f"{report['lost']:,}"),
        ("out of order", f"{report['out_of_order']:,}"),
        (
            "delivery attempts",
            (
                f"{report['delivery_attempts']:,}, {effects['cut_off_by_a_kill']} of them cut off "
                f"by a kill, {effects['failed_and_retried']} failed and retried"
            ),
        ),
        ("effects applied", f"{effects['applied']:,}, {effects['applied_twice']:,} of them twice"),
        (
            "effects refused",
            f"{effects['repeats_refused']} repeats, {effects['stale_refused']} stale",
        ),
        (
            "aircraft",
            (
                f"{aircraft['equal']:,} of {aircraft['count']:,} have the chain and the figures "
                "that the file gives"
            ),
        ),
        *_figure_rows(report["figures"]),
        (
            "takeover after a kill",
            (
                f"{_ms(takeover['p50'])} median, {_ms(takeover['max'])} at most, "
                f"{takeover['count']} partitions"
            ),
        ),
        (
            "rate",
            (
                f"{rates['handled']:,} flights/s handled, faults included; "
                f"{report['seconds']:.1f} s in all"
            ),
        ),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    console.print()
    console.print(table, highlight=False)
    console.print()
    console.print(_fault_table(report), highlight=False)
    for name, passed in report["checks"].items():
        mark = "[green]ok[/]    " if passed else "[bold red]FAILED[/]"
        console.print(f"  {mark} {name}", highlight=False)


def _figure_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, figure in figures.items():
        if figure is not None:
            hours, minutes = divmod(figure["minutes"], 60)
            rows.append((name.replace("_", " "), f"{figure['aircraft']}: {hours} h {minutes} min"))
    return rows


def _fault_table(report: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for name, justify in (
        ("at", "right"), ("fault", "left"), ("hit", "left"), ("backlog", "right"),
        ("partitions per worker", "left"), ("takeover", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for fault in report["faults"]:
        times = [one["ms"] for one in fault["takeovers"]]
        if times:
            takeover = f"{min(times):.0f}-{max(times):.0f} ms"
        else:
            takeover = (
                "" if fault["recovered_ms"] is None else f"back in {fault['recovered_ms']:.0f} ms"
            )
        table.add_row(
            f"{fault['at_s']:.1f} s",
            fault["name"],
            ", ".join(name.removeprefix("worker-") for name in fault["victims"]),
            f"{fault['backlog']:,}",
            " → ".join(
                _shares(fault[moment])
                for moment in ("shares_before", "shares_between", "shares_after")
                if fault[moment]
            ),
            takeover,
        )
    return table


def _shares(shares: dict[str, list[int]]) -> str:
    return " ".join(str(len(owned)) for _, owned in sorted(shares.items()))


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f} ms"
