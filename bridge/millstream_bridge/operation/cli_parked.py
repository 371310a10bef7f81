"""``millstream bridge parked``: records that could not be moved, and what can be done with them."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from millstream_coordinator.operation.texts import show_table

from ..errors import ConfigurationError, ConnectionLost, Unreachable
from ..jetstream.connection import Connection
from ..model import Route
from ..moving.parked import ParkedRecords
from ..project.file import Project
from ..project.routes import current_routes
from ..records.mapping import Mapping
from .console import AsJson, command, say
from .parked_document import SCHEMA, document, edited, summary
from .process import run_loop

T = TypeVar("T")

Partition = Annotated[int, typer.Argument(min=0, metavar="PARTITION", show_default=False)]
Offset = Annotated[int, typer.Argument(min=0, metavar="OFFSET", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    parked = typer.Typer(
        help="Records that could not be moved: list, show, repair, replay, drop.",
        rich_markup_mode=None,
    )
    app.add_typer(parked, name="parked")
    _register_look(parked)
    _register_change(parked)


def _register_look(parked: typer.Typer) -> None:
    @command(parked, "ls", examples="parked ls --project project.toml")
    def ls(project: Project, as_json: AsJson = False) -> None:
        """List the parked records of every route, by partition and offset."""
        found = run_loop(_list(project))
        if as_json:
            say({"schema": f"{SCHEMA.removesuffix('/1')}-list/1", "records": found}, "")
            return
        if not found:
            typer.echo("no record is parked")
            return
        columns = ("ROUTE", "PARTITION", "OFFSET", "BYTES", "PARKED", "REPAIRED", "REASON")
        show_table(
            columns,
            [
                (
                    it["route"],
                    str(it["kafka_partition"]),
                    str(it["offset"]),
                    str(it["bytes"]),
                    it["parked_at"][:19],
                    "yes" if it["is_repaired"] else "no",
                    it["reason"],
                )
                for it in found
            ],
        )

    @command(
        parked,
        "show",
        examples="parked show 3 1042 --project project.toml --route orders > record.json",
    )
    def show(project: Project, partition: Partition, offset: Offset) -> None:
        """Print one record whole, as JSON: why it is here, key, value, headers, timestamp."""
        found = run_loop(
            _with_route(project, lambda desk, route: _show(desk, route, partition, offset))
        )
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))


def _register_change(parked: typer.Typer) -> None:
    @command(
        parked,
        "repair",
        examples="parked repair 3 1042 --project project.toml --route orders --from record.json",
    )
    def repair(
        project: Project,
        partition: Partition,
        offset: Offset,
        source: Annotated[
            Path | None,
            typer.Option("--from", metavar="FILE", help="An edited document, as show prints it."),
        ] = None,
        value: Annotated[
            Path | None, typer.Option("--value", metavar="FILE", help="The new value, as it is.")
        ] = None,
    ) -> None:
        """Change a parked record where it lies; `replay` then publishes it."""
        if (source is None) == (value is None):
            raise ConfigurationError("repair needs one of --from FILE and --value FILE")
        content = _read_file(source or value or Path())
        run_loop(
            _with_route(
                project,
                lambda desk, _: _repair(desk, partition, offset, content, str(source or "")),
            )
        )
        typer.echo(f"repaired: partition {partition} offset {offset}")

    @command(
        parked,
        "replay",
        examples="""
            parked replay 3 1042 --project project.toml --route orders    # changes nothing
            parked replay 3 1042 --project project.toml --route orders --yes
        """,
    )
    def replay(
        project: Project,
        partition: Partition,
        offset: Offset,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        """Publish a parked record under its own subject, at the end of the stream."""
        seq = run_loop(
            _with_route(project, lambda desk, _: _replay(desk, partition, offset, dry=not yes))
        )
        line = f"replayed: partition {partition} offset {offset} is now seq {seq}"
        if seq is None:
            line = f"would replay partition {partition} offset {offset}; do it with --yes"
        report = {
            "schema": f"{SCHEMA.removesuffix('/1')}-replay/1",
            "kafka_partition": partition,
            "offset": offset,
            "seq": seq,
        }
        say(report if as_json else None, line)

    @command(
        parked, "drop", examples="parked drop 3 1042 --project project.toml --route orders --yes"
    )
    def drop(project: Project, partition: Partition, offset: Offset, yes: Yes = False) -> None:
        """Forget a parked record for good; its mark stays in the stream."""
        run_loop(_with_route(project, lambda desk, _: _drop(desk, partition, offset, dry=not yes)))
        what = "dropped" if yes else "would drop, with --yes"
        typer.echo(f"{what}: partition {partition} offset {offset}")


@asynccontextmanager
async def _connected(project: Project) -> AsyncIterator[Connection]:
    connection = await Connection.open(project.nats, name="millstream bridge parked")
    try:
        yield connection
    except ConnectionLost as lost:
        raise Unreachable("JetStream", str(project.nats), str(lost)) from lost
    finally:
        await connection.close()


async def _list(project: Project) -> list[dict[str, Any]]:
    routes = await current_routes(project)
    async with _connected(project) as connection:
        return [
            summary(route, it)
            for route in routes
            for it in await ParkedRecords(connection, Mapping(route)).list()
        ]


async def _with_route(project: Project, work: Callable[[ParkedRecords, Route], Awaitable[T]]) -> T:
    routes = await current_routes(project)
    if len(routes) != 1:
        names = ", ".join(route.name for route in routes)
        raise ConfigurationError(f"say which route with --route NAME: {names}")
    async with _connected(project) as connection:
        return await work(ParkedRecords(connection, Mapping(routes[0])), routes[0])


async def _show(desk: ParkedRecords, route: Route, partition: int, offset: int) -> dict[str, Any]:
    return document(route, *await desk.get(partition, offset))


async def _repair(
    desk: ParkedRecords, partition: int, offset: int, content: bytes, where: str
) -> None:
    _, record = await desk.get(partition, offset)
    if not where:
        await desk.repair(record._replace(value=content))
        return
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{where} is not text") from error
    await desk.repair(edited(record, text, where))


async def _replay(desk: ParkedRecords, partition: int, offset: int, *, dry: bool) -> int | None:
    if dry:
        await desk.get(partition, offset)
        return None
    return await desk.replay(partition, offset)


async def _drop(desk: ParkedRecords, partition: int, offset: int, *, dry: bool) -> None:
    if dry:
        await desk.get(partition, offset)
    else:
        await desk.drop(partition, offset)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error
