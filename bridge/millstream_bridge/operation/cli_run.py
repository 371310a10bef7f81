"""``millstream bridge run``: move a route's records, then go on with what comes."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..model import BridgeReport, Positions
from ..moving.progress import progress_lines
from ..moving.runner import Bridge
from .console import AsJson, EndWithStdin, ReadyFile, ReportFile, command, say, text_keys
from .process import call_at_end_of_stdin, run_loop, write_ready, write_report
from .settings import BridgeSettings


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "run")
    def run(
        settings: BridgeSettings,
        stop_at_end: Annotated[
            bool, typer.Option("--stop-at-end", help="Stop when all that is there now is stored.")
        ] = False,
        ready_file: ReadyFile = None,
        end_with_stdin: EndWithStdin = False,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Move the topic's records into the stream: what is there, then what comes."""
        result = run_loop(_run(settings, stop_at_end, ready_file, end_with_stdin))
        summary = run_summary(result)
        write_report(report, summary)
        say(
            summary if as_json else None,
            f"bridge {result.topic} → {result.stream}: {result.ended};"
            f" {result.records} records stored in {result.seconds:.1f} s"
            f" ({result.records_per_second:,.0f}/s), {result.sessions} sessions",
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
        "positions": text_keys(report.positions),
    }


async def _run(
    settings: BridgeSettings, stop_at_end: bool, ready_file: Path | None, end_with_stdin: bool
) -> BridgeReport:
    loop = asyncio.get_running_loop()

    def on_ready(positions: Positions) -> None:
        write_ready(
            ready_file,
            {
                "kafka": settings.kafka,
                "nats": settings.nats,
                "topic": settings.topic,
                "stream": settings.stream,
            },
        )
        typer.echo(
            f"bridge {settings.topic} → {settings.stream} is ready"
            f" and goes on after {sum(positions.values()):,} offsets stored before",
            err=True,
        )

    bridge = Bridge(
        kafka=settings.kafka,
        nats=settings.nats,
        route=settings.as_route,
        kafka_options=settings.kafka_options,
        on_ready=on_ready,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    if end_with_stdin:
        call_at_end_of_stdin(lambda: loop.call_soon_threadsafe(bridge.stop))
    lines = asyncio.create_task(progress_lines(bridge), name="progress")
    try:
        return await bridge.run(stop_at_end=stop_at_end)
    finally:
        lines.cancel()
        with suppress(asyncio.CancelledError):
            await lines
