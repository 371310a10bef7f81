"""What the commands have in common at their edge: options, errors, questions.

A command is a function of settings and its own parameters, made one with `command`: that adds the
options every command has (where the server is, who we are), reads the settings, and hands them in.

People get lines and tables (`texts`); programs get one JSON document with ``--json``. An error is
one line on standard error and an exit code (`process`).
"""

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

import typer
from pydantic import ValidationError

from ..errors import GroupError, ServerUnreachable
from ..naming import check_name
from .admin import Outcome
from .connect import connected
from .process import CHECK_FAILED, DONE, INTERRUPTED, UNREACHABLE, USAGE_ERROR
from .settings import CoordinatorSettings, load
from .target import Target
from .texts import help_end
from .waiting import Pending, wait

T = TypeVar("T")

NOTHING: Mapping[str, Any] = MappingProxyType({})
SHOWN_MAX = 20
"""So many lines are shown before a question; a dry run shows all."""


class Operation(Protocol):
    """What an operator does to a group, such as `admin.pause` with its own arguments given."""

    def __call__(self, target: Target, /, *, dry_run: bool) -> Awaitable[Outcome]:
        """Do it, or find out what it would do."""


def option(kind: object, text: str, *names: str, env: list[str] | None = None, **more: Any) -> Any:
    """An option's annotation, for those that are settings."""
    return Annotated[kind, typer.Option(*names, help=text, envvar=env, **more)]


_COMMON: dict[str, Any] = {
    "nats_url": option(
        str | None,
        "Server(s), separated by commas.",
        *("--nats", "--server", "-s"),
        metavar="URL",
        env=["MILLSTREAM_COORDINATOR_NATS_URL", "NATS_URL"],
    ),
    "creds": option(Path | None, "Credentials file.", "--creds", metavar="FILE"),
    "nkey": option(Path | None, "File with an nkey seed.", "--nkey", metavar="FILE"),
    "tls_ca": option(Path | None, "Certificates to trust.", "--tlsca", metavar="FILE"),
    "tls_cert": option(Path | None, "Own certificate.", "--tlscert", metavar="FILE"),
    "tls_key": option(Path | None, "Its key.", "--tlskey", metavar="FILE"),
    "domain": option(str | None, "JetStream domain.", "--js-domain", metavar="NAME"),
    "config": option(
        Path | None,
        "Settings in a TOML file.",
        "--config",
        metavar="FILE",
        env=["MILLSTREAM_COORDINATOR_CONFIG"],
    ),
}

GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="Its name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Waits = Annotated[bool, typer.Option("--wait", help="Until it is done; exit code 1 if it is not.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, metavar="SECONDS", help="How long, with --wait: else 60."),
]
WAIT_S = 60.0


