"""``millstream bridge``: Kafka topics into NATS subjects, each record once, with a proof.

Exit codes: 0 done, 1 a check failed or a record cannot be moved, 2 wrong usage or configuration,
3 Kafka or NATS unreachable, 130 interrupted. Errors are one line on standard error. With ``--json``
a command prints one document with its schema, ``millstream.bridge.<command>/1``.

Each command is a file of its own; what they share is in `console` and `process`.
"""

import typer

from . import (
    cli_assess,
    cli_back,
    cli_barrier,
    cli_cutover,
    cli_kafka_mock,
    cli_parked,
    cli_permissions,
    cli_plan,
    cli_rollback,
    cli_run,
    cli_schemas,
    cli_status,
    cli_verify,
)

app = typer.Typer(
    name="bridge",
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


for _command in (
    cli_assess,
    cli_plan,
    cli_permissions,
    cli_run,
    cli_status,
    cli_verify,
    cli_barrier,
    cli_cutover,
    cli_rollback,
    cli_back,
    cli_parked,
    cli_schemas,
    cli_kafka_mock,
):
    _command.register(app)


def main() -> None:
    """Run ``python -m millstream_bridge``."""
    app(prog_name="millstream bridge")
