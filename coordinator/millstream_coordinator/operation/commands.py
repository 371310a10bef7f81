"""A program whose commands are loaded when they are looked up.

Start is most of what a short command costs: rich, Prometheus' client and the group's machine take
longer to import than a server takes to answer. So a command pays for its own imports alone, as a
part of ``millstream`` does; only the help of the whole program pays for all.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

_WHOLE = 1_000
"""Longer than any summary."""


class Commands(Mapping[str, Any]):
    """Commands by name, in the order in which help lists them.

    ``modules``: of ``package``, with the names of the commands that its ``register(app)`` adds.
    """

    def __init__(self, package: str, modules: Mapping[str, str]) -> None:
        self.homes = {
            name: f"{package}.{module}"
            for module, names in modules.items()
            for name in names.split()
        }

    def __getitem__(self, name: str) -> Any:
        home = self.homes[name]
        app = typer.Typer(rich_markup_mode=None)
        import_module(home).register(app)
        return typer.main.get_group(app).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)

    @property
    def group(self) -> type[TyperGroup]:
        """The ``cls`` of the app that has these commands."""
        commands: Any = self

        class Group(TyperGroup):
            def __init__(self, **given: Any) -> None:
                super().__init__(**given)
                self.commands = commands

            def format_commands(self, ctx: Any, formatter: Any) -> None:
                """Summaries that do not fit a line go on in the next; typer's own are cut off."""
                rows = [(name, it.get_short_help_str(_WHOLE)) for name, it in commands.items()]
                with formatter.section("Commands"):
                    formatter.write_dl(rows)

        return Group


def loaded(app: typer.Typer, arguments: Sequence[str]) -> Any:
    """What typer makes of ``app``, with all imported that ``arguments`` will ask it for."""
    made = typer.main.get_command(app)
    commands: Mapping[str, Any] = getattr(made, "commands", {})
    is_named = bool(arguments) and arguments[0] in commands
    for name in arguments[:1] if is_named else commands:  # help tells of all
        commands[name]
    return made
