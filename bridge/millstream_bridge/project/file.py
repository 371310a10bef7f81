r"""The project file: both sides, and what is moved where; TOML that people edit and review.

::

    [kafka]
    bootstrap = "broker1:9092,broker2:9092"

    [kafka.options]                       # librdkafka's names
    "security.protocol" = "SASL_SSL"
    "sasl.mechanism" = "SCRAM-SHA-512"
    "sasl.username" = "millstream"
    "sasl.password" = { env = "KAFKA_PASSWORD" }        # or { file = "/run/secrets/kafka" }

    [nats]
    url = "nats://n1:4222,nats://n2:4222"
    creds = "/etc/millstream/bridge.creds"

    [[route]]
    topic = "flights"
    stream = "FLIGHTS"
    subject = "flights.{partition}.{key}"

    [[route]]                             # every topic of that pattern, new ones too
    topics = 'orders\..*'
    stream = "ORDERS-{topic}"
    subject = "{topic}.{partition}.{key}"

    [[group]]                             # a Kafka group and the group that will take over
    kafka = "billing"
    group = "billing"
    routes = ["flights"]

Any text may be ``{ env = … }`` or ``{ file = … }`` where it is a secret; what they hold is never
shown. Paths are relative to the file.
"""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigurationError
from ..jetstream.target import NatsTarget
from .rule import Rule, check_keys, convert, routes_of, text_of

_TABLES: Final = ("kafka", "nats", "route", "group", "plan")
_NATS_KEYS: Final = tuple(it.name for it in dataclasses.fields(NatsTarget))
_NATS_PATHS: Final = ("creds", "nkey", "tls_ca", "tls_cert", "tls_key")
FILE_BYTES_MAX: Final = 1 << 24
"""A project of 50,000 routes has a quarter of it."""
GROUP_NAME_MAX: Final = 64
_GROUP_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{GROUP_NAME_MAX}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMove:
    """A Kafka group, and the coordinator group that is to take over in ``routes`` (names)."""

    kafka: str
    group: str
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What one project file says, or one route of the command line. ``where`` is for messages."""

    kafka: str
    nats: NatsTarget
    rules: tuple[Rule, ...]
    kafka_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    groups: tuple[GroupMove, ...] = ()
    topics_planned: str = ""
    only: tuple[str, ...] = ()
    """Names of the routes to work on; all if empty."""
    where: str = ""

    @property
    def has_patterns(self) -> bool:
        """Whether Kafka must be asked which topics there are."""
        return any(rule.topics is not None for rule in self.rules)

    @property
    def is_file(self) -> bool:
        """Whether it came from a file, so that reports are those of a project."""
        return bool(self.where)

    def select(self, names: Sequence[str]) -> "Project":
        """The same with work on these routes only."""
        return dataclasses.replace(self, only=tuple(names))


def load_project(path: Path) -> Project:
    """Read a project file; ConfigurationError names the file, the table and the key."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigurationError(f"{path} is no project file: it is over {FILE_BYTES_MAX:,} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8-sig"))  # some editors begin it with a mark
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#04x} at {error.start} is not UTF-8"
        raise ConfigurationError(f"{path} is no TOML: {what}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    check_keys(document, _TABLES, str(path))
    kafka = _table(document, "kafka", path)
    check_keys(kafka, ("bootstrap", "options"), f"{path}: [kafka]")
    bootstrap = kafka.get("bootstrap")
    if not isinstance(bootstrap, str) or not bootstrap:
        raise ConfigurationError(f'{path}: [kafka] needs bootstrap, as in "broker:9092"')
    options = _table(kafka, "options", path)
    plan = _table(document, "plan", path)
    check_keys(plan, ("topics",), f"{path}: [plan]")
    rules = tuple(
        Rule.read(table, f"{path}: [[route]] {number}")
        for number, table in enumerate(_tables(document, "route", path), 1)
    )
    if not rules:
        raise ConfigurationError(f"{path}: there is no [[route]]: nothing would be moved")
    routes_of(rules, ())
    return Project(
        kafka=bootstrap,
        kafka_options={
            name: text_of(_value(value, f"{path}: [kafka.options] {name}", path))
            for name, value in options.items()
        },
        nats=_nats(_table(document, "nats", path), path),
        rules=rules,
        groups=_groups(_tables(document, "group", path), path),
        topics_planned=str(plan.get("topics", "")),
        where=str(path),
    )


def _nats(table: Mapping[str, Any], path: Path) -> NatsTarget:
    where = f"{path}: [nats]"
    check_keys(table, _NATS_KEYS, where)
    values = {name: _value(value, f"{where} {name}", path) for name, value in table.items()}
    for name in _NATS_PATHS:
        if isinstance(values.get(name), str):
            values[name] = path.parent / values[name]
    return convert(values, NatsTarget, where, _as_it_is)


def _as_it_is(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    raise TypeError(f"expected a {kind.__name__.lower()}")


def _groups(tables: Sequence[Mapping[str, Any]], path: Path) -> tuple[GroupMove, ...]:
    groups = []
    for number, table in enumerate(tables, 1):
        where = f"{path}: [[group]] {number}"
        check_keys(table, ("kafka", "group", "routes"), where)
        group = convert(table, GroupMove, where)
        if not _GROUP_NAME.fullmatch(group.group):
            raise ConfigurationError(
                f"{where}: {group.group!r} is no group name: {_GROUP_NAME.pattern}"
            )
        groups.append(group)
    return tuple(groups)


def _value(value: Any, where: str, path: Path) -> Any:
    """A value as it is, or from where the file says it is."""
    if not isinstance(value, dict):
        if isinstance(value, str | int | float):
            return value
        raise ConfigurationError(f"{where} is neither text nor a number")
    if len(value) != 1 or next(iter(value)) not in ("env", "file"):
        raise ConfigurationError(f"{where} is neither {{ env = … }} nor {{ file = … }}")
    [(kind, name)] = value.items()
    if kind == "env":
        found = os.environ.get(str(name))
        if found is None:
            raise ConfigurationError(f"{where}: environment variable {name} is not set")
        return found
    try:
        return (path.parent / str(name)).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"{where}: {name} cannot be read: {reason}") from error


def _table(document: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: {name} is not a table")
    return table


def _tables(document: Mapping[str, Any], name: str, path: Path) -> list[Mapping[str, Any]]:
    tables = document.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(it, dict) for it in tables):
        raise ConfigurationError(f"{path}: {name} must be written [[{name}]]")
    return tables
