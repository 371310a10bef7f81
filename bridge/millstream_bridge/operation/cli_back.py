"""``millstream bridge back``: what was published straight to NATS goes to Kafka."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream_coordinator.operation.process import Stopper, unless_stopped

from ..back.progress import BackReport
from ..back.runner import BackBridge
from ..errors import ConfigurationError
from ..project.file import Project
from ..project.routes import current_routes
from .back_fleet import BackFleet
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
)
from .logs import log_json as log_as_json, teller
from .process import run_loop, write_ready
from .status import answering, back_status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """How the way back is to run, beside its routes."""

    to_topic: str | None
    everything: bool
    from_seq: int | None
    stop_at_end: bool
    ready_file: Path | None
    end_with_stdin: bool
    http: str | None
    log_json: bool


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "back",
        examples="""
            back --project project.toml --http 127.0.0.1:9466
            back --project project.toml --route orders --to-topic orders.copy --everything
        """,
    )
    def back(
        project: Project,
        to_topic: Annotated[
            str | None, typer.Option(help="Another topic than the route's own; of one route.")
        ] = None,
        everything: Annotated[
            bool,
            typer.Option("--everything", help="Also what came from Kafka (to another topic)."),
        ] = False,
        from_seq: Annotated[
            int | None,
            typer.Option(
                help="Begin with this sequence, whatever is remembered; of one route. What is back"
                " already and comes again is twice in Kafka.",
                min=1,
            ),
        ] = None,
        stop_at_end: Annotated[
            bool, typer.Option("--stop-at-end", help="Stop when all that is there now is back.")
        ] = False,
        http: Http = None,
        log_json: LogJson = False,
        ready_file: ReadyFile = None,
        end_with_stdin: EndWithStdin = False,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Write to Kafka what was published straight to NATS, once and marked; both ways may run.

        One transaction per batch holds the records and the position, so readers with
        isolation.level=read_committed see each record once. A second one of the same route takes
        over, and the first ends. A route that cannot go on is told and left, and the exit code is
        its error's.
        """
        options = _Options(
            to_topic=to_topic,
            everything=everything,
            from_seq=from_seq,
            stop_at_end=stop_at_end,
            ready_file=ready_file,
            end_with_stdin=end_with_stdin,
            http=http,
            log_json=log_json,
        )
        if log_json:
            log_as_json()
        bridges, reports, code = run_loop(_run(project, options))
        errors = [it.progress.error for it in bridges if it.progress.error is not None]
        documents = [_document(*both) for both in zip(bridges, reports, strict=True)]
        show = partial(_show, [it for it in reports if it is not None])
        end_run(project, "back", documents, errors, report, show, as_json=as_json, code=code)


def _show(reports: Sequence[BackReport]) -> None:
    for it in reports:
        typer.echo(_line(it))


def _line(report: BackReport) -> str:
    return (
        f"back {report.stream} → {report.topic}: {report.ended}; {report.records} records written"
        f" in {report.seconds:.1f} s ({report.records_per_second:,.0f}/s), {report.from_kafka} were"
        f" there already, {report.passed_over} passed over"
    )


def _document(bridge: BackBridge, report: BackReport | None) -> dict[str, Any]:
    if report is not None:
        return back_summary(report)
    assert bridge.progress.error is not None
    return failure_document("back", bridge.topic, bridge.route.stream, bridge.progress.error)


def back_summary(report: BackReport) -> dict[str, Any]:
    """The JSON form of a report, schema ``millstream.bridge.back/1``."""
    return {
        "schema": "millstream.bridge.back/1",
        "topic": report.topic,
        "stream": report.stream,
        "ended": report.ended,
        "records": report.records,
        "payload_bytes": report.payload_bytes,
        "from_kafka": report.from_kafka,
        "passed_over": report.passed_over,
        "transactions": report.transactions,
        "sessions": report.sessions,
        "seconds": round(report.seconds, 3),
        "records_per_second": round(report.records_per_second, 1),
        "positions": dict(report.positions),
    }


async def _run(
    project: Project, options: _Options
) -> tuple[Sequence[BackBridge], Sequence[BackReport | None], int]:
    """All routes at once: their ways back, the reports of those that did not fail, the exit code.

    None of either if it was stopped before it knew its routes.
    """
    fleet: BackFleet | None = None

    def stop() -> None:
        if fleet is not None:
            fleet.stop()

    stopper = Stopper(stop, end_with_stdin=options.end_with_stdin)
    routes = await unless_stopped(stopper.stopping, current_routes(project))
    if routes is None:
        return [], [], stopper.code
    if len(routes) > 1 and (options.to_topic is not None or options.from_seq is not None):
        raise ConfigurationError(
            f"--to-topic and --from-seq are of one route, and there are {len(routes)}: add --route"
        )
    facts: dict[str, Any] = {"kafka": project.kafka, "nats": str(project.nats)}

    def on_ready(bridges: list[BackBridge]) -> None:
        all_of = [{"topic": it.topic, "stream": it.route.stream} for it in bridges]
        of_routes = {"routes": all_of} if project.is_file else all_of[0]
        write_ready(options.ready_file, {**facts, **of_routes})

    fleet = BackFleet(
        project,
        routes,
        tell=teller(as_json=options.log_json),
        on_ready=on_ready,
        to_topic=options.to_topic,
        everything=options.everything,
        from_seq=options.from_seq,
    )
    bridges = fleet.bridges
    async with AsyncExitStack() as stack:
        if options.http is not None:
            from .metrics import BackMetrics  # noqa: PLC0415 - 0.1 s that only these pages need
            from .web import health, serving  # noqa: PLC0415

            pages = serving(
                options.http,
                BackMetrics(bridges).page,
                lambda: health(
                    {it.route.name: (it.progress.state, it.progress.error) for it in bridges}
                ),
            )
            facts["http"] = await stack.enter_async_context(pages)
        await stack.enter_async_context(answering(project.nats, lambda: back_status(bridges)))
        return bridges, await fleet.run(stop_at_end=options.stop_at_end), stopper.code
