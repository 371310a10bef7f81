"""What the bridge's pages take from the code: help texts and permissions.

    python -m tests.docs.bridge_reference        write them into the pages

A page has ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` around each of them.
`test_bridge_reference.py` compares.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from millstream_bridge import Route
from millstream_bridge.operation.cli import app
from millstream_bridge.project.file import GroupMove
from millstream_bridge.project.permissions import Purpose, needs

from .commands import Commands
from .sections import write

DOCS = Path(__file__).parents[2] / "bridge" / "docs"
COMMON = (
    *("--project", "--route", "--kafka", "--nats", "--topic", "--stream", "--subject"),
    *("--shared", "--null-key", "--creds", "--nkey", "--tlsca", "--tlscert", "--tlskey"),
    "--js-domain",
)
GROUP = GroupMove(kafka="billing", group="billing", routes=())
ROUTE = Route(topic="flights", stream="FLIGHTS", subject="flights.{partition}.{key}")


def _is_common(option: str, text: str) -> bool:
    is_of_route = re.search(r"^ *--null-key", text, re.MULTILINE) is not None
    return is_of_route and option.split(maxsplit=1)[0] in COMMON


COMMANDS = Commands(app, "millstream bridge", _is_common)


def permissions(purpose: Purpose) -> str:
    """What a user needs on either side."""
    is_move = purpose in (Purpose.CUTOVER, Purpose.ROLLBACK)
    found = needs(purpose, [ROUTE], groups=[GROUP] if is_move else [])
    kafka = "\n".join(f"{operation} on {kind} {name}" for kind, name, operation in found.kafka)
    return f"```text\n{found.config_text()}```\n\n```text\n{kafka}\n```"


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "reference/commands.md": {
        "options": partial(COMMANDS.common, "run"),
        "commands": COMMANDS.page,
    },
    "how-to/least-privilege.md": {it.value: partial(permissions, it) for it in Purpose},
}


if __name__ == "__main__":
    for page, names in SECTIONS.items():
        for name, make in names.items():
            write(DOCS / page, name, make().strip())
