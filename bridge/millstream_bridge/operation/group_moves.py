"""What cutover and rollback have in common: which groups move, their options, their proofs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from millstream_coordinator.operation.process import CHECK_FAILED
from millstream_coordinator.operation.texts import show_table

from ..cutover.cutover import MayApply, WhenRead
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


Move = Callable[[Route, GroupMove, WhenRead, MayApply], Awaitable[CutProof]]
READ_AT_ONCE = 4
"""So many routes are read at a time: each takes memory, and few keep the processors busy."""


class _Together:
    """The moves of one Kafka group, each of another route: one pause, and all of them or none."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places
        self._reading, self._proving = len(places), len(places)
        self.are_read, self.are_proven = asyncio.Event(), asyncio.Event()
        self.are_exact = True
        self.is_refused = False

    def one_is_read(self, *, is_refused: bool) -> None:
        """What takes long is done for one, before anybody has to stop; or nobody need for it."""
        self._reading -= 1
        self.is_refused = self.is_refused or is_refused
        if self.is_refused or not self._reading:
            self.are_read.set()

    def one_is_proven(self, *, is_exact: bool) -> None:
        """One has its proof, or has failed."""
        self._proving -= 1
        self.are_exact = self.are_exact and is_exact
        if not self._proving:
            self.are_proven.set()


class _One:
    """One of them, from its reading, for which it waits its turn, to its end, however it comes."""

    def __init__(self, together: _Together, turns: asyncio.Semaphore) -> None:
        self._together, self._turns = together, turns
        self._is_reading, self._is_proving = True, True

    async def __aenter__(self) -> "_One":
        await self._turns.acquire()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._end_reading(is_refused=kind is not None)
        self._end_proving(is_exact=False)

    async def when_read(self, is_refused: bool) -> bool:
        """Wait for the others, if need be; false where one is refused, so that nobody need stop."""
        self._end_reading(is_refused=is_refused)
        if not is_refused:
            await self._together.are_read.wait()
        return not self._together.is_refused

    async def may_apply(self, proof: CutProof) -> bool:
        """Wait for the others; whether all are exact."""
        self._end_reading(is_refused=not proof.is_exact)
        self._end_proving(is_exact=proof.is_exact)
        await self._together.are_proven.wait()
        return self._together.are_exact

    def _end_reading(self, *, is_refused: bool) -> None:
        if self._is_reading:
            self._is_reading = False
            self._turns.release()
            self._together.one_is_read(is_refused=is_refused)

    def _end_proving(self, *, is_exact: bool) -> None:
        if self._is_proving:
            self._is_proving = False
            self._together.one_is_proven(is_exact=is_exact)


def move_groups(
    project: Project,
    what: str,
    moves: Sequence[GroupMove],
    move: Move,
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    """Move the groups, write the proofs down, show them; exit 1 if one is not exact.

    A Kafka group of several topics has one pause, which is as long as that of its slowest, and none
    of it is moved unless all of it is exact. Kafka groups are moved beside each other, but those of
    one route follow each other. What was moved beside or before an error is written down and shown
    too. Of several errors the first is raised, the others are told.
    """
    proofs: dict[int, CutProof] = {}
    held_up: set[int] = set()

    async def each() -> None:
        known = await current_routes(project)
        routes = [_route_of(known, it) for it in moves]  # all are sound before one is moved
        turns = asyncio.Semaphore(READ_AT_ONCE)
        locks = {route.name: asyncio.Lock() for route in routes}

        async def one_move(place: int, together: _Together) -> None:
            async with _One(together, turns) as one:
                proofs[place] = await move(
                    routes[place], moves[place], one.when_read, one.may_apply
                )

        async def all_of(together: _Together) -> None:
            async with AsyncExitStack() as held:
                for name in sorted(routes[place].name for place in together.places):
                    await held.enter_async_context(locks[name])
                work = (one_move(place, together) for place in together.places)
                ended = await asyncio.gather(*work, return_exceptions=True)
            if not all(place in proofs and proofs[place].is_exact for place in together.places):
                held_up.update(together.places)
            outcomes = zip(together.places, ended, strict=True)
            failed.update((place, error) for place, error in outcomes if error is not None)

        failed: dict[int, BaseException] = {}
        await asyncio.gather(*map(all_of, _by_kafka_group(moves, routes)))
        for place in sorted(failed)[1:]:
            route = routes[place]
            tell(f"{what} {route.topic} → {route.stream}: {failed[place]}")
        if failed:
            raise failed[min(failed)]  # which is told last

    try:
        run_loop(each())
    finally:
        if proofs:
            shown = [(proof, place in held_up) for place, proof in sorted(proofs.items())]
            documents = [proof.as_json() for proof, _ in shown]
            show = partial(_show, shown)
            give_report(project, what, documents, report, show, as_json=as_json)
    if not all(proof.is_exact for proof in proofs.values()):
        raise typer.Exit(CHECK_FAILED)


def _by_kafka_group(moves: Sequence[GroupMove], routes: Sequence[Route]) -> list[_Together]:
    """The places of moves that are done together: of one Kafka group, and of different routes."""
    found: list[tuple[str, dict[str, int]]] = []
    for place, (move, route) in enumerate(zip(moves, routes, strict=True)):
        for name, of_route in found:
            if name == move.kafka and route.name not in of_route:
                of_route[route.name] = place
                break
        else:
            found.append((move.kafka, {route.name: place}))
    return [_Together(list(of_route.values())) for _, of_route in found]


def _show(proofs: Sequence[tuple[CutProof, bool]]) -> None:
    """Each with whether another topic holds it up."""
    for proof, is_held_up in proofs:
        _show_one(proof, is_held_up=is_held_up)


def _show_one(proof: CutProof, *, is_held_up: bool) -> None:
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
    elif proof.is_exact and is_held_up:
        typer.echo("exact; nothing was changed, as another topic of the Kafka group is not exact")
    elif proof.is_exact:
        typer.echo("exact; nothing was changed: --yes does it")
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
            " reads one: write a [[group]] of its own name for each, or name one with --route"
        )
    return found[0]
