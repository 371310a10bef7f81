"""``millstream coordinator``: lead groups as a process of its own, or look at one.

Exit codes: 0 done, 2 wrong usage or configuration (an unknown group too), 3 a server unreachable,
130 interrupted. Errors are one line on standard error.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import GroupError, ServerUnreachable
from ..events import GroupEvent, describe as describe_event
from ..naming import check_name
from .overview import MemberRow, PartitionRow, read_overview
from .service import NewGroup, connected, lead, unless_stopped
from .settings import CoordinatorSettings
from .target import Target

USAGE_ERROR = 2
UNREACHABLE = 3
INTERRUPTED = 130

PARTITION_COLUMNS = (
    "GROUP",
    "PARTITION",
    "CURRENT",
    "END",
    "LAG",
    "OWNER",
    "HOST",
    "EPOCH",
    "STATE",
)
MEMBER_COLUMNS = ("MEMBER", "HOST", "PID", "CAPACITY", "PARTITIONS", "LABELS", "ROLE")

app = typer.Typer(
    help="Partitioned groups: lead them, look at them.",
    add_completion=False,
    rich_markup_mode=None,
)

NatsUrl = Annotated[
    str | None,
    typer.Option(
        "--nats",
        "--server",
        "-s",
        metavar="URL",
        envvar=["MILLSTREAM_COORDINATOR_NATS_URL", "NATS_URL"],
        help="Server(s), separated by commas.",
    ),
]


@app.command()
def run(
    groups: Annotated[list[str], typer.Argument(metavar="GROUP", help="The groups to lead.")],
    nats: NatsUrl = None,
    stream: Annotated[
        str | None, typer.Option(metavar="NAME", help="Stream of a group not there yet.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Its key rule, such as 'flights.*.{key}'."),
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Its number of partitions.")
    ] = None,
    member: Annotated[
        str | None, typer.Option(metavar="NAME", help="This coordinator's name in the groups.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write pid and urls there when ready.")
    ] = None,
    end_with_stdin: Annotated[
        bool, typer.Option("--end-with-stdin", help="End when standard input ends.")
    ] = False,
) -> None:
    """Lead groups until stopped: assign partitions, detect dead members, raise epochs."""
    settings = _settings(nats_url=nats, member=member)
    if (stream is None) != (key is None) or (stream is not None and partitions is None):
        _fail("run", "a new group is --stream, --key and --partitions", USAGE_ERROR)
    new = None
    if partitions is not None:
        new = NewGroup(stream=stream, key=key, partitions=partitions)
    _check_names("run", groups)
    _exit_with("run", _run(groups, settings, new, ready_file, end_with_stdin=end_with_stdin))


async def _run(
    groups: list[str],
    settings: CoordinatorSettings,
    new: NewGroup | None,
    ready_file: Path | None,
    *,
    end_with_stdin: bool,
) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    code = 0

    def stop(exit_code: int) -> None:
        nonlocal code
        code = exit_code
        stopping.set()

    _on_signal(loop, signal.SIGTERM, lambda: stop(0))
    _on_signal(loop, signal.SIGINT, lambda: stop(INTERRUPTED))
    if end_with_stdin:
        _on_end_of_stdin(lambda: loop.call_soon_threadsafe(stop, 0))

    async with AsyncExitStack() as stack:
        connecting = stack.enter_async_context(connected(settings))
        connection = await unless_stopped(stopping, connecting)
        if connection is None:
            return code
        url = connection.connected_url.geturl() if connection.connected_url else settings.nats_url

        def ready() -> None:
            _say(f"coordinator ready: leads {', '.join(groups)} at {url}")
            if ready_file is not None:
                _write_ready(ready_file, {"pid": os.getpid(), "nats": url, "groups": groups})

        await lead(
            connection,
            groups,
            settings,
            new=new,
            stopping=stopping,
            on_ready=ready,
            on_event=_print_event,
        )
    return code


@app.command()
def describe(
    group: Annotated[str, typer.Argument(metavar="GROUP")],
    nats: NatsUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show a group's partitions and members: positions, lag, owners, epochs."""
    settings = _settings(nats_url=nats)
    _check_names("describe", [group])
    _exit_with("describe", _describe(group, settings, as_json=as_json))


