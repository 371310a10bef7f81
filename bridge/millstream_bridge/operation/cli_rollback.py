"""``millstream bridge rollback``: a coordinator group's place, given back to a Kafka group."""

from collections.abc import Sequence
from typing import Annotated

import typer

from ..cutover.proof import CutProof
from ..cutover.rollback import roll_back
from ..project.file import GroupMove, Project
from ..project.routes import current_routes
from .cli_cutover import (
    Group,
    IsStopped,
    KafkaGroup,
    KeyRule,
    Yes,
    moves_of,
    routes_of_move,
    show_proofs,
)
from .console import AsJson, ReportFile, command
from .process import run_loop


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "rollback")
    def rollback(
        project: Project,
        kafka_group: KafkaGroup = None,
        group: Group = None,
        yes: Yes = False,
        bring_back: Annotated[
            bool,
            typer.Option(
                "--bring-back",
                help="Write to Kafka what was published straight to NATS first; without, a running"
                " `back` is waited for.",
            ),
        ] = False,
        wait: Annotated[
            float, typer.Option(help="Seconds to wait for the group's last member to leave.")
        ] = 0.0,
        timeout: Annotated[
            float, typer.Option(help="Seconds to wait for a running way back.")
        ] = 60.0,
        group_is_stopped: IsStopped = False,
        key_rule: KeyRule = None,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Let a Kafka group go on exactly where a coordinator group has got to; with a proof.

        A dry run unless --yes. Stop the workers first, or let --wait wait for their end. Refused
        (exit code 1) where no exact place exists; the proof says which partition and why.
        """
        proofs = run_loop(
            _roll(
                project,
                moves_of(project, kafka_group, group),
                yes=yes,
                bring_back=bring_back,
                wait_s=wait,
                timeout_s=timeout,
                is_stopped=group_is_stopped,
                key_rule=key_rule,
            )
        )
        show_proofs(project, "rollback", proofs, report, as_json=as_json, yes=yes)


async def _roll(
    project: Project,
    moves: Sequence[GroupMove],
    *,
    yes: bool,
    bring_back: bool,
    wait_s: float,
    timeout_s: float,
    is_stopped: bool,
    key_rule: str | None,
) -> list[CutProof]:
    routes = await current_routes(project)
    return [
        await roll_back(
            kafka=project.kafka,
            nats=project.nats,
            route=route,
            kafka_group=move.kafka,
            group=move.group,
            apply=yes,
            bring_back=bring_back,
            wait_s=wait_s,
            timeout_s=timeout_s,
            is_stopped=is_stopped,
            key_rule=key_rule,
            kafka_options=project.kafka_options,
            on_event=lambda text: typer.echo(f"rollback: {text}", err=True),
        )
        for move in moves
        for route in routes_of_move(routes, move)
    ]
