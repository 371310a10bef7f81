"""What is suspicious about routes before anything is moved: found from the routes alone. Pure.

An *error* would lose records, mix them up, or be refused by the server in the middle of work. A
*warning* is right for some and wrong for others.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from millstream_coordinator.partitioning.pattern import overlap

from ..model import Route
from .mapping import Mapping
from .overlaps import Overlaps

_TOKENS_MAX = 16


class Lint(NamedTuple):
    """One finding about one route, or the first of two."""

    severity: Literal["error", "warning"]
    topic: str
    what: str


def lint(routes: Sequence[Route]) -> list[Lint]:
    """All findings, errors first. ConfigurationError: a route cannot be used at all."""
    mappings = [Mapping(route) for route in routes]
    found = [finding for mapping in mappings for finding in _alone(mapping)]
    for one, other in _meeting(mappings):
        found += _together(mappings[one], mappings[other])
    return sorted(found, key=lambda finding: finding.severity)


def _alone(mapping: Mapping) -> list[Lint]:
    route, fields = mapping.route, mapping.template.fields
    found = [
        Lint(
            "warning",
            route.topic,
            f"a record that has nothing for {field.text} has no subject"
            f" (then on_poison: {route.on_poison}); |default(…) gives it one",
        )
        for field in fields
        if field.kind in ("header", "value", "part") and not field.has_default
    ]
    if any(field.kind == "value" for field in fields):
        found.append(Lint("warning", route.topic, "every value is parsed as JSON for its subject"))
    if not mapping.has_key:
        what = "the whole key is not in the subject, only in a header: a group cannot order by it"
        found.append(Lint("warning", route.topic, what))
    if route.max_msgs_per_subject is not None and not mapping.has_key:
        found.append(
            Lint(
                "error",
                route.topic,
                f"max_msgs_per_subject {route.max_msgs_per_subject} where different keys can have"
                " one subject: one key's records would push out another's",
            )
        )
    if route.subject.count(".") >= _TOKENS_MAX:
        what = f"subjects of more than {_TOKENS_MAX} tokens are slow to route"
        found.append(Lint("warning", route.topic, what))
    return found


def _meeting(mappings: Sequence[Mapping]) -> list[tuple[int, int]]:
    """The pairs that `_together` has something to say of.

    Each route with one before it for each reason, not with all: of a thousand that are in each
    other's way there are half a million pairs, and one is enough to refuse them.
    """
    pairs = set[tuple[int, int]]()
    first = dict[tuple[object, ...], int]()
    written, listened_to = Overlaps[int](), Overlaps[str]()
    for n, mapping in enumerate(mappings):
        route, listens = mapping.route, _listened_to(mapping)
        own: list[tuple[object, ...]] = [("name", route.name), ("topic", route.topic, route.stream)]
        alone, shared = (("stream", route.stream, it) for it in (False, True))
        in_the_way = [*own, alone] if route.shared else [*own, alone, shared]
        found = [first.get(it) for it in in_the_way]
        found += [written.other(it, n) for it in mapping.subjects]
        found += [listened_to.other(it, route.stream) for it in listens]
        pairs |= {(other, n) for other in found if other is not None}
        for kind in [*own, shared if route.shared else alone]:
            first.setdefault(kind, n)
        for subject in mapping.subjects:
            written.add(subject, n, n)
        for subject in listens:
            listened_to.add(subject, route.stream, n)
    return sorted(pairs)


def _together(one: Mapping, other: Mapping) -> list[Lint]:
    first, second = one.route, other.route
    pair = f"topic {first.topic} and topic {second.topic}"
    if first.topic == second.topic and first.stream == second.stream:
        return [Lint("error", first.topic, "two routes move this topic into one stream")]
    if first.name == second.name:
        return [Lint("error", first.topic, f"{pair} have one route name, {first.name}")]
    if clash := _clash(one.subjects, other.subjects):
        return [Lint("error", first.topic, f"{pair} write one subject space ({clash})")]
    if first.stream == second.stream and not (first.shared and second.shared):
        what = f"{pair} share stream {first.stream}, so both must be shared routes"
        what += f" (not shared: {', '.join(it.topic for it in (first, second) if not it.shared)})"
        return [Lint("error", first.topic, what)]
    clash = _clash(_listened_to(one), _listened_to(other))
    if first.stream != second.stream and clash:
        what = f"streams {first.stream} and {second.stream} would both listen to {clash}"
        return [Lint("error", first.topic, what)]
    return []


def _listened_to(mapping: Mapping) -> Sequence[str]:
    """What streams made for the route listen to; partition 0's stands for all of a dense route."""
    if mapping.route.mode == "dense":
        return [mapping.template.filter(0), f"{mapping.poison_subject(0)}.*"]
    return mapping.stream_subjects


def _clash(mine: Sequence[str], theirs: Sequence[str]) -> str:
    """Two patterns that some subject matches both of, as text; empty if there are none."""
    pairs = ((one, other) for one in mine for other in theirs if overlap(one, other))
    return next((f"{one} and {other}" for one, other in pairs), "")
