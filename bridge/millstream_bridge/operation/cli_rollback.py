"""``millstream bridge rollback``: a coordinator group's place, given back to a Kafka group."""

from typing import Annotated

import typer

from ..cutover.cutover import MayApply, WhenRead
from ..cutover.proof import CutProof
from ..cutover.rollback import roll_back
from ..model import Route
from ..project.file import GroupMove, Project
from .console import AsJson, ReportFile, command
from .group_moves import Group, IsStopped, KafkaGroup, KeyRule, Wait, Yes, move_groups, moves_of
from .process import tell


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "rollback",
        examples="""
            rollback --project project.toml --bring-back    # changes nothing
            rollback --project project.toml --bring-back --yes --wait 60
        """,
    )
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
        wait: Wait = 0.0,
        timeout: Annotated[
            float, typer.Option(min=0.0, help="Seconds to wait for a running way back.")
        ] = 60.0,
        group_is_stopped: IsStopped = False,
        key_rule: KeyRule = None,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Let a Kafka group go on exactly where a coordinator group has got to; with a proof.

        A dry run unless --yes. Stop the workers first, or let --wait wait for their end: what takes
        long, --bring-back too, is done before. Refused (exit code 1) where no exact place exists;
        the proof says which partition and why.
        """

        async def move(
            route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
        ) -> CutProof:
            return await roll_back(
                kafka=project.kafka,
                nats=project.nats,
                route=route,
                kafka_group=groups.kafka,
                group=groups.group,
                apply=yes,
                bring_back=bring_back,
                wait_s=wait,
                timeout_s=timeout,
                is_stopped=group_is_stopped,
                key_rule=key_rule,
                kafka_options=project.kafka_options,
                when_read=when_read,
                may_apply=may_apply,
                on_event=lambda text: tell(f"rollback {route.topic}: {text}"),
            )

        moves = moves_of(project, kafka_group, group)
        move_groups(project, "rollback", moves, move, report, as_json=as_json)
