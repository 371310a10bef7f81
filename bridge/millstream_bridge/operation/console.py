"""What the commands have in common at their edge: options, errors, answers.

A command is a function of settings and its own parameters, made one with `command`: that adds the
options by which every command learns its route, reads the settings, and hands them in. An error is
one line on standard error and an exit code.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer

from millstream_coordinator.operation.process import INTERRUPTED
from millstream_coordinator.operation.texts import help_end

from ..errors import BridgeError
from ..model import Positions
from ..project.file import Project
from .process import check_writable, write_report
from .settings import project_of

PROGRAM = "millstream bridge"

ReadyFile = Annotated[
    Path | None, typer.Option(help="Write pid and addresses here, as JSON, when ready.")
]
EndWithStdin = Annotated[
    bool, typer.Option("--end-with-stdin", help="End when standard input ends.")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Write the report here, as JSON.")
]
Http = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        envvar="MILLSTREAM_BRIDGE_HTTP",
        help="Serve /metrics and /healthz there; port 0 takes a free one.",
    ),
]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json",
        envvar="MILLSTREAM_BRIDGE_LOG_JSON",
        help="Tell each event as one JSON object per line, on standard error.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]

CREDENTIALS: dict[str, Any] = {
    "creds": Annotated[
        Path | None, typer.Option("--creds", metavar="FILE", help="NATS credentials file.")
    ],
    "nkey": Annotated[
        Path | None, typer.Option("--nkey", metavar="FILE", help="File with a NATS nkey seed.")
    ],
    "tls_ca": Annotated[
        Path | None, typer.Option("--tlsca", metavar="FILE", help="Certificates NATS is to have.")
    ],
    "tls_cert": Annotated[
        Path | None, typer.Option("--tlscert", metavar="FILE", help="Own certificate for NATS.")
    ],
    "tls_key": Annotated[Path | None, typer.Option("--tlskey", metavar="FILE", help="Its key.")],
    "domain": Annotated[
        str | None, typer.Option("--js-domain", metavar="NAME", help="JetStream domain.")
    ],
}
_PROJECT: dict[str, Any] = {
    "project": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="MILLSTREAM_BRIDGE_PROJECT", help="Project file, as plan writes."
        ),
    ],
    "route": Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With a project: only this route; may be given again. Without: the route's name"
            " in Millstream-Origin, by default the topic's.",
        ),
    ],
    "kafka": Annotated[str | None, typer.Option(help="Kafka's bootstrap servers.")],
    "nats": Annotated[str | None, typer.Option(help="URL of the NATS server with JetStream.")],
    **CREDENTIALS,
    "topic": Annotated[str | None, typer.Option(help="The Kafka topic.")],
    "stream": Annotated[str | None, typer.Option(help="The stream; made if it is not there.")],
    "subject": Annotated[
        str | None, typer.Option(help="Subject template, as in 'flights.{partition}.{key}'.")
    ],
    "shared": Annotated[
        bool | None, typer.Option("--shared", help="Others publish to these subjects too.")
    ],
    "null_key": Annotated[str | None, typer.Option(help="The subject token of the null key.")],
}


_WRITTEN = ("report", "ready_file")
"""Options that name a file to be written, perhaps an hour later."""
_SIDES: dict[str, Any] = {it: _PROJECT[it] for it in ("kafka", "nats", *CREDENTIALS)}

Register = Callable[[Callable[..., None]], Callable[..., None]]


def command(app: typer.Typer, name: str, *, examples: str) -> Register:
    """Make a function ``f(project, …)`` a command of ``app``; ``examples`` end its help.

    The project is that of ``--project FILE``, or the one route that the other options describe.
    """
    return _command(app, name, examples, _PROJECT, project_of)


def command_without_route(app: typer.Typer, name: str, *, examples: str) -> Register:
    """Make a function ``f(given, …)`` a command of ``app``; ``given`` is for `load_kafka`."""
    return _command(app, name, examples, _SIDES, dict)


def _command(
    app: typer.Typer,
    name: str,
    examples: str,
    options: Mapping[str, Any],
    first: Callable[..., object],
) -> Register:
    """``first`` makes the function's first argument of the options."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(it, keyword, default=None, annotation=kind)
            for it, kind in options.items()
        ] + [it.replace(kind=keyword) for it in own]

        def run(**given: Any) -> None:
            with errors():
                for file in _WRITTEN:
                    check_writable(given.get(file))
                made = first(**{it: given.pop(it) for it in options})
                function(made, **given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        run.__annotations__ = {it.name: it.annotation for it in parameters}
        app.command(name, epilog=help_end(PROGRAM, examples))(run)
        return function

    return register


class errors:  # noqa: N801 - reads as a statement
    """Turn the bridge's errors into one line on stderr and an exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, BridgeError):
            fail(str(error), error.exit_code, error)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from error


def fail(text: str, code: int, cause: BaseException | None = None) -> NoReturn:
    """One line on standard error, and the exit code."""
    typer.echo(f"{PROGRAM}: {' '.join(text.split())}", err=True)
    raise typer.Exit(code) from cause


def say(summary: dict[str, Any] | None, line: str) -> None:
    """The report as JSON if there is one, else the line for people."""
    typer.echo(line if summary is None else json.dumps(summary))


def give_report(
    project: Project,
    command: str,
    documents: Sequence[dict[str, Any]],
    report: Path | None,
    show: Callable[[], None],
    *,
    as_json: bool,
    **more: Any,
) -> None:
    """Write what a command did, if that is wanted; print it as JSON, or ``show`` it to people.

    ``documents``: one for each route, of which a project's report is made, with ``more``.
    """
    summary = project_document(command, documents, **more) if project.is_file else documents[0]
    try:
        write_report(report, summary)
    finally:
        if as_json:
            say(summary, "")
        else:
            show()


def end_run(
    project: Project,
    command: str,
    documents: Sequence[dict[str, Any]],
    errors: Sequence[BridgeError],
    report: Path | None,
    show: Callable[[], None],
    *,
    as_json: bool,
    code: int,
) -> NoReturn:
    """End a command that worked on its routes for long: tell of each, then how it ends.

    A project's report tells of those too that ended with an error; the first gives the exit code,
    ``code`` if there is none. Without a project there is one route, and its error is all.
    """
    if errors and not project.is_file:
        raise errors[0]
    if documents:
        give_report(project, command, documents, report, show, as_json=as_json, failed=len(errors))
    if errors:
        raise errors[0]
    raise typer.Exit(code)


def failure_document(command: str, topic: str, stream: str, error: BridgeError) -> dict[str, Any]:
    """In place of the report of a route that ended with an error."""
    return {
        "schema": f"millstream.bridge.{command}/1",
        "topic": topic,
        "stream": stream,
        "ended": "error",
        "error": str(error),
    }


def project_document(command: str, routes: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The report of a command on a project: that of each route, and what they come to."""
    return {"schema": f"millstream.bridge.{command}-project/1", **more, "routes": list(routes)}


def text_keys(positions: Positions) -> dict[str, int]:
    """Positions as JSON has them: its keys are text."""
    return {str(partition): offset for partition, offset in sorted(positions.items())}
