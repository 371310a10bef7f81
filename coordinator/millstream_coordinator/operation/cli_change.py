"""Commands that change a group: ``create pause resume drain move resize reset delete``."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import GroupError
from ..partitioning.description import read_description
from ..partitioning.topic import Start
from ..provisioning.create import apply
from ..provisioning.generation import renew
from ..provisioning.plan import Action, Plan, Step, plan
from . import admin
from .admin import Change, Outcome
from .connect import connected
from .console import (
    AsJson,
    DryRun,
    GroupName,
    Operation,
    Timeout,
    Waits,
    Yes,
    change,
    check_wait,
    command,
    confirm,
    fail,
    run,
    show_json,
)
from .positions import reset as set_positions
from .process import USAGE_ERROR, say
from .settings import CoordinatorSettings
from .target import Target
from .waiting import drained, moved, resized

Partitions = Annotated[
    list[str] | None,
    typer.Option("--partition", "-p", metavar="N", help="Such as 3, or 0-3,7; all if not given."),
]
Member = Annotated[str, typer.Argument(metavar="MEMBER", help="Its name.", show_default=False)]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_RANGE = re.compile(f"({_NUMBER.pattern})(?:-({_NUMBER.pattern}))?")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    _register_create(app)
    _register_flow(app)
    _register_members(app)
    _register_resize(app)
    _register_positions(app)


def _register_create(app: typer.Typer) -> None:
    @command(
        app,
        "create",
        examples="""
create orders.toml --dry-run
create orders.toml --yes
""",
    )
    def create(
        settings: CoordinatorSettings,
        file: Annotated[
            Path, typer.Argument(metavar="FILE", help="Description in TOML.", show_default=False)
        ],
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        """Make or check streams and groups from a description.

        Says each difference between what is described and what is there. New things are made at
        once, existing ones changed after a question; nothing is ever deleted. Done twice it changes
        nothing.
        """
        _create(settings, file, dry_run=dry_run, yes=yes, as_json=as_json)


def _register_flow(app: typer.Typer) -> None:
    @command(app, "pause", examples="pause delays\npause delays --partition 3")
    def pause(
        settings: CoordinatorSettings,
        group: GroupName,
        partition: Partitions = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        """Hand no more messages out; owners stay owners.

        Handler calls that are running end. Nothing moves.
        """
        numbers = _numbers("pause", partition)
        change(
            "pause",
            settings,
            group,
            partial(admin.pause, partitions=numbers),
            as_json=as_json,
            dry_run=dry_run,
        )

    @command(
        app,
        "resume",
        examples="""
resume delays
resume delays --partition 3           # tries the message again that stopped it
resume delays --partition 3 --skip    # makes it a dead letter and goes on
""",
    )
    def resume(
        settings: CoordinatorSettings,
        group: GroupName,
        partition: Partitions = None,
        skip: Annotated[
            bool, typer.Option("--skip", help="Dead-letter the message that stopped a partition.")
        ] = False,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        """Take back a pause; let stopped partitions go on.

        The message that stopped a partition is tried again, or with --skip becomes a dead letter.
        """
        numbers = _numbers("resume", partition)
        change(
            "resume",
            settings,
            group,
            partial(admin.resume, partitions=numbers, skip=skip),
            as_json=as_json,
            dry_run=dry_run,
        )


def _register_members(app: typer.Typer) -> None:
    @command(
        app,
        "drain",
        examples="""
drain delays worker-3 --wait    # before its machine goes down
drain delays worker-3 --undo
""",
    )
    def drain(
        settings: CoordinatorSettings,
        group: GroupName,
        member: Member,
        undo: Annotated[bool, typer.Option("--undo", help="Let it own partitions again.")] = False,
        waits: Waits = False,
        timeout: Timeout = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        """Have a member own nothing until --undo.

        What it owns is drained and given to others; it stays a member. For a member with a name of
        its own that also holds after a restart.
        """
        is_never = "--undo" if undo else "--dry-run" if dry_run else None
        check_wait("drain", waits=waits, timeout_s=timeout, is_never=is_never)
        operation = admin.undrain if undo else admin.drain
        change(
            "drain",
            settings,
            group,
            partial(operation, member=member),
            as_json=as_json,
            dry_run=dry_run,
            until=drained(member) if waits else None,
            timeout_s=timeout,
        )

    @command(
        app,
        "move",
        examples="""
