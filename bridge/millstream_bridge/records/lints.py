"""What is suspicious about routes before anything is moved: found from the routes alone. Pure.

An *error* would lose records, mix them up, or be refused by the server in the middle of work. A
*warning* is right for some and wrong for others.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, takewhile
from typing import Literal, NamedTuple

from millstream_coordinator.partitioning.pattern import overlap

from ..model import Route
from .mapping import Mapping

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
    """The pairs that `_together` may have something to say of; of a thousand routes, few.

    Two patterns have a subject in common only if the tokens before the first wildcard of one are
    the beginning of the other's.
    """
    pairs = set[tuple[int, int]]()
    same = defaultdict[tuple[str, ...], list[int]](list)
    heads = defaultdict[tuple[str, ...], set[int]](set)
    of_each = []
    for n, mapping in enumerate(mappings):
        route = mapping.route
        same["name", route.name].append(n)
        same["topic", route.topic, route.stream].append(n)
        same["stream", route.stream].append(n)
        of_each.append({_head(it) for it in (*mapping.subjects, *_listened_to(mapping))})
        for head in of_each[-1]:
            heads[head].add(n)
    for kind, mates in same.items():
        if kind[0] == "stream" and all(mappings[n].route.shared for n in mates):
            continue
        pairs.update(combinations(mates, 2))
    for n, own in enumerate(of_each):
        begins = {head[:size] for head in own for size in range(len(head) + 1)}
        for other in set().union(*(heads.get(it, ()) for it in begins)) - {n}:
            pairs.add((min(n, other), max(n, other)))
    return sorted(pairs)


def _head(pattern: str) -> tuple[str, ...]:
    return tuple(takewhile(lambda token: token not in ("*", ">"), pattern.split(".")))


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
