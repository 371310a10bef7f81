"""What people read: tables, and the examples that end a command's help.

A table is drawn on a terminal, and aligned plain lines elsewhere.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

Cells = tuple[str, ...]

NUMBERS = frozenset(
    {"PARTITION", "CURRENT", "END", "LAG", "EPOCH", "PID", "CAPACITY", "PARTITIONS", "MEMBERS"}
    | {"LETTER", "MESSAGE", "ATTEMPTS", "BYTES"}
    | {"OFFSET", "LOW", "HIGH", "NEXT SEQ", "STORED TO", "DONE", "RECORDS", "NATS RECORDS"}
    | {"RATE/S", "ETA"}
)
"""Columns of numbers, on the right in a table."""


def help_end(program: str, examples: str) -> str:
    """The end of a command's help; ``examples``: a command line each, without the program."""
    lines = (f"  {program} {line.strip()}" for line in examples.strip().splitlines())
    return "Examples:\n\n\b\n" + "\n".join(lines)


def show_table(columns: Cells, rows: Sequence[Cells]) -> None:
    """A table on a terminal, plain aligned lines elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - 0.1 s that only tables need

    console = Console()
    if console.is_terminal:
        console.print(table(columns, rows))
    else:
        typer.echo("\n".join(lines([columns, *rows])))


def cell(value: object) -> str:
    """What is not there is ``-``, as in Kafka's own listing."""
    return "-" if value is None or value == "" else str(value)


def table(columns: Cells, rows: Sequence[Cells]) -> "Table":
    """Rows as rich draws them: two spaces between columns, or one where the terminal is narrow."""
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    is_narrow = sum(widths) + 2 * len(widths) > Console().width
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0) if is_narrow else (0, 1))
    for column in columns:
        drawn.add_column(
            column,
            justify="right" if column in NUMBERS else "left",
            overflow="fold",
            min_width=len(column),
        )
    for row in rows:
        drawn.add_row(*map(escape, row))
    return drawn


def lines(rows: Sequence[Cells]) -> list[str]:
    """Columns as wide as their widest cell, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
