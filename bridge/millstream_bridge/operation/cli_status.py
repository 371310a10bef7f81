"""``millstream bridge status``: how running bridges stand, asked from outside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream_coordinator.operation.process import CHECK_FAILED
from millstream_coordinator.operation.texts import help_end, show_table

from ..jetstream.target import NatsTarget
from ..project.file import load_project
from .console import PROGRAM, AsJson, ReportFile, errors, say
from .process import run_loop, write_report
from .status import BACK_SCHEMA, ask

_COLUMNS = ("ROUTE", "PROCESS", "STATE", "PARTITION", "STORED TO", "END", "LAG", "BEHIND", "RATE/S")
_BACK_COLUMNS = (
    *("ROUTE", "PROCESS", "STATE", "BACK TO", "RECORDS", "STREAM", "NEXT SEQ", "LAG", "BEHIND"),
    "RATE/S",
)
DEFAULT_NATS = "nats://127.0.0.1:4222"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("status", epilog=help_end(PROGRAM, "status --project project.toml"))
    def status(
        project: Annotated[
            Path | None,
            typer.Option(metavar="FILE", envvar="MILLSTREAM_BRIDGE_PROJECT", help="Project file."),
        ] = None,
        nats: Annotated[
            str | None,
            typer.Option(envvar="MILLSTREAM_BRIDGE_NATS", help="URL of the NATS server."),
        ] = None,
        route: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME", help="Only this route; may be given again."),
        ] = None,
        wait: Annotated[
            float, typer.Option(help="Seconds to wait for answers.", min=0.05, max=60.0)
        ] = 1.0,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Show every running bridge's routes, those of `back` too: state, positions, lag, rate.

        Exit 1 when none runs, one of --route is moved by none (`back` apart), or a route has
        stopped with an error.
        """
        with errors():
            target = _target(project, nats)
            heard = run_loop(ask(target, wait_s=wait))
            answers = [it for it in heard if not route or it["route"] in route]
            backs = [it for it in answers if it["schema"] == BACK_SCHEMA]
            answers = [it for it in answers if it["schema"] != BACK_SCHEMA]
            missing = sorted(set(route or ()) - {it["route"] for it in answers})
            summary = {
                "schema": "millstream.bridge.statuses/1",
                "missing": missing,
                "routes": answers,
                "backs": backs,
            }
            write_report(report, summary)
            if as_json:
                say(summary, "")
            else:
                if not heard:
                    typer.echo("no bridge answers")
                _show(answers, backs, missing)
        if missing or not (answers or backs) or any(it["error"] for it in (*answers, *backs)):
            raise typer.Exit(CHECK_FAILED)


def _target(project: Path | None, nats: str | None) -> NatsTarget:
    if project is None:
        return NatsTarget.of(nats or DEFAULT_NATS)
    found = load_project(project).nats
    return found if nats is None else NatsTarget.of(nats)


def _show(
    answers: Sequence[Mapping[str, Any]],
    backs: Sequence[Mapping[str, Any]],
    missing: Sequence[str],
) -> None:
    if answers:
        show_table(_COLUMNS, [row for it in answers for row in _rows(it)])
    if backs:
        show_table(_BACK_COLUMNS, [row for it in backs for row in _back_rows(it)])
    for it in (*answers, *backs):
        if it["error"]:
            typer.echo(f"{it['route']}: {it['error']}")
    for name in missing:
        typer.echo(f"{name}: no running bridge moves it")


def _rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    process = answer["process"]
    who = process.get("member") or f"{process['host']}:{process['pid']}"
    rows: list[tuple[str, ...]] = [
        (
            answer["route"],
            who,
            answer["state"],
            f"{len(answer['partitions'])} here",
            f"{answer['records']:,} records",
            "",
            f"{answer['lag']:,}",
            "",
            _rate(answer),
        )
    ]
    for partition, it in answer["partitions"].items():
        behind = _behind(it)
        position = "-" if it["position"] is None else f"{it['position']:,}"
        rows.append(
            ("", "", "", partition, position, f"{it['end']:,}", f"{it['lag']:,}", behind, "")
        )
    return rows


def _back_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    process = answer["process"]
    whole = (
        answer["route"],
        f"{process['host']}:{process['pid']}",
        answer["state"],
        answer["topic"],
        f"{answer['records']:,}",
    )
    rest = (f"{answer['lag']:,}", _behind(answer), _rate(answer))
    places = [(name, f"{seq:,}") for name, seq in answer["positions"].items()] or [("", "")]
    more = [("",) * len(whole) + place + ("",) * len(rest) for place in places[1:]]
    return [(*whole, *places[0], *rest), *more]


def _behind(figures: Mapping[str, Any]) -> str:
    seconds = figures["lag_seconds"]
    return "?" if seconds is None else f"{seconds:.1f} s"


def _rate(answer: Mapping[str, Any]) -> str:
    rate = answer["records_per_second"]
    return "?" if rate is None else f"{rate:,.0f}"
