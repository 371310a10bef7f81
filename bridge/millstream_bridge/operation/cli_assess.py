"""``millstream bridge assess``: what each topic is, and how it would move."""

from typing import Annotated, Any

import typer

from millstream_coordinator.operation.texts import show_table

from ..project.assess import SAMPLE_RECORDS, Assessment, assess as look
from ..project.findings import findings
from .console import AsJson, ReportFile, command_without_route, say
from .process import run_loop, write_report
from .settings import load_kafka


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command_without_route(
        app,
        "assess",
        examples="""
            assess --kafka broker:9092
            assess --kafka broker:9092 --nats nats://n1:4222 --topics 'orders.*' --sample -1
        """,
    )
    def assess(
        given: dict[str, Any],
        topics: Annotated[str, typer.Option(help="Pattern of whole topic names.")] = ".*",
        sample: Annotated[
            int,
            typer.Option(help="Records of a topic to read; 0 none, -1 all.", min=-1),
        ] = SAMPLE_RECORDS,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Say per topic what moves as it is, what needs a choice, what cannot, and why.

        NATS is looked at for its limits, if its URL is given.
        """
        settings = load_kafka(**given)
        found = run_loop(
            look(
                kafka=settings.kafka,
                topics=topics,
                nats=settings.nats_target if settings.nats is not None else None,
                kafka_options=settings.kafka_options,
                sample_records=sample,
            )
        )
        write_report(report, found.as_json())
        if as_json:
            say(found.as_json(), "")
        else:
            _show(found)


def _show(found: Assessment) -> None:
    rows = [
        (
            it.topic.name,
            str(it.topic.partitions),
            f"{it.offsets:,}",
            size_text(it.bytes_estimate),
            f"{it.shape.per_second:,.1f}",
            size_text(it.shape.largest_bytes),
            ", ".join(f"{g.group} ({g.lag:,})" for g in it.groups) or "-",
            found.verdict_of(it),
        )
        for it in found.topics
    ]
    columns = (
        *("TOPIC", "PARTITIONS", "RECORDS", "BYTES", "RATE/S", "LARGEST", "GROUPS (LAG)"),
        "VERDICT",
    )
    show_table(columns, rows)
    for it in found.topics:
        for finding in findings(it):
            remedy = f" → {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{it.topic.name}: {finding.verdict}: {finding.what}{remedy}")
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


def size_text(size: int) -> str:
    """Bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
