"""What cutover and rollback have in common: which groups move, their options, their proofs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from millstream_coordinator.operation.process import CHECK_FAILED
from millstream_coordinator.operation.texts import show_table

from ..cutover.cutover import WhenRead
from ..cutover.proof import CutProof
from ..errors import ConfigurationError
from ..model import Route
from ..project.file import GroupMove, Project
from ..project.routes import current_routes
from .console import give_report
from .process import run_loop, tell

KafkaGroup = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The Kafka group; by default those of the project."),
]
Group = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The coordinator group; by default of the same name."),
]
KeyRule = Annotated[
    str | None,
    typer.Option(help="The group's key rule, where the subject template cannot be one."),
]
IsStopped = Annotated[
    bool,
    typer.Option(
        "--group-is-stopped", help="Your word for it, where Kafka does not tell (the mock)."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only show what would be done.")]
Wait = Annotated[
    float, typer.Option(min=0.0, help="Seconds to wait for the group's last member to leave.")
]


class _Reading:
    """The routes whose moves still do what takes long, before anybody has to stop."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = set(routes)
        self._is_over = asyncio.Event()

    def end(self, route: str) -> None:
        """One is done, or has failed."""
        self._routes.discard(route)
        if not self._routes:
            self._is_over.set()

    async def until_all_end(self, route: str) -> None:
        """One is done: wait for the others."""
        self.end(route)
        await self._is_over.wait()


def move_groups(
    project: Project,
    what: str,
    moves: Sequence[GroupMove],
    move: Callable[[Route, GroupMove, WhenRead], Awaitable[CutProof]],
    report: Path | None,
    *,
    as_json: bool,
    yes: bool,
) -> None:
    """Move the groups, write the proofs down, show them; exit 1 if one is not exact.

    Routes are moved side by side: a Kafka group of several topics has one pause, which is as long
    as its longest. The groups of one route follow each other. What was moved beside or before an
    error is written down and shown too. Of several errors the first is raised, the others are told.
    """
    proofs: dict[int, CutProof] = {}

    async def all_of(route: Route, places: Sequence[int], reading: _Reading) -> None:
        try:
            for place in places:
                when_read = partial(reading.until_all_end, route.name)
                proofs[place] = await move(route, moves[place], when_read)
        finally:
            reading.end(route.name)

    async def each() -> None:
        known = await current_routes(project)
        routes = [_route_of(known, it) for it in moves]  # all are sound before one is moved
        of_routes = {
            route.name: (route, [n for n, it in enumerate(routes) if it.name == route.name])
            for route in routes
        }
        reading = _Reading(of_routes)
        work = (all_of(route, places, reading) for route, places in of_routes.values())
        ended = await asyncio.gather(*work, return_exceptions=True)
        moved = (route for route, _ in of_routes.values())
        failed = [(route, it) for route, it in zip(moved, ended, strict=True) if it is not None]
        for route, error in failed[1:]:
            tell(f"{what} {route.topic} → {route.stream}: {error}")
        if failed:
            raise failed[0][1]  # which is told last

    try:
        run_loop(each())
    finally:
        if proofs:
            shown = [proof for _, proof in sorted(proofs.items())]
            documents = [proof.as_json() for proof in shown]
            show = partial(_show, shown, yes=yes)
            give_report(project, what, documents, report, show, as_json=as_json)
    if not all(proof.is_exact for proof in proofs.values()):
        raise typer.Exit(CHECK_FAILED)


def _show(proofs: Sequence[CutProof], *, yes: bool) -> None:
    for proof in proofs:
        _show_one(proof, yes=yes)


def _show_one(proof: CutProof, *, yes: bool) -> None:
    typer.echo(
        f"{proof.what}: Kafka group {proof.kafka_group} ({proof.kafka_group_state}) on topic"
        f" {proof.topic} | group {proof.group}"
    )
    columns = ("PARTITION", "LOW", "HIGH", "OFFSET", "HANDLED LAST", "NEXT SEQ", "OPEN FIRST")
    rows = []
    for cut in proof.partitions:
        edges = (cut.records, cut.natives)
        last = max((it.last for it in edges if it.last), key=lambda place: place[0], default=None)
        first = min((it.first for it in edges if it.first), key=lambda it: it[0], default=None)
        rows.append(
            (
                *map(str, (cut.partition, cut.low, cut.high, cut.offset)),
                _place(last),
                str(cut.next_seq),
                _place(first),
            )
        )
    if rows:
        show_table(columns, rows)
    for problem in proof.problems:
        typer.echo(f"not exact: {problem}")
    if proof.applied and proof.is_exact:
        typer.echo(f"done and read back; nobody read for {proof.standstill_s or 0:.1f} s")
    elif proof.is_exact:
        typer.echo("exact; nothing was changed" + ("" if yes else ": --yes does it"))
    else:
        typer.echo("something was in the way" if proof.applied else "refused; nothing was changed")


def _place(place: tuple[int, int | None] | None) -> str:
    if place is None:
        return "-"
    seq, offset = place
    return f"seq {seq} (native)" if offset is None else f"seq {seq} (offset {offset})"


def moves_of(project: Project, kafka_group: str | None, group: str | None) -> list[GroupMove]:
    """Which groups move: the one that is named, or all of the project. ConfigurationError: none."""
    if kafka_group is None and group is not None:
        kafka_group = group
    if kafka_group is None:
        if not project.groups:
            raise ConfigurationError(
                "--kafka-group is missing, and there is no [[group]] in a project"
            )
        return list(project.groups)
    if known := [
        it for it in project.groups if it.kafka == kafka_group and group in (None, it.group)
    ]:
        return known
    return [GroupMove(kafka=kafka_group, group=group or kafka_group, routes=())]


def _route_of(routes: Sequence[Route], move: GroupMove) -> Route:
    """The route a group reads. ConfigurationError: not one, or several for one group.

    A coordinator group reads one topic; a Kafka group of several becomes one group for each.
    """
    found = [route for route in routes if not move.routes or route.name in move.routes]
    if not found:
        raise ConfigurationError(f"group {move.group}: none of the routes is its")
    if len(found) > 1:
        names = ", ".join(route.name for route in found)
        raise ConfigurationError(
            f"group {move.group} would read {len(found)} routes ({names}); a coordinator group"
            " reads one: write a [[group]] of its own name for each"
        )
    return found[0]
