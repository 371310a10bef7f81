"""``millstream coordinator``: look at groups, change them, lead them.

Exit codes: 0 done, 1 a check failed (``lag --max``, ``--wait``), 2 wrong usage or configuration (an
unknown group too, and what does not fit the group as it is), 3 a server unreachable, 130
interrupted.
Errors are one line on standard error. With ``--json`` a command prints one document with its
schema, ``millstream.coordinator.<command>/1``; ``events`` and ``describe --watch`` one per line.

What the commands share is in `console`.
"""

import typer

from .commands import Commands

COMMANDS = Commands(
    "millstream_coordinator.operation",
    {
        "cli_look": "ls describe members lag events permissions",
        "cli_change": "create pause resume drain move resize reset delete",
        "cli_run": "run",
        "cli_letters": "dlq",
    },
)
app = typer.Typer(
    cls=COMMANDS.group,
    help="Partitioned groups: look at them, change them, lead them.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _options() -> None:
    """Partitioned groups: look at them, change them, lead them."""