move delays 3 --to worker-2
move delays 0-3,7 --to worker-2 --wait --timeout 30
move delays 3 --unpin           # lets it be balanced again
""",
    )
    def move(
        settings: CoordinatorSettings,
        group: GroupName,
        partitions: Annotated[
            list[str],
            typer.Argument(metavar="N…", help="Such as 3, or 0-3,7.", show_default=False),
        ],
        to: Annotated[
            str | None, typer.Option("--to", metavar="MEMBER", help="Who gets them.")
        ] = None,
        unpin: Annotated[bool, typer.Option("--unpin", help="Take a move back.")] = False,
        waits: Waits = False,
        timeout: Timeout = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        """Give partitions to a member, and keep them there.

        They stay as long as the member lives, or until --unpin; the others are balanced around.
        """
        numbers = _numbers("move", partitions) or []
        if (to is None) is not unpin:
            fail("move", "say either --to MEMBER or --unpin", USAGE_ERROR)
        is_never = "--unpin" if unpin else "--dry-run" if dry_run else None
        check_wait("move", waits=waits, timeout_s=timeout, is_never=is_never)
        unpins = partial(admin.unpin, partitions=numbers)
        change(
            "move",
            settings,
            group,
            unpins if to is None else partial(admin.move, partitions=numbers, member=to),
            as_json=as_json,
            dry_run=dry_run,
            until=moved(numbers, to) if waits and to is not None else None,
            timeout_s=timeout,
        )


def _register_resize(app: typer.Typer) -> None:
    @command(
        app,
        "resize",
        examples="""
resize delays 32 --dry-run
resize delays 32 --yes --wait
resize delays --description orders.toml --yes    # any number, for layout "sourced"
""",
    )
    def resize(
        settings: CoordinatorSettings,
        group: GroupName,
        partitions: Annotated[
            int | None, typer.Argument(min=1, metavar="[N]", show_default=False)
        ] = None,
        description: Annotated[
            Path | None, typer.Option(metavar="FILE", help="To what a description says.")
        ] = None,
        waits: Waits = False,
        timeout: Timeout = None,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        """Split or merge the partitions; the order of each key holds.

        Every partition stands still while the leader carries it out. N is one of the numbers the
        subjects carry a token for; the number there is now calls off a resize that is under way.
        A group with a stream of its own (layout "sourced") whose members are stopped goes on with
        any number, and another stream, by its --description.
        """
        if (partitions is None) == (description is None):
            fail("resize", "say either N or --description FILE", USAGE_ERROR)
        is_never = "--description" if description is not None else None
        is_never = "--dry-run" if dry_run else is_never
        check_wait("resize", waits=waits, timeout_s=timeout, is_never=is_never)
        operation: Operation
        if description is not None:
            operation = partial(_renew, file=description)
        else:
            assert partitions is not None
            operation = partial(admin.resize, partitions=partitions)
        change(
            "resize",
            settings,
            group,
            operation,
            as_json=as_json,
            dry_run=dry_run,
            question=None if yes else f"Stop all partitions of {group} and go on with others?",
            until=resized(partitions) if waits and partitions is not None else None,
            timeout_s=timeout,
        )


def _register_positions(app: typer.Typer) -> None:
    @command(
        app,
        "reset",
        examples="""