def command(
    app: typer.Typer, name: str, *, examples: str, settings: Mapping[str, Any] = NOTHING
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function ``f(settings, …)`` a command of ``app``; ``examples`` end its help.

    ``settings``: annotations of parameters that go into the settings and not to the function.
    """
    into_settings = {**settings, **_COMMON}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        common = [
            inspect.Parameter(it, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for it, kind in into_settings.items()
        ]

        def run(**options: Any) -> None:
            given = {it: options.pop(it) for it in into_settings}
            if "group" in options:
                check_group(name, options["group"])
            function(read_settings(given.pop("config"), **given), **options)

        parameters = [it.replace(kind=inspect.Parameter.KEYWORD_ONLY) for it in own] + common
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        run.__annotations__ = {it.name: it.annotation for it in parameters}
        app.command(name, epilog=help_end("millstream coordinator", examples))(run)
        return function

    return register


def read_settings(file: Path | None = None, **given: Any) -> CoordinatorSettings:
    """The settings, with what the command line says in front. One line and exit 2 if wrong."""
    try:
        return load(file, **given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        text = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":  # only a file can have names of its own
            text = f"{file} has it, and there is no such setting"
        fail("settings", f"{name}: {text}" if name else text, USAGE_ERROR)
    except ValueError as error:
        fail("settings", str(error), USAGE_ERROR)


def change(
    name: str,
    settings: CoordinatorSettings,
    group: str,
    operation: Operation,
    *,
    as_json: bool,
    dry_run: bool,
    question: str | None = None,
    until: Pending | None = None,
    timeout_s: float | None = None,
) -> NoReturn:
    """Connect, carry an operation out, show what changed; wait for it where ``until`` is given.

    ``question``: somebody has to agree first, to what a dry run finds. That is not done on one
    connection: who is asked may take longer to answer than a server waits for a sign of life.
    """

    async def check() -> Outcome:
        async with connected_to(settings, group) as target:
            return await operation(target, dry_run=True)

    async def work(unchanged: Outcome | None) -> int:
        late = None
        async with connected_to(settings, group) as target:
            outcome = unchanged or await operation(target, dry_run=dry_run)
            if not as_json:
                show_changes(outcome)
            if until is not None:
                timeout = WAIT_S if timeout_s is None else timeout_s
                late = await wait(target, until, timeout_s=timeout)
        if as_json:
            waited = {} if until is None else {"is_done": late is None, "late": late}
            show_json({**outcome.as_json(), **waited})
        if late is not None:
            fail(name, late, CHECK_FAILED)
        if until is not None and not as_json:
            typer.echo("done")
        return DONE

    unchanged = None
    if question is not None and not dry_run:
        found = run(name, check())
        if found.changes:
            confirm(name, question, [f"would change {it}" for it in found.changes])
        else:  # nobody has agreed to what may come up in between
            unchanged = replace(found, is_dry_run=False)
    exit_with(name, work(unchanged))


@asynccontextmanager
async def connected_to(settings: CoordinatorSettings, group: str) -> AsyncIterator[Target]:
    """A group, on a connection of its own. Raises what `connected` does."""
    async with connected(settings) as connection:
        yield Target(connection, group, prefix=settings.api_prefix)


def check_wait(name: str, *, waits: bool, timeout_s: float | None, is_never: str | None) -> None:
    """Exit 2 where there is nothing to wait for; ``is_never`` names the option that says so."""
    if timeout_s is not None and not waits:
        fail(name, "--timeout goes with --wait", USAGE_ERROR)
    if waits and is_never is not None:
        fail(name, f"--wait does not go with {is_never}", USAGE_ERROR)


def exit_with(command: str, work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command to its exit code."""
    raise typer.Exit(run(command, work))


def run(command: str, work: Coroutine[Any, Any, T]) -> T:
    """Run a command or a part of it; a GroupError is one line on standard error, and its end."""
    try:
        return asyncio.run(work)
    except ServerUnreachable as error:
        fail(command, str(error), UNREACHABLE)
    except GroupError as error:
        fail(command, str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def check_group(command: str, group: str) -> None:
    """Exit 2 for a name no group can have, before anything is asked of a server."""
    try:
        check_name("group", group)
    except GroupError as error:
        fail(command, str(error), USAGE_ERROR)


def fail(command: str, text: str, code: int) -> NoReturn:
    """One line on standard error, and the exit code."""
    typer.echo(f"millstream coordinator {command}: {' '.join(text.split())}", err=True)
    raise typer.Exit(code)


def confirm(command: str, question: str, would: Sequence[str]) -> None:
    """Go on only when somebody on a terminal says so, who is shown what would be done."""
    if not sys.stdin.isatty():
        fail(command, f"{question} Say --yes to do it, --dry-run to see it.", USAGE_ERROR)
    for line in shortened(would):
        typer.echo(line, err=True)
    try:
        is_wanted = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not is_wanted:
        fail(command, "nothing was changed", USAGE_ERROR)


def shortened(texts: Sequence[str]) -> Sequence[str]:
    """The first and the last of many lines, and how many there are in between."""
    if len(texts) <= SHOWN_MAX:
        return texts
    half = SHOWN_MAX // 2
    between = f"… {len(texts) - 2 * half} more (--dry-run shows all)"
    return [*texts[:half], between, *texts[-half:]]


def show_json(document: object) -> None:
    """One document, as ``--json`` prints it."""
    typer.echo(json.dumps(document, indent=2))


def show_changes(outcome: Outcome) -> None:
    """What an operation did or would do, for people."""
    for change in outcome.changes:
        typer.echo(f"{'would change ' if outcome.is_dry_run else ''}{change}")
    if not outcome.changes:
        is_about_letters = outcome.operation.startswith("dlq.")
        why = "there are no such letters" if is_about_letters else "it is so already"
        typer.echo(f"nothing to change: {why}")
