"""The help texts of a program's commands, as its reference page has them."""

import os
import re
from collections.abc import Callable
from unittest.mock import patch

import typer
from typer.testing import CliRunner

WIDTH = 92


class Commands:
    """Every command of a program, such as ``millstream bridge``.

    ``is_common``: whether an option's line, in the help it is of, is one of those that commands
    have in common; the page has them apart.
    """

    def __init__(
        self, app: typer.Typer, program: str, is_common: Callable[[str, str], bool]
    ) -> None:
        self._app = app
        self._program = program
        self._is_common = is_common

    def names(self) -> list[str]:
        """Every command, those below another with it."""
        names = []
        commands = typer.main.get_command(self._app).commands  # type: ignore[attr-defined]
        for name, one in commands.items():
            below = getattr(one, "commands", None)
            names += [name] if below is None else [f"{name} {it}" for it in below]
        return names

    def help(self, name: str) -> str:
        """What ``--help`` prints."""
        with patch.dict(os.environ, {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)}):
            arguments = [*name.split(), "--help"]
            return CliRunner().invoke(self._app, arguments, prog_name=self._program).output

    def page(self) -> str:
        """The help of every command, without common options."""
        parts = []
        for name in self.names():
            own, _ = self._options(name)
            text = re.sub(r"^Options:\n(?=\n)", "", own, flags=re.MULTILINE)
            text = re.sub(r"\n{2,}", "\n\n", text).strip()
            parts.append(f"## {name}\n\n```text\n{text}\n```")
        return "\n\n".join(parts)

    def common(self, name: str) -> str:
        """The common options, as the help of a command has them."""
        return f"```text\n{self._options(name)[1]}\n```"

    def _options(self, name: str) -> tuple[str, str]:
        """A help text without the common options and ``--help``; and the common ones."""
        text = self.help(name)
        own: list[str] = []
        common: list[str] = []
        target = own
        for line in text.splitlines():
            if line.startswith("  -"):
                target = common if self._is_common(line.strip(), text) else own
                if line.strip().startswith("--help"):
                    target = []
            elif not line.startswith("    "):
                target = own
            target.append(line.rstrip())
        return "\n".join(own), "\n".join(common)