reset delays --to earliest --dry-run
reset delays --to time:2026-01-31T00:00:00Z --yes
reset delays --partition 3 --to sequence:5001 --yes
reset delays --positions cutover.json --yes    # {"0": 5001, "1": "latest"}
""",
    )
    def reset(
        settings: CoordinatorSettings,
        group: GroupName,
        to: Annotated[
            str | None,
            typer.Option(
                "--to",
                metavar="POSITION",
                help="earliest, latest, sequence:N (the first wanted) or time:RFC3339.",
            ),
        ] = None,
        partition: Partitions = None,
        positions: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="A position for each partition, as JSON."),
        ] = None,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        """Set from where partitions are handled.

        Of a group that runs, or of one that never ran (create it first). Backwards, messages are
        handled again: a fenced sink refuses what it has seen, any other repeats the effect.
        Forwards, messages are never handled.
        """
        if (to is None) == (positions is None):
            fail("reset", "say either --to POSITION or --positions FILE", USAGE_ERROR)
        if positions is not None and partition:
            fail("reset", "--partition goes with --to", USAGE_ERROR)
        numbers = _numbers("reset", partition)
        try:
            start = Start.parse(to) if to is not None else _read_positions(positions)
        except ValueError as error:
            fail("reset", str(error), USAGE_ERROR)
        change(
            "reset",
            settings,
            group,
            partial(set_positions, start=start, partitions=numbers),
            as_json=as_json,
            dry_run=dry_run,
            question=None if yes else f"Set other positions for {group}?",
        )

    @command(app, "delete", examples="delete delays --dry-run\ndelete delays --dead-letters --yes")
    def delete(
        settings: CoordinatorSettings,
        group: GroupName,
        dead_letters: Annotated[
            bool, typer.Option("--dead-letters", help="Its dead letters too.")
        ] = False,
        work_stream: Annotated[
            bool, typer.Option("--work-stream", help="Its own work-queue stream too.")
        ] = False,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        """Remove a group without workers, and its positions.

        Its consumers and its bucket go; the streams it reads stay. Coordinators that lead it leave.
        """
        change(
            "delete",
            settings,
            group,
            partial(admin.delete, with_letters=dead_letters, with_work=work_stream),
            as_json=as_json,
            dry_run=dry_run,
            question=None if yes else f"Delete group {group} with all its positions?",
        )


# ---- common --------------------------------------------------------------------------------------


async def _renew(target: Target, file: Path, *, dry_run: bool) -> Outcome:
    description = read_description(file)
    if target.group not in description.groups:
        raise GroupError(f"{file} describes no group {target.group!r}")
    done = await renew(
        target.connection, description, target.group, dry_run=dry_run, prefix=target.prefix
    )
    changes = (
        Change(what="partitions", before=done.old_partitions, after=done.new_partitions),
        Change(what="stream", before=done.old_stream, after=done.new_stream),
    )
    return Outcome(
        group=target.group,
        operation="resize",
        changes=() if done.is_done else changes,
        is_dry_run=dry_run,
    )


def _create(
    settings: CoordinatorSettings, file: Path, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    wanted = run("create", _plan(settings, file))
    works = (Action.CREATE, Action.UPDATE)
    would = [f"{'would ' if step.action in works else ''}{step}" for step in wanted.steps]
    if not (dry_run or wanted.is_refused or wanted.is_done):
        changed = [step.name for step in wanted.steps if step.action is Action.UPDATE]
        if changed and not yes:
            confirm("create", f"Change what is there ({', '.join(changed)})?", would)
        run("create", _apply(settings, wanted, is_silent=as_json))
    elif not as_json:
        typer.echo("\n".join(would))
    if as_json:
        show_json(wanted.as_json())
    if wanted.is_refused:
        refused = sum(step.action is Action.REFUSE for step in wanted.steps)
        text = f"{refused} of {len(wanted.steps)} cannot be as described: nothing done"
        fail("create", text, USAGE_ERROR)


async def _plan(settings: CoordinatorSettings, file: Path) -> Plan:
    description = read_description(file)
    async with connected(settings) as connection:
        return await plan(connection, description, prefix=settings.api_prefix)


async def _apply(settings: CoordinatorSettings, wanted: Plan, *, is_silent: bool) -> None:
    """Carry it out, and tell each step when it is done."""

    def tell(step: Step) -> None:
        if not is_silent:
            say(str(step))

    for step in wanted.steps:
        if step.action is Action.KEEP:
            tell(step)
    async with connected(settings) as connection:
        await apply(connection, wanted, prefix=settings.api_prefix, on_step=tell)


def _numbers(name: str, texts: list[str] | None) -> list[int] | None:
    """Read ``3``, ``0-3,7`` and so on; None when nothing is given. Exit 2 for what is none."""
    if not texts:
        return None
    numbers: set[int] = set()
    for text in (part.strip() for one in texts for part in one.split(",")):
        found = _RANGE.fullmatch(text)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            fail(name, f"{text!r} is no partition and no range of them", USAGE_ERROR)
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return sorted(numbers)


def _read_positions(file: Path | None) -> dict[int, Start]:
    """Read ``{"0": 5001, "1": "latest"}``; ValueError says what is wrong with it."""
    assert file is not None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(document, dict) or not document:
        raise ValueError(f'{file} is no object of partitions, such as {{"0": 5001}}')
    starts = {}
    for number, position in document.items():
        if not _NUMBER.fullmatch(number):
            raise ValueError(f"{file}: {number!r} is no partition")
        text = f"sequence:{position}" if isinstance(position, int) else str(position)
        try:
            starts[int(number)] = Start.parse(text)
        except ValueError as error:
            raise ValueError(f"{file}: partition {number}: {error}") from None
    return starts
