"""The front door: one command, one table of what it leads to.

``millstream broker`` has to be ready within half a second, since a test suite may start one server
per test. Typer, rich, pydantic and the NATS client cost 0.25-0.35 s of import. So this module
imports nothing that costs time and looks at the first word only; the part it names is
imported then, and only that part.

Each part brings its own command line: the broker a function ``main(argv) -> int`` that takes
nats-server's flags, the others a typer app. Typer would frame a usage error in a box of six lines;
here every error is one line on standard error, ``millstream bridge run: …``, and the exit codes are
the same for all commands: 0 done, 1 a check failed, 2 wrong usage or configuration, 3 a server
unreachable or a store unusable, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from millstream_coordinator.operation.entry import INTERRUPTED, USAGE_ERROR, begun, guarded


@dataclass(frozen=True, slots=True)
class Command:
    """One word after ``millstream`` and where it leads.

    ``home`` is ``module:name``: of a typer app, or with ``plain`` of a function that takes the
    rest of argv and returns the exit code. ``inner`` is the app's subcommand the word stands for.
    """

    summary: str
    home: str
    plain: bool = False
    inner: str | None = None


COMMANDS = {
    "demo": Command(
        "the whole story on ten thousand real flights, in a minute", "millstream.demo.cli:app"
    ),
    "broker": Command(
        "a NATS server with JetStream; takes nats-server's flags",
        "millstream_broker.cli:main",
        plain=True,
    ),
    "coordinator": Command(
        "partitioned groups: look at them, change them, lead them",
        "millstream_coordinator.operation.cli:app",
    ),
    "bridge": Command(
        "Kafka topics into NATS and back: assess, run, verify, cutover, rollback",
        "millstream_bridge.operation.cli:app",
    ),
    "pub": Command("publish messages", "millstream.messaging:app", inner="pub"),
    "sub": Command("show messages as they come", "millstream.messaging:app", inner="sub"),
    "req": Command("send a request, show the replies", "millstream.messaging:app", inner="req"),
    "reply": Command("answer requests", "millstream.messaging:app", inner="reply"),
}
ALIASES = {"publish": "pub", "subscribe": "sub", "request": "req"}


def run(argv: Sequence[str]) -> int:
    """Run ``millstream`` with ``argv`` (without the program's name); returns the exit code."""
    is_known = bool(argv) and ALIASES.get(argv[0], argv[0]) in COMMANDS
    return guarded(f"millstream {argv[0]}" if is_known else "millstream", lambda: _dispatch(argv))


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else USAGE_ERROR
    if argv[0] in ("-V", "--version"):
        print(f"millstream {import_module('importlib.metadata').version('millstream')}")
        return 0
    word = ALIASES.get(argv[0], argv[0])
    command = COMMANDS.get(word)
    if command is None:
        _complain("millstream", f"no command {argv[0]!r}; it has {', '.join(COMMANDS)}")
        return USAGE_ERROR
    return _run_plain(command, argv[1:]) if command.plain else _run_app(command, word, argv[1:])


def usage() -> str:
    """The text of ``millstream --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {word:<{width}}  {command.summary}" for word, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: millstream COMMAND …",
            "",
            "Kafka's partitions, per-key order and self-balancing groups, on NATS.",
            "",
            *lines,
            "",
            "`millstream COMMAND --help` shows a command's options; --version the version.",
        ]
    )


def _load(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


def _run_plain(command: Command, argv: Sequence[str]) -> int:
    main = _load(command.home)
    if os.name == "nt":  # elsewhere it hears signals itself, and imports more before that
        begun()
    return int(main(list(argv)) or 0)


def _run_app(command: Command, word: str, argv: Sequence[str]) -> int:
    # Heavy: the broker's start must not pay for it.
    import typer  # noqa: PLC0415

    from millstream_coordinator.operation.commands import loaded  # noqa: PLC0415

    arguments = [command.inner, *argv] if command.inner else list(argv)
    app = loaded(_load(command.home), arguments)
    begun()
    program = "millstream" if command.inner else f"millstream {word}"
    # Typer brings its own copy of click since 0.26 and used the package before; either way this is
    # the class every usage error comes from.
    usage_error = typer.BadParameter.__mro__[2]
    try:
        code = app.main(args=arguments, prog_name=program, standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, usage_error):
            raise
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else program
        text: str = error.format_message()  # type: ignore[attr-defined]
        _complain(where, text.replace("Value error, ", ""))  # pydantic's, by way of typer
        return int(getattr(error, "exit_code", USAGE_ERROR))
    return code if isinstance(code, int) else 0


def _complain(where: str, text: str) -> None:
    print(f"{where}: {' '.join(text.split())}", file=sys.stderr)
