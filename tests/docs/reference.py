"""What the reference pages take from the code: tables, help texts, diagrams.

    python -m tests.docs.reference        write them into the pages

A page has ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` around each of them; what is between is
written here, the rest by hand. `test_reference.py` compares.
"""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from types import SimpleNamespace
from typing import Any, cast, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from millstream_coordinator import Group, MemorySink, events, model
from millstream_coordinator.operation.cli import app
from millstream_coordinator.operation.metrics import Metrics, ServiceMetrics
from millstream_coordinator.operation.settings import CoordinatorSettings

from . import states
from .commands import Commands
from .pages import DOCS
from .sections import write

COMMON = ("-s,", "--creds", "--nkey", "--tlsca", "--tlscert", "--tlskey", "--js-domain", "--config")
RECORDS = {
    "cfg": model.ConfigRecord,
    "ctl": model.ControlRecord,
    "leader": model.LeaderRecord,
    "members": model.MemberRecord,
    "part": model.PartitionRecord,
    "done": model.DoneRecord,
    "position": model.DonePosition,
    "child": model.ChildPosition,
    "parked": model.ParkedRecord,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a class: as it is written, and what its docstring says."""

    name: str
    kind: str
    text: str


# ---- classes -------------------------------------------------------------------------------------


def documented(kind: type) -> list[Field]:
    """The fields of a class with their types and the text below them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    [definition] = [it for it in tree.body if isinstance(it, ast.ClassDef)]
    body = [*definition.body, None]
    return [
        Field(name=one.target.id, kind=ast.unparse(one.annotation), text=_docstring(after))
        for one, after in itertools.pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    ]


def _docstring(node: ast.stmt | None) -> str:
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return " ".join(inspect.cleandoc(node.value.value).split())
    return ""


def _cell(text: str) -> str:
    return re.sub(r"``([^`]*)``", r"`\1`", text).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(it) for it in line) + " |" for line in lines)


def record(kind: type) -> str:
    """The fields of a stored record."""
    assert is_dataclass(kind)
    defaults = {it.name: it for it in fields(kind)}

    def rows() -> Iterator[tuple[str, ...]]:
        for one in documented(kind):
            default = defaults[one.name]
            value = "required"
            if default.default_factory is not MISSING:
                value = "`{}`"
            elif default.default is not MISSING:
                value = f"`{_json(default.default)}`"
            yield f"`{one.name}`", _json_kind(one.kind), value, one.text

    return _table(("field", "JSON", "if missing", "meaning"), rows())


