"""``millstream bridge plan``: write the project file, or say what drifted from it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from millstream_coordinator.operation.process import CHECK_FAILED, DONE

from ..errors import ConfigurationError
from ..model import counted
from ..project.assess import SAMPLE_RECORDS, assess
from ..project.drift import check as find_drift
from ..project.file import load_project
from ..project.plan import plan_text
from .console import AsJson, ReportFile, command_without_route, say
from .process import check_writable, run_loop, write_report
from .settings import KafkaSettings, load_kafka


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command_without_route(
        app,
        "plan",
        examples="""
            plan --kafka broker:9092 --nats nats://n1:4222 --topics 'orders.*' --out project.toml
            plan --check project.toml
        """,
    )
    def plan(
        given: dict[str, Any],
        topics: Annotated[
            str | None, typer.Option(help="Pattern of whole topic names; by default all.")
        ] = None,
        out: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write it there; not over another.")
        ] = None,
        check: Annotated[
            Path | None,
            typer.Option("--check", metavar="FILE", help="Say what drifted from a project file."),
        ] = None,
        sample: Annotated[
            int, typer.Option(help="Records of a topic to read; 0 none, -1 all.", min=-1)
        ] = SAMPLE_RECORDS,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Write a project file with the reason for every line; with --check say what drifted."""
        if check is None:
            _write(load_kafka(**given), topics or ".*", out, sample, report, as_json=as_json)
            return
        if any(it is not None for it in (out, topics, *given.values())):
            raise ConfigurationError("plan --check takes all from the file")
        raise typer.Exit(_check(check, sample, report, as_json=as_json))


def _write(
    settings: KafkaSettings,
    topics: str,
    out: Path | None,
    sample: int,
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    target = settings.nats_target
    check_writable(out)
    if out is not None and out.exists():
        raise ConfigurationError(f"{out} is there already; plan --check {out} says what drifted")
    found = run_loop(
        assess(
            kafka=settings.kafka,
            topics=topics,
            nats=target,
            kafka_options=settings.kafka_options,
            sample_records=sample,
        )
    )
    text = plan_text(
        found.topics,
        kafka=settings.kafka,
        nats=target,
        kafka_options=settings.kafka_options,
        pattern=topics,
        is_cluster=found.is_cluster,
        notes=found.notes,
    )
    if out is not None:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write {out}: {error.strerror or error}") from error
    summary = _summary(out, text=text)
    write_report(report, summary)
    if as_json:
        say(summary, "")
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(
            f"{out}: {counted(len(found.topics), 'route')}; read it, then"
            f" millstream bridge run --project {out}"
        )


def _check(file: Path, sample: int, report: Path | None, *, as_json: bool) -> int:
    drifts, notes = run_loop(find_drift(load_project(file), sample_records=sample))
    summary = _summary(
        file,
        drift=[{"where": it.where, "what": it.what, "remedy": it.remedy} for it in drifts],
        notes=notes,
    )
    write_report(report, summary)
    if as_json:
        say(summary, "")
    else:
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        for drift in drifts:
            typer.echo(str(drift))
        typer.echo(f"{file}: {len(drifts) or 'nothing'} drifted")
    return CHECK_FAILED if drifts else DONE


def _summary(file: Path | None, **found: object) -> dict[str, Any]:
    """The JSON form, schema ``millstream.bridge.plan/1``."""
    project = None if file is None else str(file)
    return {"schema": "millstream.bridge.plan/1", "project": project, **found}
