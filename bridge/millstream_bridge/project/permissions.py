"""What a user needs on either side for a route: the least privilege that works. Pure.

For NATS the subjects to publish to and to subscribe to, as a server's configuration wants them; for
Kafka the operations, as its access control lists name them. Both lists are what the code asks for,
and tests run it with exactly these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from millstream_coordinator import naming

from ..back.runner import way_back_name
from ..model import PARTITION_FIELD, Route
from ..records.mapping import Mapping
from .file import GroupMove

JETSTREAM_API: Final = "$JS.API"


class Purpose(StrEnum):
    """What the user does: move records there or back, look at both sides, or move groups."""

    RUN = "run"
    BACK = "back"
    VERIFY = "verify"
    ASSESS = "assess"
    CUTOVER = "cutover"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Patterns for NATS, lines of (resource, name, operation) for Kafka."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    kafka: tuple[tuple[str, str, str], ...]

    def config_text(self) -> str:
        """``permissions { … }`` as a NATS server's configuration has it for a user."""
        lines = ["permissions {"]
        for name, patterns in (("publish", self.publish), ("subscribe", self.subscribe)):
            lines.append(f"  {name}: [")
            lines += [f'    "{pattern}"' for pattern in patterns]
            lines.append("  ]")
        return "\n".join([*lines, "}", ""])


def needs(
    purpose: Purpose,
    routes: Sequence[Route],
    *,
    groups: Sequence[GroupMove] = (),
    api_prefix: str = JETSTREAM_API,
    inbox_prefix: str = "_INBOX",
) -> Needs:
    """What all of ``routes`` need together.

    ``verify`` is for `verify` and `barrier`; ``assess`` for `assess` and `plan`; ``rollback`` with
    ``--bring-back``. ``groups`` are those of a cut-over or rollback. A dense route makes and reads
    as many streams as there are partitions, so any stream's name stands for them.
    """
    publish: list[str] = []
    kafka: list[tuple[str, str, str]] = []
    for route in routes:
        kafka.append(("topic", route.topic, "Read"))
        match purpose:
            case Purpose.RUN:
                publish += _of_run(route, api_prefix)
            case Purpose.BACK:
                publish += _of_back(route, api_prefix)
                kafka += _kafka_of_back(route)
            case Purpose.VERIFY:
                publish += _of_verify(route, api_prefix)
            case Purpose.ASSESS:
                publish.append(f"{api_prefix}.STREAM.INFO.{_stream(route)}")
                kafka.append(("topic", route.topic, "DescribeConfigs"))
            case Purpose.CUTOVER:
                publish += _of_look(_stream(route), api_prefix)
                kafka.append(("group", way_back_name(route), "Describe"))
            case Purpose.ROLLBACK:
                publish += _of_look(_stream(route), api_prefix) + _of_back(route, api_prefix)
                kafka += _kafka_of_back(route)
        for move in groups:
            if not move.routes or route.name in move.routes:
                publish += _of_group(purpose, move.group, _stream(route), api_prefix)
    if purpose is Purpose.ASSESS:
        kafka.append(("group", "*", "Describe"))
    operation = "Describe" if purpose is Purpose.CUTOVER else "Read"
    kafka += [("group", move.kafka, operation) for move in groups]
    return Needs(
        publish=widest(publish),
        subscribe=(f"{inbox_prefix}.>",),
        kafka=tuple(dict.fromkeys(kafka)),
    )


def widest(patterns: Sequence[str]) -> tuple[str, ...]:
    """Those that no other one covers, each once, as they come.

    A project has thousands, so they are found in a tree of their tokens, not one by another.
    """
    distinct = dict.fromkeys(patterns)
    tree: dict[str, Any] = {}
    for pattern in distinct:
        branch = tree
        for token in pattern.split("."):
            branch = branch.setdefault(token, {})
        branch[_END] = {}
    # Each covers itself.
    return tuple(it for it in distinct if _count_covering(tree, it.split("."), 0) == 1)


_END = ""
"""In a tree of tokens: a pattern ends here. No token is empty."""


