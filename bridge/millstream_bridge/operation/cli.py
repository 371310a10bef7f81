"""``millstream bridge``: Kafka topics into NATS subjects, each record once, with a proof.

Exit codes: 0 done, 1 a check failed or a record cannot be moved, 2 wrong usage or configuration,
3 Kafka or NATS unreachable, 130 interrupted. Errors are one line on standard error. With ``--json``
a command prints one document with its schema, ``millstream.bridge.<command>/1``.

Each command is a file of its own; what they share is in `console` and `process`.
"""

import typer

from millstream_coordinator.operation.commands import Commands

COMMANDS = Commands(
    "millstream_bridge.operation",
    {
        "cli_assess": "assess",
        "cli_plan": "plan",
        "cli_permissions": "permissions",
        "cli_run": "run",
        "cli_status": "status",
        "cli_verify": "verify",
        "cli_barrier": "barrier",
        "cli_cutover": "cutover",
        "cli_rollback": "rollback",
        "cli_back": "back",
        "cli_schemas": "schemas",
        "cli_kafka_mock": "kafka-mock",
        "cli_parked": "parked",
    },
)
app = typer.Typer(
    name="bridge",
    cls=COMMANDS.group,
    help="Kafka topics into NATS subjects: each record once, in order, with everything it had.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(context: typer.Context) -> None:
    """Kafka topics into NATS subjects: each record once, in order, with everything it had."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
