"""What the bridge's pages take from the code: help texts and permissions.

    python -m tests.docs.bridge_reference        write them into the pages

A page has ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` around each of them.
`test_bridge_reference.py` compares.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import typer
from typer.testing import CliRunner

from millstream_bridge import Route
from millstream_bridge.operation.cli import app
from millstream_bridge.project.file import GroupMove
from millstream_bridge.project.permissions import Purpose, needs

DOCS = Path(__file__).parents[2] / "bridge" / "docs"
WIDTH = 92
COMMON = (
    *("--project", "--route", "--kafka", "--nats", "--topic", "--stream", "--subject"),
    *("--shared", "--null-key", "--creds", "--nkey", "--tlsca", "--tlscert", "--tlskey"),
    "--js-domain",
)
GROUP = GroupMove(kafka="billing", group="billing", routes=())
ROUTE = Route(topic="flights", stream="FLIGHTS", subject="flights.{partition}.{key}")


def command_names() -> list[str]:
    """Every command, those below another with it."""
    names = []
    for name, one in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(one, "commands", None)
        names += [name] if below is None else [f"{name} {it}" for it in below]
    return names


def help_text(name: str) -> str:
    """What ``millstream bridge NAME --help`` prints."""
    with patch.dict(os.environ, {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)}):
        return (
            CliRunner().invoke(app, [*name.split(), "--help"], prog_name="millstream bridge").output
        )


def _options(text: str) -> tuple[str, str]:
    """A help text without the options of a route, if it has all of them; and those."""
    lines = text.splitlines()
    is_of_route = any(line.strip().startswith("--null-key") for line in lines)
    own: list[str] = []
    common: list[str] = []
    target = own
    for line in lines:
        if line.startswith("  -"):
            is_common = is_of_route and line.split()[0] in COMMON
            target = common if is_common else own
            if line.strip().startswith("--help"):
                target = []
        elif not line.startswith("    "):
            target = own
        target.append(line.rstrip())
    return "\n".join(own), "\n".join(common)


def all_commands() -> str:
    """The help of every command."""
    parts = []
    for name in command_names():
        own, _ = _options(help_text(name))
        text = re.sub(r"\n{2,}", "\n\n", re.sub(r"^Options:\n(?=\n)", "", own, flags=re.MULTILINE))
        parts.append(f"## {name}\n\n```text\n{text.strip()}\n```")
    return "\n\n".join(parts)


def common_options() -> str:
    """The options of a project or a route."""
    _, common = _options(help_text("run"))
    return f"```text\n{common}\n```"


def permissions(purpose: Purpose) -> str:
    """What a user needs on either side."""
    is_move = purpose in (Purpose.CUTOVER, Purpose.ROLLBACK)
    found = needs(purpose, [ROUTE], groups=[GROUP] if is_move else [])
    kafka = "\n".join(f"{operation} on {kind} {name}" for kind, name, operation in found.kafka)
    return f"```text\n{found.config_text()}```\n\n```text\n{kafka}\n```"


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "reference/commands.md": {"options": common_options, "commands": all_commands},
    "how-to/least-privilege.md": {it.value: partial(permissions, it) for it in Purpose},
}


def section(page: str, name: str) -> str:
    """What stands in a page's section now."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
    assert found is not None, f"{page} has no section {name}"
    return found[1].strip()


def write(page: str, name: str, content: str) -> None:
    """Write a page's section."""
    file = DOCS / page
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = file.read_text(encoding="utf-8").split(begin, 1)
    _, after = rest.split(end, 1)
    file.write_text(f"{before}{begin}\n{content}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    for page, names in SECTIONS.items():
        for name, make in names.items():
            write(page, name, make().strip())