def _count_covering(branch: dict[str, Any], tokens: Sequence[str], place: int) -> int:
    """How many patterns of ``branch`` match all that ``tokens`` from ``place`` on match."""
    if place == len(tokens):
        return int(_END in branch)
    count = int(">" in branch)
    if tokens[place] != ">":
        for token in {"*", tokens[place]} & branch.keys():
            count += _count_covering(branch[token], tokens, place + 1)
    return count


def _stream(route: Route) -> str:
    return "*" if PARTITION_FIELD in route.stream else route.stream


def _of_run(route: Route, api: str) -> list[str]:
    mapping, stream = Mapping(route), _stream(route)
    patterns = [f"{api}.STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "MSG.GET")]
    patterns += [f"{api}.INFO", mapping.route_filter]
    if route.mode == "dense":
        patterns.append(f"{api}.STREAM.UPDATE.{stream}")  # to write down its place, and gaps
    if route.shared:
        patterns.append(mapping.checkpoint_subject("*"))
    if route.on_poison != "stop":
        patterns.append(f"{mapping.poison_subject('*')}.*")
    if route.large == "chunks":
        patterns.append(f"{mapping.chunk_subject('*')}.>")
    buckets = [f"MILLSTREAM_LARGE_{route.name}"] if route.large == "object-store" else []
    if route.on_poison == "park":
        buckets.append(f"MILLSTREAM_PARKED_{route.name}")
    for bucket in buckets:
        verbs = ("INFO", "CREATE", "MSG.GET", "PURGE")
        patterns += [f"{api}.STREAM.{verb}.OBJ_{bucket}" for verb in verbs]
        patterns.append(f"$O.{bucket}.>")
    return patterns


def _of_verify(route: Route, api: str) -> list[str]:
    streams = [_stream(route)]
    if route.large == "object-store":
        streams.append(f"OBJ_MILLSTREAM_LARGE_{route.name}")
    return [pattern for stream in streams for pattern in _of_look(stream, api)]


def _of_look(stream: str, api: str) -> list[str]:
    """To read a stream and what it says of itself."""
    return [
        f"{api}.STREAM.INFO.{stream}",
        f"{api}.STREAM.MSG.GET.{stream}",
        f"{api}.CONSUMER.CREATE.{stream}.>",
        f"{api}.CONSUMER.MSG.NEXT.{stream}.*",
        f"{api}.CONSUMER.DELETE.{stream}.*",
    ]


def _of_group(purpose: Purpose, group: str, stream: str, api: str) -> list[str]:
    """To read a coordinator group's records, and for a cut-over to make it or to move it."""
    bucket = naming.bucket(group)
    patterns = [
        f"{api}.STREAM.INFO.KV_{bucket}",
        f"{api}.STREAM.MSG.GET.KV_{bucket}",
        f"{api}.STREAM.INFO.{naming.dead_letter_stream(group)}",
        f"{api}.CONSUMER.INFO.{stream}.*",
        f"{api}.CONSUMER.CREATE.{stream}",  # it does without, two seconds later
    ]
    if purpose is Purpose.CUTOVER:
        keys = "" if api == JETSTREAM_API else f"{api}."
        patterns += [
            f"{api}.INFO",
            f"{api}.STREAM.NAMES",
            f"{api}.CONSUMER.NAMES.{stream}",
            f"{api}.STREAM.CREATE.KV_{bucket}",
            f"{keys}$KV.{bucket}.{naming.CONFIG_KEY}",
            f"{keys}$KV.{bucket}.{naming.PARTITION_PREFIX}*",
        ]
    return patterns


def _kafka_of_back(route: Route) -> list[tuple[str, str, str]]:
    name = way_back_name(route)
    return [
        ("topic", route.topic, "Write"),
        ("group", name, "Read"),
        ("transactional id", name, "Write"),
    ]


def _of_back(route: Route, api: str) -> list[str]:
    stream, name = _stream(route), way_back_name(route)
    verbs = ("INFO", "CREATE", "DELETE", "MSG.NEXT")
    patterns = [f"{api}.CONSUMER.{verb}.{stream}.{name}" for verb in verbs]
    patterns[1] += ".>"
    return [f"{api}.STREAM.INFO.{stream}", *patterns]
