"""``millstream bridge cutover``: a Kafka group's place, given to a coordinator group."""

from typing import Annotated

import typer

from ..cutover.cutover import MayApply, Uncommitted, WhenRead, cut_over
from ..cutover.proof import CutProof
from ..model import Route
from ..project.file import GroupMove, Project
from .console import AsJson, ReportFile, command
from .group_moves import Group, IsStopped, KafkaGroup, KeyRule, Wait, Yes, move_groups, moves_of
from .process import tell


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "cutover",
        examples="""
            cutover --project project.toml --report cutover.json    # changes nothing
            cutover --project project.toml --report cutover.json --yes --wait 60
        """,
    )
    def cutover(
        project: Project,
        kafka_group: KafkaGroup = None,
        group: Group = None,
        yes: Yes = False,
        wait: Wait = 0.0,
        timeout: Annotated[
            float,
            typer.Option(min=0.0, help="Seconds to wait for the bridge to have stored everything."),
        ] = 60.0,
        uncommitted: Annotated[
            Uncommitted | None,
            typer.Option(help="Where partitions begin in which the group has committed nothing."),
        ] = None,
        group_is_stopped: IsStopped = False,
        key_rule: KeyRule = None,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Let a coordinator group begin exactly where a Kafka group ended; with a written proof.

        A dry run unless --yes. Stop the Kafka group's members, or let --wait wait for their end:
        what takes long is done before. Refused (exit code 1) where no exact place exists; the
        proof says which partition and why.
        """

        async def move(
            route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
        ) -> CutProof:
            return await cut_over(
                kafka=project.kafka,
                nats=project.nats,
                route=route,
                kafka_group=groups.kafka,
                group=groups.group,
                apply=yes,
                wait_s=wait,
                timeout_s=timeout,
                uncommitted=uncommitted,
                is_stopped=group_is_stopped,
                key_rule=key_rule,
                kafka_options=project.kafka_options,
                when_read=when_read,
                may_apply=may_apply,
                on_event=lambda text: tell(f"cutover {route.topic}: {text}"),
            )

        moves = moves_of(project, kafka_group, group)
        move_groups(project, "cutover", moves, move, report, as_json=as_json)
