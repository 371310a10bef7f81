"""``millstream bridge run``: move a route's records, then go on with what comes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream_coordinator.operation.process import Stopper

from ..kafka.admin import KafkaAdmin
from ..model import BridgeReport, Route
from ..project.file import Project
from .console import (
    AsJson,
    EndWithStdin,
    Http,
    LogJson,
    ReadyFile,
    ReportFile,
    command,
    end_run,
    failure_document,
    text_keys,
)
from .fleet import Fleet, Outcome
from .live import Live
from .logs import log_json as log_as_json, teller
from .process import run_loop, write_ready
from .status import answering, fleet_status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """How a run is to run, beside what it moves."""

    stop_at_end: bool
    ready_file: Path | None
    end_with_stdin: bool
    group: str | None
    member: str | None
    http: str | None
    log_json: bool


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "run",
        examples="""
            run --project project.toml --http 127.0.0.1:9465
            run --project project.toml --group movers    # the same in several processes
        """,
    )
    def run(
        project: Project,
        stop_at_end: Annotated[
            bool, typer.Option("--stop-at-end", help="Stop when all that is there now is stored.")
        ] = False,
        group: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                envvar="MILLSTREAM_BRIDGE_GROUP",
                help="Share the work with every process that runs the same with this group.",
            ),
        ] = None,
        member: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                envvar="MILLSTREAM_BRIDGE_MEMBER",
                help="This process's name in the group; by default the host's and a random part.",
            ),
        ] = None,
        http: Http = None,
        log_json: LogJson = False,
        ready_file: ReadyFile = None,
        end_with_stdin: EndWithStdin = False,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Move records into streams: what is there, then what comes.

        With a project, all of its routes at once; topics that come to match a pattern too. A route
        that cannot go on is told and left, and the exit code is its error's.
        """
        options = _Options(
            stop_at_end=stop_at_end,
            ready_file=ready_file,
            end_with_stdin=end_with_stdin,
            group=group,
            member=member,
            http=http,
            log_json=log_json,
        )
        if log_json:
            log_as_json()
        outcomes, code = run_loop(_run(project, options))
        errors = [it.error for it in outcomes if it.error is not None]
        documents = [_document(it) for it in outcomes]
        show = partial(_show, outcomes)
        end_run(project, "run", documents, errors, report, show, as_json=as_json, code=code)


def _show(outcomes: Sequence[Outcome]) -> None:
    for it in outcomes:
        if it.report is not None:
            typer.echo(_line(it.report))


def _document(outcome: Outcome) -> dict[str, Any]:
    if outcome.report is not None:
        return run_summary(outcome.report)
    assert outcome.error is not None
    route = outcome.route
    return failure_document("run", route.topic, route.stream, outcome.error)


def _line(report: BridgeReport) -> str:
    return (
        f"bridge {report.topic} → {report.stream}: {report.ended};"
        f" {report.records} records stored in {report.seconds:.1f} s"
        f" ({report.records_per_second:,.0f}/s), {report.sessions} sessions"
    )


def run_summary(report: BridgeReport) -> dict[str, Any]:
    """The JSON form of a run's report, schema ``millstream.bridge.run/1``."""
    return {
        "schema": "millstream.bridge.run/1",
        "topic": report.topic,
        "stream": report.stream,
        "ended": str(report.ended),
        "records": report.records,
        "payload_bytes": report.payload_bytes,
        "seconds": round(report.seconds, 3),
        "records_per_second": round(report.records_per_second, 1),
        "sessions": report.sessions,
        "refusals": report.refusals,
        "stood_back": report.stood_back,
        "foreign_seqs": list(report.foreign_seqs),
        "parked": report.parked,
        "skipped": report.skipped,
        "missed_offsets": report.missed_offsets,
        "positions": text_keys(report.positions),
    }


async def _run(project: Project, options: _Options) -> tuple[list[Outcome], int]:
    """How each route ended, and the exit code if none failed."""
    facts: dict[str, Any] = {"kafka": project.kafka, "nats": str(project.nats)}

    def on_ready(routes: list[Route]) -> None:
        if project.is_file:
            facts["routes"] = [{"topic": it.topic, "stream": it.stream} for it in routes]
        else:
            facts.update(topic=routes[0].topic, stream=routes[0].stream)
        write_ready(options.ready_file, facts)

    fleet = Fleet(
        project,
        tell=teller(as_json=options.log_json),
        on_ready=on_ready,
        group=options.group,
        member=options.member,
    )
    stopper = Stopper(fleet.stop, end_with_stdin=options.end_with_stdin)
    async with AsyncExitStack() as stack:
        if options.http is not None:
            from .metrics import FleetMetrics  # noqa: PLC0415 - 0.1 s that only these pages need
            from .web import health, serving  # noqa: PLC0415

            pages = serving(options.http, FleetMetrics(fleet).page, lambda: health(fleet.health))
            facts["http"] = await stack.enter_async_context(pages)
        await stack.enter_async_context(answering(project.nats, lambda: fleet_status(fleet)))
        if not options.log_json:
            await stack.enter_async_context(_shown(project, fleet))
        return await fleet.run(stop_at_end=options.stop_at_end), stopper.code


@asynccontextmanager
async def _shown(project: Project, fleet: Fleet) -> AsyncIterator[None]:
    """Show people the figures while the block runs."""
    admin = KafkaAdmin(project.kafka, options=project.kafka_options)
    live = asyncio.create_task(Live(fleet, admin).run(), name="live")
    try:
        yield
    finally:
        live.cancel()
        with suppress(asyncio.CancelledError):
            await live
        await admin.close()
