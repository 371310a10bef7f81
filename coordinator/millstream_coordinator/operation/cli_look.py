"""Commands that look and change nothing: ``ls describe members lag events permissions``."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console, Group as Stack
from rich.live import Live
from rich.text import Text

from ..errors import ServerUnreachable
from ..jetstream.permissions import Role, config_text, needs
from ..naming import is_stream
from .connect import connected
from .console import (
    AsJson,
    GroupName,
    command,
    connected_to,
    exit_with,
    fail,
    show_json,
)
from .history import Event, describe as describe_event, follow, read_history
from .overview import (
    MemberRow,
    Overview,
    PartitionRow,
    list_groups,
    read_overview,
)
from .process import CHECK_FAILED, DONE, USAGE_ERROR, Stopper, say, unless_stopped
from .settings import CoordinatorSettings
from .target import Target
from .texts import Cells, cell, lines, show_table, table

GROUP_COLUMNS = ("GROUP", "STREAM", "PARTITIONS", "MEMBERS", "LEADER", "STATE")
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
MEMBER_COLUMNS = (
    "MEMBER",
    "HOST",
    "PID",
    "CAPACITY",
    "PARTITIONS",
    "LABELS",
    "VERSION",
    "HEARTBEAT",
    "ROLE",
)
LAG_COLUMNS = ("PARTITION", "CURRENT", "END", "LAG")
RANGES_MAX = 8
"""So many ranges of partitions are shown of one member; then how many there are."""

Section = tuple[Cells, list[Cells]]


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @command(
        app,
        "ls",
        examples="""
ls
ls --json | jq -r '.groups[] | select(.condition != "running") | .group'
""",
    )
    def ls(settings: CoordinatorSettings, as_json: AsJson = False) -> None:
        """List the groups and what each is doing."""
        exit_with("ls", _ls(settings, as_json=as_json))

    @command(
        app,
        "describe",
        examples="""
describe delays
describe delays --watch
describe delays --json | jq .lag
""",
    )
    def describe(
        settings: CoordinatorSettings,
        group: GroupName,
        as_json: AsJson = False,
        watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it live.")] = False,
        interval: Annotated[
            float, typer.Option(min=0.1, metavar="SECONDS", help="How often, with --watch.")
        ] = 1.0,
    ) -> None:
        """Show partitions and members: lag, owners, heartbeats.

        CURRENT is the highest sequence up to which all of the partition is handled, END that of its
        newest message, LAG how many messages are not handled yet.
        """
        work = _describe(settings, group, as_json=as_json, watch=watch, interval_s=interval)
        exit_with("describe", work)

    @command(app, "members", examples="members delays\nmembers delays --json")
    def members(settings: CoordinatorSettings, group: GroupName, as_json: AsJson = False) -> None:
        """Show members: capacity, labels, version, heartbeat."""
        exit_with("members", _members(settings, group, as_json=as_json))

    @command(
        app,
        "lag",
        examples="""
lag delays
lag delays --max 10000    # exit code 1 when the group is further behind
""",
    )
    def lag(
        settings: CoordinatorSettings,
        group: GroupName,
        as_json: AsJson = False,
        most: Annotated[
            int | None,
            typer.Option("--max", min=0, metavar="N", help="Exit with 1 if more are waiting."),
        ] = None,
    ) -> None:
        """Show how many messages are not handled yet."""
        exit_with("lag", _lag(settings, group, as_json=as_json, most=most))

    @command(
        app,
        "events",
        examples="""
events delays
events delays --follow
events delays --follow --new --json | jq 'select(.event == "partition_moved")'
""",
    )
    def events(
        settings: CoordinatorSettings,
        group: GroupName,
        as_json: AsJson = False,
        follow: Annotated[
            bool, typer.Option("--follow", "-f", help="Go on with what happens now.")
        ] = False,
        new: Annotated[
            bool, typer.Option("--new", help="Leave out what was before; with --follow.")
        ] = False,
    ) -> None:
        """Tell what happened; with --follow also what happens now.

        Kept is what concerns the whole group: who joined, left, died and why, which partitions
        moved and why, who leads. With --follow the members tell their own events as well.
        """
        if new and not follow:
            fail("events", "--new goes with --follow", USAGE_ERROR)
        exit_with("events", _events(settings, group, as_json=as_json, live=follow, new=new))

    @command(
        app,
        "permissions",
        examples="""
