"""The subjects a group's processes need, by what they do: the least privilege that works.

==================== ===========================================================================
`Role.WORKER`        a member that never leads (``can_lead=False``): owns partitions
`Role.LEADER`        a member that may lead, the default: also makes bucket and letters' stream,
                     writes ``leader``, ``ctl`` and the ring of events
`Role.OBSERVER`      ``describe``, ``members``, ``lag``, ``events``, ``dlq ls``: reads
`Role.ADMIN`         what operators do: pause, move, drain, resize, reset, ``dlq``, ``delete``
==================== ===========================================================================

`needs` lists them as permission patterns; `config_text` writes them as a user's ``permissions`` in
a server's configuration. The list is what the code asks for, and a test runs a group with exactly
this. Publishing an answer to a probe is covered by ``allow_responses``, not by a subject.

**A missing permission is found before anything is changed.** A server answers a forbidden publish
with an error on the connection, not on the request, which then waits in vain. `check` therefore
publishes something harmless to one subject of each pattern (a body that is no JSON, a stream that
is not the one expected, a consumer that cannot exist) and then flushes: what is forbidden has been
said by the time the flush returns.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import nats.errors
from nats.aio.client import Client

from .. import naming
from ..errors import PermissionMissing
from .api import API_PREFIX

NO_MEMBER = "="
"""In no member's name."""
_HARMLESS_HEADERS = {"Nats-Expected-Stream": "-", "Nats-Expected-Last-Sequence": str(2**62)}
_NO_JSON = b"?"


class Role(StrEnum):
    """What a process does with a group."""

    WORKER = "worker"
    LEADER = "leader"
    OBSERVER = "observer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Patterns a user must be allowed to publish and to subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    has_responses: bool
    """Whether it answers requests (``allow_responses``)."""


def needs(
    role: Role,
    group: str,
    streams: Sequence[str] = (),
    *,
    prefix: str = API_PREFIX,
    inbox: str = "_INBOX",
    has_letters: bool = True,
) -> Needs:
    """Return what a role needs on a group.

    ``streams``: those the group reads (none: membership only). ``prefix``: where JetStream is
    asked. ``inbox``: the client's inbox prefix. ``has_letters``: the group's policy stores letters.
    """
    listed = _Listed(group, streams, prefix)
    is_member = role in (Role.WORKER, Role.LEADER)
    publish = [*listed.reading()]
    if is_member:
        publish += listed.serving()
    if role is Role.LEADER:
        publish += listed.leading()
    if role is Role.ADMIN:
        publish += listed.administration()
    if streams and has_letters:
        publish += listed.letters(role)
    subscribe = [f"{inbox}.>"]
    if is_member:
        subscribe += [naming.heartbeat(group, "*"), naming.probe(group, "*")]
    else:
        subscribe.append(naming.event(group, "*"))
    return Needs(
        publish=tuple(dict.fromkeys(publish)),
        subscribe=tuple(subscribe),
        has_responses=is_member,
    )