def _json(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case StrEnum():
            return f'"{value.value}"'
        case str():
            return f'"{value}"'
        case tuple():
            return "[]"
        case _:
            return str(value)


def _json_kind(kind: str) -> str:
    names = {
        "str": "string",
        "int": "number",
        "bool": "true or false",
        "None": "null",
        "PartitionState": "string: " + ", ".join(f"`{it.value}`" for it in model.PartitionState),
        "FailurePolicy": "string: " + ", ".join(f"`{it.value}`" for it in model.FailurePolicy),
        "tuple[int, ...]": "array of numbers",
        "tuple[str, ...]": "array of strings",
        "tuple[tuple[int, int], ...]": "array of [first, last]",
        "tuple[ChildPosition, ...]": "array of objects (below)",
        "Mapping[int, str]": "object: partition to string",
        "Mapping[str, str]": "object: string to string",
        "Mapping[str, int]": "object: string to number",
        "Mapping[int, DonePosition]": "object: partition to object (below)",
    }
    if kind in names:
        return names[kind]
    return " or ".join(names[it] for it in kind.split(" | "))


# ---- events --------------------------------------------------------------------------------------


def all_events() -> str:
    """A table of the events, and what their fields are."""

    def rows() -> Iterator[tuple[str, ...]]:
        for kind in get_args(events.GroupEvent):
            names = ", ".join(f"`{it.name}`" for it in documented(kind))
            kept = "leader, kept" if kind in get_args(events.GROUP_EVENTS) else "the member itself"
            text = " ".join((inspect.getdoc(kind) or "").split())
            notes = [f"`{it.name}`: {it.text}" for it in documented(kind) if it.text]
            yield f"`{events.event_name(kind)}`", names, kept, " ".join([text, *notes])

    return _table(("event", "fields", "told by", "meaning"), rows())


def causes() -> str:
    """The causes of a change of owner."""
    tree = ast.parse(inspect.getsource(events.Cause))
    [definition] = [it for it in tree.body if isinstance(it, ast.ClassDef)]
    body = [*definition.body, None]

    def rows() -> Iterator[tuple[str, ...]]:
        for one, after in itertools.pairwise(body):
            if isinstance(one, ast.Assign):
                yield f"`{ast.literal_eval(one.value)}`", _docstring(after)

    return _table(("cause", "meaning"), rows())


# ---- settings ------------------------------------------------------------------------------------


def variables() -> str:
    """Every setting of the service."""
    prefix = str(CoordinatorSettings.model_config["env_prefix"])

    def rows() -> Iterator[tuple[str, ...]]:
        for one in documented(CoordinatorSettings):
            if one.name == "model_config":
                continue
            default = CoordinatorSettings.model_fields[one.name].default
            yield f"`{prefix}{one.name.upper()}`", f"`{one.name}`", shown(default), one.text

    return _table(("variable", "in the file", "default", "meaning"), rows())


def shown(default: object) -> str:
    """A default as the settings page writes it."""
    match default:
        case None | ():
            return ""
        case timedelta():
            return f"{default.total_seconds():g} s"
        case bool():
            return "yes" if default else "no"
        case _:
            return f"`{default}`"


# ---- metrics -------------------------------------------------------------------------------------


def worker_metrics() -> list[Metric]:
    """The families of a worker's metrics, empty."""
    group = Group("nats://127.0.0.1:4222", stream="S", name="g", partitions=1)
    registry = CollectorRegistry()
    return list(Metrics(group, sinks=[MemorySink()], registry=registry).collect())


def service_metrics() -> list[Metric]:
    """The families of the service's metrics, empty."""
    service = SimpleNamespace(
        connection=SimpleNamespace(is_connected=True), led={}, troubles={}, names=()
    )
    return list(ServiceMetrics(cast("Any", service)).collect())


def metrics_table(families: list[Metric]) -> str:
    """A table of metrics as they are scraped."""

    def rows() -> Iterator[tuple[str, ...]]:
        for family in families:
            suffix = "_total" if family.type == "counter" else ""
            labels = ", ".join(f"`{it}`" for it in family._labelnames)  # type: ignore[attr-defined]
            yield f"`{family.name}{suffix}`", family.type, labels, family.documentation

    return _table(("metric", "type", "labels", "meaning"), rows())


# ---- pages ---------------------------------------------------------------------------------------

COMMANDS = Commands(app, "millstream coordinator", lambda option, _text: option.startswith(COMMON))
SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "reference/settings.md": {"variables": variables},
    "reference/events.md": {"events": all_events, "causes": causes},
    "reference/metrics.md": {
        "worker": lambda: metrics_table(worker_metrics()),
        "service": lambda: metrics_table(service_metrics()),
    },
    "reference/commands.md": {"options": partial(COMMANDS.common, "ls"), "commands": COMMANDS.page},
    "reference/kv-layout.md": {name: partial(record, kind) for name, kind in RECORDS.items()},
}
STATES = "explanation/why-this-is-safe.md"


def main() -> None:
    """Write all sections, or those of the pages that are named."""
    wanted = sys.argv[1:]
    for page, sections in SECTIONS.items():
        for name, make in sections.items():
            if not wanted or page in wanted:
                write(DOCS / page, name, make())
    if not wanted or STATES in wanted:
        for name, diagram in states.diagrams().items():
            write(DOCS / STATES, name, diagram)


if __name__ == "__main__":
    main()
