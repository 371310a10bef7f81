"""``millstream bridge plan``: write the project file, or say what drifted from it."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..jetstream.target import NatsTarget
from ..project.assess import SAMPLE_RECORDS, assess
from ..project.drift import Drift, check as find_drift
from ..project.file import load_project
from ..project.plan import plan_text
from .console import CHECK_FAILED, DONE, USAGE_ERROR, AsJson, ReportFile, errors, fail, say
from .process import run_loop, write_report
from .settings import load_kafka

DEFAULT_NATS = "nats://127.0.0.1:4222"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("plan")
    def plan(
        kafka: Annotated[str | None, typer.Option(help="Kafka's bootstrap servers.")] = None,
        nats: Annotated[str | None, typer.Option(help="URL of the NATS server.")] = None,
        topics: Annotated[str, typer.Option(help="Pattern of whole topic names.")] = ".*",
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
        with errors():
            if check is None:
                _write(kafka, nats, topics, out, sample)
                return
            if kafka is not None or nats is not None or out is not None:
                fail("plan --check takes all from the file", USAGE_ERROR)
            code = _check(check, sample, report, as_json=as_json)
        raise typer.Exit(code)


def _write(kafka: str | None, nats: str | None, topics: str, out: Path | None, sample: int) -> None:
    settings = load_kafka(kafka=kafka, nats=nats)
    url = settings.nats or DEFAULT_NATS
    if out is not None and out.exists():
        raise ConfigurationError(f"{out} is there already; plan --check {out} says what drifted")
    found = run_loop(
        assess(
            kafka=settings.kafka,
            topics=topics,
            nats=url,
            kafka_options=settings.kafka_options,
            sample_records=sample,
        )
    )
    text = plan_text(
        found.topics,
        kafka=settings.kafka,
        nats=str(NatsTarget.of(url)),
        pattern=topics,
        is_cluster=found.is_cluster,
        notes=found.notes,
    )
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error.strerror or error}") from error
    typer.echo(f"{out}: {len(found.topics)} routes; read it, then millstream bridge run")


def _check(file: Path, sample: int, report: Path | None, *, as_json: bool) -> int:
    drifts = run_loop(find_drift(load_project(file), sample_records=sample))
    summary = drift_summary(file, drifts)
    write_report(report, summary)
    if as_json:
        say(summary, "")
    else:
        for drift in drifts:
            typer.echo(str(drift))
        typer.echo(f"{file}: {len(drifts) or 'nothing'} drifted")
    return CHECK_FAILED if drifts else DONE


def drift_summary(file: Path, drifts: list[Drift]) -> dict[str, object]:
    """The JSON form, schema ``millstream.bridge.plan/1``."""
    return {
        "schema": "millstream.bridge.plan/1",
        "project": str(file),
        "drift": [{"where": it.where, "what": it.what, "remedy": it.remedy} for it in drifts],
    }
