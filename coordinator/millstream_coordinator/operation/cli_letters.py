"""Commands for dead letters and parked keys: ``dlq ls show replay drop``."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from . import letters
from .console import (
    AsJson,
    DryRun,
    GroupName,
    Yes,
    change,
    command,
    connected_to,
    exit_with,
    fail,
    show_json,
)
from .letters import Choice, Letter, list_letters, read_letter
from .process import DONE, USAGE_ERROR
from .settings import CoordinatorSettings
from .texts import cell, show_table

COLUMNS = ("LETTER", "PARTITION", "KEY", "MESSAGE", "REASON", "ATTEMPTS", "GIVEN UP", "ERROR")

Seqs = Annotated[
    list[int] | None,
    typer.Argument(metavar="[LETTER]…", help="Their numbers, as listed.", show_default=False),
]
Key = Annotated[str | None, typer.Option("--key", "-k", metavar="KEY", help="Those of one key.")]
Partition = Annotated[
    int | None,
    typer.Option("--partition", "-p", min=0, metavar="N", help="Those of one partition."),
]
Everything = Annotated[bool, typer.Option("--all", help="All there are.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    dlq = typer.Typer(
        help="Dead letters and parked keys: list, show, replay, drop.",
        rich_markup_mode=None,
    )
    app.add_typer(dlq, name="dlq")
    _register_look(dlq)
    _register_change(dlq)


def _register_look(dlq: typer.Typer) -> None:
    @command(
        dlq,
        "ls",
        examples="""
dlq ls delays
dlq ls delays --key N12345 --json
""",
    )
    def ls(
        settings: CoordinatorSettings,
        group: GroupName,
        partition: Partition = None,
        key: Key = None,
        limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show so many.")] = 100,
        everything: Everything = False,
        as_json: AsJson = False,
    ) -> None:
        """List the messages that were given up, oldest first, and the keys that are parked."""
        choice = Choice(partition=partition, key=key)
        most = None if everything else limit
        exit_with("dlq ls", _ls(settings, group, choice, most, as_json=as_json))

    @command(dlq, "show", examples="dlq show delays 17\ndlq show delays 17 --json | jq -r .text")
    def show(
        settings: CoordinatorSettings,
        group: GroupName,
        letter: Annotated[
            int,
            typer.Argument(min=1, metavar="LETTER", help="Its number.", show_default=False),
        ],
        as_json: AsJson = False,
    ) -> None:
        """Show one dead letter whole: why, its headers, its body."""
        exit_with("dlq show", _show(settings, group, letter, as_json=as_json))


def _register_change(dlq: typer.Typer) -> None:
    @command(
        dlq,
        "replay",
        examples="""
dlq replay delays 17 18
dlq replay delays --key N12345    # all of the key, in order; lets a parked key go on
dlq replay delays --all --dry-run
""",
    )
    def replay(
        settings: CoordinatorSettings,
        group: GroupName,
        seqs: Seqs = None,
        key: Key = None,
        partition: Partition = None,
        everything: Everything = False,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        """Have dead letters handled again.

        A dead letter is published again at the end of its stream, for this group alone. The letters
        of a parked key are handled in their order by the partition's owner, then the key goes on.
        """
        choice = _choice("dlq replay", seqs, key, partition, everything)
        change(
            "dlq replay",
            settings,
            group,
            partial(letters.replay, choice=choice),
            as_json=as_json,
            dry_run=dry_run,
        )

    @command(
        dlq,
        "drop",
        examples="""
dlq drop delays 17 --yes
dlq drop delays --key N12345 --yes    # all of the key; lets a parked key go on
""",
    )
    def drop(
        settings: CoordinatorSettings,
        group: GroupName,
        seqs: Seqs = None,
        key: Key = None,
        partition: Partition = None,
        everything: Everything = False,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        """Delete dead letters for good."""
        choice = _choice("dlq drop", seqs, key, partition, everything)
        change(
            "dlq drop",
            settings,
            group,
            partial(letters.drop, choice=choice),
            as_json=as_json,
            dry_run=dry_run,
            question=None if yes else f"Delete these dead letters of {group} for good?",
        )


def _choice(
    name: str, seqs: list[int] | None, key: str | None, partition: int | None, everything: bool
) -> Choice:
    is_chosen = bool(seqs) or key is not None or partition is not None
    if is_chosen == everything:
        fail(name, "say which: letters by number, --key, --partition, or --all", USAGE_ERROR)
    return Choice(seqs=tuple(seqs or ()), key=key, partition=partition)


async def _ls(
    settings: CoordinatorSettings, group: str, choice: Choice, most: int | None, *, as_json: bool
) -> int:
    async with connected_to(settings, group) as target:
        listing = await list_letters(target, choice, limit=most)
    if as_json:
        show_json(listing.as_json())
        return DONE
    show_table(COLUMNS, [_cells(letter) for letter in listing.letters])
    notes = [
        f"partition {number} has parked keys: {', '.join(keys[:10])}"
        + (f" … ({len(keys)})" if len(keys) > 10 else "")
        for number, keys in listing.parked.items()
    ]
    if listing.has_more:
        notes.append(f"there are more than these {len(listing.letters)}: --limit N or --all")
    if notes:
        typer.echo("\n" + "\n".join(notes))
    return DONE


async def _show(settings: CoordinatorSettings, group: str, seq: int, *, as_json: bool) -> int:
    async with connected_to(settings, group) as target:
        letter = await read_letter(target, seq)
    if as_json:
        schema = "millstream.coordinator.dlq.show/1"
        show_json({"schema": schema, "group": group, **letter.as_json(with_body=True)})
        return DONE
    facts = {
        "letter": letter.seq,
        "key": f"{letter.key}, parked" if letter.is_parked else letter.key,
        "partition": letter.partition,
        "subject": letter.subject,
        "message": letter.message_seq,
        "epoch": letter.epoch,
        "stored": _time(letter.stored_ns),
        "given up": _time(letter.given_up_ns),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "error": letter.error,
    }
    for name, value in facts.items():
        typer.echo(f"{name + ':':<11}{cell(value)}")
    for header, text in letter.headers.items():
        typer.echo(f"{'header:':<11}{header}: {text}")
    typer.echo(f"{'body:':<11}{len(letter.data)} bytes")
    try:
        typer.echo(letter.data.decode())
    except UnicodeDecodeError:
        typer.echo(letter.data.hex(" ", -4))
    return DONE


def _cells(letter: Letter) -> tuple[str, ...]:
    return (
        str(letter.seq),
        str(letter.partition),
        letter.key,
        str(letter.message_seq),
        "parked" if letter.is_parked else letter.reason,
        str(letter.attempts),
        _time(letter.given_up_ns),
        cell(letter.error),
    )


def _time(at_ns: int) -> str:
    if not at_ns:
        return "-"
    return datetime.fromtimestamp(at_ns / 1e9, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