permissions delays --stream FLIGHTS --role worker
permissions delays --stream FLIGHTS --role observer >> nats-server.conf
""",
    )
    def permissions(
        settings: CoordinatorSettings,
        group: GroupName,
        role: Annotated[Role, typer.Option(help="What the user does with the group.")],
        stream: Annotated[
            list[str] | None, typer.Option(metavar="NAME", help="Each stream the group reads.")
        ] = None,
    ) -> None:
        """Print what a NATS user must be allowed, for a server's configuration.

        Asks no server. worker: handles messages; leader: may lead as well (as workers do unless
        told otherwise); observer: looks; admin: changes; service: runs `run`.
        """
        for name in stream or ():
            if not is_stream(name):
                fail("permissions", f"{name!r} is no stream's name", USAGE_ERROR)
        typer.echo(config_text(needs(role, group, stream or (), prefix=settings.api_prefix)))


# ---- ls ------------------------------------------------------------------------------------------


async def _ls(settings: CoordinatorSettings, *, as_json: bool) -> int:
    async with connected(settings) as connection:
        found = await list_groups(connection, prefix=settings.api_prefix)
    if as_json:
        groups = [asdict(line) for line in found]
        show_json({"schema": "millstream.coordinator.ls/1", "groups": groups})
        return DONE
    rows = [
        (
            line.group,
            cell(line.stream),
            str(line.partitions),
            str(line.members),
            cell(line.leader),
            line.error or line.condition,
        )
        for line in found
    ]
    show_table(GROUP_COLUMNS, rows)
    return DONE


# ---- describe ------------------------------------------------------------------------------------


async def _describe(
    settings: CoordinatorSettings, group: str, *, as_json: bool, watch: bool, interval_s: float
) -> int:
    if watch:
        return await _watch(settings, group, as_json=as_json, interval_s=interval_s)
    async with connected_to(settings, group) as target:
        overview = await read_overview(target)
    if as_json:
        show_json(overview.as_json())
        return DONE
    (columns, rows), members, notes = _sections(overview)
    show_table(columns, rows)
    typer.echo()
    show_table(*members)
    typer.echo()
    typer.echo("\n".join(notes))
    return DONE


async def _watch(
    settings: CoordinatorSettings, group: str, *, as_json: bool, interval_s: float
) -> int:
    """Until told to stop, or nobody reads it. Only the first look must find the server."""
    stopper = Stopper()
    console = Console()
    live = None
    if console.is_terminal and not as_json:
        live = Live(console=console, auto_refresh=False)
    async with AsyncExitStack() as stack:
        entering = stack.enter_async_context(connected_to(settings, group))
        target = await unless_stopped(stopper.stopping, entering)
        if target is None:
            return stopper.code
        if live is not None:
            stack.enter_context(live)
        async for overview in _looks(target, stopper, interval_s):
            if isinstance(overview, ServerUnreachable):
                typer.echo(f"{_clock()} {overview}", err=True)
            elif live is not None:
                live.update(_drawn(overview), refresh=True)
            elif not say(json.dumps(overview.as_json()) if as_json else _written(overview)):
                break
    return stopper.code


async def _looks(
    target: Target, stopper: Stopper, interval_s: float
) -> AsyncIterator[Overview | ServerUnreachable]:
    is_first = True
    while not stopper.stopping.is_set():
        try:
            overview = await unless_stopped(stopper.stopping, read_overview(target))
        except ServerUnreachable as error:
            if is_first:
                raise
            yield error
        else:
            if overview is not None:
                yield overview
        is_first = False
        with suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await stopper.stopping.wait()


def _written(overview: Overview) -> str:
    partitions, members, notes = _sections(overview)
    head = f"{_clock()} {overview.group}"
    plain = [head, *lines([partitions[0], *partitions[1]])]
    plain += ["", *lines([members[0], *members[1]]), "", *notes, ""]
    return "\n".join(plain)


def _drawn(overview: Overview) -> Stack:
    partitions, members, notes = _sections(overview)
    text = Text("\n".join([f"{_clock()}  {notes[0]}", *notes[1:]]))
    return Stack(table(*partitions), "", table(*members), "", text)


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _sections(overview: Overview) -> tuple[Section, Section, list[str]]:
    """Partitions, members, and what there is to say about the group as a whole."""
    partitions = [_partition_cells(overview.group, row) for row in overview.partitions]
    members = [_member_cells(row) for row in overview.members]
    return (PARTITION_COLUMNS, partitions), (MEMBER_COLUMNS, members), _notes(overview)


def _notes(overview: Overview) -> list[str]:
    facts = [f"stream {overview.stream}" if overview.stream else "no stream: membership only"]
    if overview.lag is not None:
        facts.append(f"lag {overview.lag}")
    facts.append(f"led by {overview.leader}" if overview.leader else "nobody leads")
    if overview.stream is not None:
        facts.append(f"on failure: {overview.on_failure}")
    if overview.letters:
        facts.append(
            "1 dead letter" if overview.letters == 1 else f"{overview.letters} dead letters"
        )
    if overview.is_paused:
        facts.append("paused")
    if overview.resize_to is not None:
        facts.append(f"resizing to {overview.resize_to} partitions")
    stopped = [
        f"partition {row.partition} stopped at message {row.stopped_seq}: {row.stopped_error}"
        for row in overview.partitions
        if row.stopped_seq is not None
    ]
    return [", ".join(facts), *stopped]


def _partition_cells(group: str, row: PartitionRow) -> Cells:
    return (
        group,
        str(row.partition),
        _current(row),
        cell(row.end),
        cell(row.lag),
        cell(row.owner),
        cell(row.host),
        str(row.epoch),
        row.condition,
    )


def _current(row: PartitionRow) -> str:
    """Not above END: what is handled counts the sequences of other partitions too."""
    if row.current is not None and row.end is not None:
        return str(min(row.current, row.end))
    return cell(row.current)


def _member_cells(row: MemberRow) -> Cells:
    age = row.heartbeat_age_s
    return (
        row.member,
        cell(row.host),
        str(row.pid),
        str(row.capacity),
        cell(ranges(row.partitions)),
        cell(",".join(f"{name}={value}" for name, value in sorted(row.labels.items()))),
        cell(row.software.removeprefix("millstream ")),
        "silent" if age is None else f"{age:.1f} s",
        row.condition,
    )


def ranges(numbers: Iterable[int]) -> str:
    """``0-3,7`` for 0 1 2 3 7; of many ranges only the first few, and how many numbers in all."""
    found: list[list[int]] = []
    count = 0
    for number in sorted(numbers):
        count += 1
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in found]
    if len(texts) > RANGES_MAX:
        texts = [*texts[:RANGES_MAX], f"… ({count})"]
    return ",".join(texts)


# ---- members, lag --------------------------------------------------------------------------------


async def _members(settings: CoordinatorSettings, group: str, *, as_json: bool) -> int:
    async with connected_to(settings, group) as target:
        overview = await read_overview(target)
    if as_json:
        show_json(overview.members_json())
    else:
        show_table(MEMBER_COLUMNS, [_member_cells(row) for row in overview.members])
    return DONE


async def _lag(
    settings: CoordinatorSettings, group: str, *, as_json: bool, most: int | None
) -> int:
    async with connected_to(settings, group) as target:
        overview = await read_overview(target, listen=False)
    total = overview.total_lag()
    if as_json:
        show_json(overview.lag_json())
    else:
        rows = [
            (str(row.partition), _current(row), cell(row.end), cell(row.lag))
            for row in overview.partitions
        ]
        show_table(LAG_COLUMNS, [*rows, ("all", "", "", str(total))])
    if most is not None and total > most:
        fail("lag", f"group {group!r} is {total} messages behind, more than {most}", CHECK_FAILED)
    return DONE


# ---- events --------------------------------------------------------------------------------------


async def _events(
    settings: CoordinatorSettings, group: str, *, as_json: bool, live: bool, new: bool
) -> int:
    stopper = Stopper()
    async with AsyncExitStack() as stack:
        entering = stack.enter_async_context(connected_to(settings, group))
        target = await unless_stopped(stopper.stopping, entering)
        if target is None:
            return stopper.code
        if not live:
            for event in await read_history(target):
                _tell(event, as_json=as_json)
            return DONE
        stream = await stack.enter_async_context(aclosing(follow(target, with_history=not new)))
        while True:
            told = await unless_stopped(stopper.stopping, _next(stream))
            if told is None or not _tell(told, as_json=as_json):
                return stopper.code


async def _next(stream: AsyncIterator[Event]) -> Event:
    return await anext(stream)


def _tell(event: Event, *, as_json: bool) -> bool:
    """Print it; False when nobody reads any more."""
    if as_json:
        return say(json.dumps({"schema": "millstream.coordinator.events/1", **event}))
    return say(describe_event(event))