class _Listed:
    """The patterns, in groups of what they are for."""

    def __init__(self, group: str, streams: Sequence[str], prefix: str) -> None:
        self._group = group
        self._streams = streams
        self._prefix = prefix
        self._bucket = f"KV_{naming.bucket(group)}"
        self._letters = naming.dead_letter_stream(group)

    def reading(self) -> Iterable[str]:
        yield self._api("INFO")
        yield self._api(f"STREAM.INFO.{self._bucket}")
        yield self._api(f"STREAM.MSG.GET.{self._bucket}")
        for stream in self._streams:
            yield self._api(f"STREAM.INFO.{stream}")
            yield self._api(f"CONSUMER.INFO.{stream}.*")
            yield self._api(f"CONSUMER.NAMES.{stream}")

    def serving(self) -> Iterable[str]:
        yield self._api(f"CONSUMER.CREATE.{self._bucket}.*")
        yield self._api(f"CONSUMER.MSG.NEXT.{self._bucket}.*")
        for key in (
            naming.CONFIG_KEY,
            naming.member_key("*"),
            f"{naming.PARTITION_PREFIX}*",
            f"{naming.PARKED_PREFIX}*",
            naming.done_key("*"),
        ):
            yield self._key(key)
        for stream in self._streams:
            yield self._api(f"CONSUMER.CREATE.{stream}.>")
            yield self._api(f"CONSUMER.DELETE.{stream}.*")
            yield self._api(f"CONSUMER.MSG.NEXT.{stream}.*")
            yield f"$JS.ACK.{stream}.>"
            yield f"$JS.ACK.*.*.{stream}.>"
        yield naming.heartbeat(self._group, "*")
        yield naming.probe(self._group, "*")
        yield naming.event(self._group, "*")

    def leading(self) -> Iterable[str]:
        yield self._api(f"STREAM.CREATE.{self._bucket}")
        for key in (naming.LEADER_KEY, naming.CONTROL_KEY, f"{naming.EVENT_PREFIX}*"):
            yield self._key(key)

    def administration(self) -> Iterable[str]:
        for key in (
            naming.CONFIG_KEY,
            naming.CONTROL_KEY,
            f"{naming.PARTITION_PREFIX}*",
            f"{naming.PARKED_PREFIX}*",
        ):
            yield self._key(key)
        yield self._api("STREAM.NAMES")
        yield self._api(f"STREAM.DELETE.{self._bucket}")
        for stream in self._streams:
            yield self._api(f"CONSUMER.DELETE.{stream}.*")
            yield self._api(f"STREAM.MSG.GET.{stream}")

    def letters(self, role: Role) -> Iterable[str]:
        yield self._api(f"STREAM.MSG.GET.{self._letters}")
        if role is Role.OBSERVER:
            yield self._api(f"STREAM.INFO.{self._letters}")
            return
        yield self._api(f"STREAM.MSG.DELETE.{self._letters}")
        if role is Role.ADMIN:
            yield self._api(f"STREAM.INFO.{self._letters}")
            yield self._api(f"STREAM.DELETE.{self._letters}")
            return
        yield naming.dead_letter(self._group, "*", ">")
        yield self._api(f"STREAM.CREATE.{self._letters}")

    def _api(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    def _key(self, key: str) -> str:
        stored = f"$KV.{naming.bucket(self._group)}.{key}"
        return stored if self._prefix == API_PREFIX else f"{self._prefix}.{stored}"


def config_text(needed: Needs) -> str:
    """Write ``permissions { … }`` as a server's configuration wants it for a user."""
    lines = ["permissions {"]
    for name, patterns in (("publish", needed.publish), ("subscribe", needed.subscribe)):
        lines.append(f"  {name}: [")
        lines += [f'    "{pattern}"' for pattern in patterns]
        lines.append("  ]")
    if needed.has_responses:
        lines.append("  allow_responses: true")
    return "\n".join([*lines, "}", ""])


async def check(
    client: Client, needed: Needs, group: str, member: str, inbox: str, timeout_s: float
) -> None:
    """Try every pattern once, harmlessly; raises PermissionMissing that names what is forbidden.

    ``inbox`` is one of the client's. Subscribing is tried with what a member subscribes to.
    """
    before = client.last_error
    for pattern in needed.publish:
        await _try_publish(client, pattern, group, member)
    for pattern in needed.subscribe:
        await _try_subscribe(client, _example(pattern, group, member, inbox))
    await _flush(client, timeout_s)
    if client.last_error is before:
        return
    # Something was said, and a client keeps only the last of it: once more, one by one.
    missing = []
    for pattern in needed.publish:
        await _try_publish(client, pattern, group, member)
        if await _is_forbidden(client, _example(pattern, group, member, inbox), timeout_s):
            missing.append(f"publish to {pattern!r}")
    for pattern in needed.subscribe:
        subject = _example(pattern, group, member, inbox)
        await _try_subscribe(client, subject)
        if await _is_forbidden(client, subject, timeout_s):
            missing.append(f"subscribe to {pattern!r}")
    if missing:
        raise PermissionMissing(group, missing)


def forbids(error: Exception | None, subject: str) -> bool:
    """Whether ``error`` is a server's word that ``subject`` is not permitted."""
    text = str(error).lower()
    return "permissions violation" in text and f'"{subject.lower()}"' in text


async def _is_forbidden(client: Client, subject: str, timeout_s: float) -> bool:
    await _flush(client, timeout_s)
    return forbids(client.last_error, subject)


async def _flush(client: Client, timeout_s: float) -> None:
    with_margin = max(1, round(timeout_s * 2))
    await client.flush(timeout=with_margin)


async def _try_publish(client: Client, pattern: str, group: str, member: str) -> None:
    subject = _example(pattern, group, member, "")
    if "$KV." in subject or subject.startswith("millstream.dlq."):
        await client.publish(subject, b"", headers=_HARMLESS_HEADERS)
    elif ".API." in f".{subject}" and not subject.startswith("millstream."):
        await client.publish(subject, _NO_JSON)
    else:
        await client.publish(subject, b"")


async def _try_subscribe(client: Client, subject: str) -> None:
    subscription = await client.subscribe(subject)
    await subscription.unsubscribe()


def _example(pattern: str, group: str, member: str, inbox: str) -> str:
    """Return one subject that a pattern allows, at which nothing can happen."""
    if pattern.endswith(".>") and inbox and not pattern.startswith(("$", "millstream.")):
        return inbox
    consumer = naming.consumer(group, 0, 0)
    if pattern.startswith(("millstream.group.", "$KV.")) or ".$KV." in pattern:
        instead = member if ".done." in pattern or ".members." in pattern else "0"
        if pattern.startswith("millstream.group."):
            instead = NO_MEMBER if ".probe." in pattern else member
        return pattern.replace("*", instead).replace(">", "0")
    if pattern.startswith("$JS.ACK."):
        rest = pattern.removeprefix("$JS.ACK.").removesuffix(".>").replace("*", "_")
        return f"$JS.ACK.{rest}.{consumer}.1.1.1.1.0"
    return pattern.replace("*", consumer).replace(">", f"{consumer}.x")


_ = asyncio
