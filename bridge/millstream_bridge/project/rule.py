"""A rule of a project: which topics it means, and the route of each. Pure."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec

from ..errors import ConfigurationError
from ..model import Route

TOPIC_FIELD: Final = "{topic}"
T = TypeVar("T")

_ROUTE_KEYS: Final = tuple(it.name for it in dataclasses.fields(Route))
_OWN_KEYS: Final = ("topics", "planned")
_WRONG_TYPE: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)` - at `\$\.(\w+)`")
_WRONG_CHOICE: Final = re.compile(r"Invalid enum value (.+) - at `\$\.(\w+)`")
_LACKS: Final = "Object missing required field"
_TYPES: Final = {
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
"""What people call what msgspec calls otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One topic by its name, or every topic whose whole name matches ``topics``.

    ``settings`` are the route's, without its topic. Where topics are meant by a pattern, ``stream``
    may hold ``{topic}``, which stands for the name with its dots as dashes. ``planned`` is what
    Kafka said of the topic when the rule was written.
    """

    settings: Mapping[str, Any]
    topic: str | None = None
    topics: re.Pattern[str] | None = None
    planned: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, route: Route) -> "Rule":
        """The rule that means just this route."""
        settings = {key: getattr(route, key) for key in _ROUTE_KEYS if key != "topic"}
        return cls(topic=route.topic, settings=settings)

    @classmethod
    def read(cls, table: Mapping[str, Any], where: str) -> "Rule":
        """A ``[[route]]`` table; ConfigurationError names ``where`` and the key."""
        check_keys(table, (*_ROUTE_KEYS, *_OWN_KEYS), where)
        if ("topic" in table) == ("topics" in table):
            raise ConfigurationError(f"{where}: needs either topic or topics")
        settings = {k: v for k, v in table.items() if k not in ("topic", *_OWN_KEYS)}
        planned = text_table(table.get("planned", {}), f"{where}: planned")
        if "topic" in table:
            rule = cls(topic=table["topic"], settings=settings, planned=planned)
            rule.route(table["topic"], where)
            return rule
        if "name" in table:
            raise ConfigurationError(f"{where}: a rule for several topics has no name of its own")
        try:
            pattern = re.compile(table["topics"])
        except (re.error, TypeError) as error:
            what = f"{table['topics']!r} is no pattern of topic names: {error}"
            raise ConfigurationError(f"{where}: {what}") from error
        rule = cls(topics=pattern, settings=settings, planned=planned)
        rule.route("topic", where)
        return rule

    def route(self, topic: str, where: str = "") -> Route:
        """The route of a topic; ConfigurationError: it would not be usable."""
        values = {**self.settings, "topic": topic}
        if self.topics is not None and isinstance(values.get("stream"), str):
            values["stream"] = values["stream"].replace(TOPIC_FIELD, topic.replace(".", "-"))
        return convert(values, Route, where)

    def means(self, topic: str) -> bool:
        """Whether a topic is moved by this rule, if no rule names it."""
        return self.topics is not None and self.topics.fullmatch(topic) is not None


def routes_of(rules: Sequence[Rule], topics: Iterable[str]) -> list[Route]:
    """The route of every topic that a rule names, and of those ``topics`` that a pattern means.

    A topic that is named is not taken by a pattern. ConfigurationError: two patterns mean one.
    """
    named = {rule.topic for rule in rules}
    routes = [rule.route(rule.topic) for rule in rules if rule.topic is not None]
    for topic in sorted(set(topics) - named):
        meant = [rule for rule in rules if rule.means(topic)]
        if len(meant) > 1:
            patterns = " and ".join(repr(rule.topics.pattern) for rule in meant if rule.topics)
            raise ConfigurationError(f"topic {topic} is meant by two rules, {patterns}")
        routes += [rule.route(topic) for rule in meant]
    return routes


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """ConfigurationError names a key nobody knows, and the one that may have been meant."""
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
            raise ConfigurationError(f"{where}: there is no key {key!r}{meant}")


def convert(
    values: Mapping[str, Any],
    kind: type[T],
    where: str,
    as_it_is: Callable[[type, Any], Any] | None = None,
) -> T:
    """A table as what it is to be; ConfigurationError names ``where``, the key, and what may be."""
    try:
        return msgspec.convert(values, kind, dec_hook=as_it_is)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{where}: {_in_words(str(error), kind)}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}" if where else str(error)) from error


def _in_words(complaint: str, kind: type) -> str:
    """What msgspec says, as one who edits a file would."""
    if found := _WRONG_TYPE.fullmatch(complaint):
        wanted = " or ".join(_TYPES.get(it, it) for it in found[1].split(" | ") if it != "null")
        return f"{found[3]} must be {wanted}, and is {_TYPES.get(found[2], found[2])}"
    if found := _WRONG_CHOICE.fullmatch(complaint):
        choices = ", ".join(map(str, get_args(get_type_hints(kind)[found[2]])))
        return f"{found[2]} {found[1]} is none of {choices}"
    return complaint.replace(_LACKS, "it lacks the key")


def text_table(table: Any, where: str) -> dict[str, str]:
    """A table of texts, numbers and truths as texts; ConfigurationError for anything else."""
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} is not a table")
    for key, value in table.items():
        if not isinstance(value, str | int | float):
            raise ConfigurationError(f"{where}: {key} is neither text nor a number")
    return {key: text_of(value) for key, value in table.items()}


def text_of(value: str | float) -> str:
    """As librdkafka and Kafka write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
