"""``millstream coordinator``: look at groups, change them, lead them.

Exit codes: 0 done, 1 a check failed (``lag --max``, ``--wait``), 2 wrong usage or configuration (an
unknown group too, and what does not fit the group as it is), 3 a server unreachable, 130
interrupted.
Errors are one line on standard error. With ``--json`` a command prints one document with its
schema, ``millstream.coordinator.<command>/1``; ``events`` and ``describe --watch`` one per line.

The commands are in `cli_look`, `cli_change`, `cli_letters` and `cli_run`; what they share is in
`console`.
"""

import typer

from . import cli_change, cli_letters, cli_look, cli_run

app = typer.Typer(
    help="Partitioned groups: look at them, change them, lead them.",
    add_completion=False,
    rich_markup_mode=None,
)
cli_look.register(app)
cli_change.register(app)
cli_letters.register(app)
cli_run.register(app)