async def _describe(group: str, settings: CoordinatorSettings, *, as_json: bool) -> int:
    async with connected(settings) as connection:
        overview = await read_overview(Target(connection, group))
    if as_json:
        print(json.dumps(overview.as_json(), indent=2))
        return 0
    tables = (
        (PARTITION_COLUMNS, [_partition_cells(group, row) for row in overview.partitions]),
        (MEMBER_COLUMNS, [_member_cells(row) for row in overview.members]),
    )
    console = Console()
    for columns, rows in tables:
        if console.is_terminal:
            console.print(_table(columns, rows))
        else:
            print("\n".join(_lines([columns, *rows])))
            print()
    return 0


Cells = tuple[str, ...]


def _partition_cells(group: str, row: PartitionRow) -> Cells:
    return (
        group,
        str(row.partition),
        _cell(row.current),
        _cell(row.end),
        _cell(row.lag),
        _cell(row.owner),
        _cell(row.host),
        str(row.epoch),
        row.state,
    )


def _member_cells(row: MemberRow) -> Cells:
    role = "leader" if row.is_leader else "member"
    return (
        row.member,
        _cell(row.host or None),
        str(row.pid),
        str(row.capacity),
        _cell(",".join(map(str, row.partitions)) or None),
        _cell(",".join(f"{name}={value}" for name, value in sorted(row.labels.items())) or None),
        f"{role}, leaving" if row.is_leaving else role,
    )


def _cell(value: object) -> str:
    """What is not there is ``-``, as in Kafka's own listing."""
    return "-" if value is None else str(value)


def _table(columns: Cells, rows: Sequence[Cells]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column in ("PARTITION", "CURRENT", "END", "LAG", "EPOCH", "PID", "CAPACITY")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _lines(rows: Sequence[Cells]) -> list[str]:
    """Columns as wide as their widest cell, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _print_event(group: str, event: GroupEvent) -> None:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    _say(f"{now} {group} {describe_event(event)}")


def _say(line: str) -> None:
    """Print a line of a long run; if its reader is gone the run goes on in silence."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _settings(**options: object) -> CoordinatorSettings:
    """The settings with what the command line says in front. One line and exit 2 if wrong."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        return CoordinatorSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        _fail("settings", f"{name}: {first['msg'].lower()}", USAGE_ERROR)


def _check_names(command: str, groups: Sequence[str]) -> None:
    try:
        for group in groups:
            check_name("group", group)
    except GroupError as error:
        _fail(command, str(error), USAGE_ERROR)


def _exit_with(command: str, work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command to its exit code; a GroupError is one line on standard error."""
    try:
        raise typer.Exit(asyncio.run(work))
    except ServerUnreachable as error:
        _fail(command, str(error), UNREACHABLE)
    except GroupError as error:
        _fail(command, str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _fail(command: str, text: str, code: int) -> NoReturn:
    print(f"millstream coordinator {command}: {' '.join(text.split())}", file=sys.stderr)
    raise typer.Exit(code)


def _on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, action: Callable[[], None]
) -> None:
    try:
        loop.add_signal_handler(number, action)
    except NotImplementedError:  # Windows has no loop signal handlers
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(action))


def _on_end_of_stdin(action: Callable[[], object]) -> None:
    """Call ``action``, on a thread of its own, when standard input ends: our parent is gone."""

    def wait() -> None:
        # Not sys.stdin: an interpreter that ends while a thread holds its lock aborts.
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):  # the loop is closed: we are at our end anyway
            action()

    threading.Thread(target=wait, name="end of stdin", daemon=True).start()


def _write_ready(path: Path, facts: dict[str, object]) -> None:
    """Put the file in place by rename: who sees it sees all of it. GroupError if that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise GroupError(f"cannot write {path}: {error.strerror or error}") from error
