"""``millstream bridge permissions``: what the users on either side must be allowed."""

from typing import Annotated

import typer

from ..project.file import Project
from ..project.permissions import Purpose, needs
from ..project.routes import current_routes
from .console import AsJson, command, say
from .group_moves import Group, KafkaGroup, moves_of
from .process import run_loop


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "permissions",
        examples="""
            permissions --project project.toml
            permissions --project project.toml --for verify
            permissions --project project.toml --for cutover
        """,
    )
    def permissions(
        project: Project,
        purpose: Annotated[
            Purpose, typer.Option("--for", help="What the user does; assess is for plan too.")
        ] = Purpose.RUN,
        kafka_group: KafkaGroup = None,
        group: Group = None,
        as_json: AsJson = False,
    ) -> None:
        """Print the least privilege a user needs: for NATS as configuration, for Kafka as ACLs.

        Asks Kafka only where the project has patterns of topics. The groups are for cutover and
        rollback.
        """
        moves = purpose in (Purpose.CUTOVER, Purpose.ROLLBACK)
        groups = moves_of(project, kafka_group, group) if moves else []
        routes = run_loop(current_routes(project))
        target = project.nats
        found = needs(
            purpose,
            routes,
            groups=groups,
            api_prefix=target.jetstream_prefix,
            inbox_prefix=target.inbox_prefix,
        )
        if as_json:
            document = {
                "schema": "millstream.bridge.permissions/1",
                "for": str(purpose),
                "publish": list(found.publish),
                "subscribe": list(found.subscribe),
                "kafka": [list(line) for line in found.kafka],
            }
            say(document, "")
            return
        typer.echo(f"# NATS, a user that may {purpose}")
        typer.echo(found.config_text(), nl=False)
        typer.echo("# Kafka")
        for resource, name, operation in found.kafka:
            typer.echo(f"{operation} on {resource} {name}")
