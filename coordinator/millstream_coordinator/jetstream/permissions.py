"""The subjects a group's processes need, by what they do: the least privilege that works.

==================== ===========================================================================
`Role.WORKER`        a member that never leads (``can_lead=False``): owns partitions
`Role.LEADER`        a member that may lead, the default: also makes bucket and letters' stream,
                     hears and keeps events, writes ``leader`` and ``ctl``
`Role.OBSERVER`      ``describe``, ``members``, ``lag``, ``events``, ``dlq ls``: reads
`Role.ADMIN`         what operators do: pause, move, drain, resize, reset, ``dlq``, ``delete``
`Role.SERVICE`       ``run``: leads, and as a micro service does what operators ask for
==================== ===========================================================================

`needs` lists them as permission patterns; `config_text` writes them as a user's ``permissions`` in
a server's configuration. The list is what the code asks for, and a test runs a group with exactly
this. Publishing an answer to a probe is covered by ``allow_responses``, not by a subject.

**A missing permission is found before anything is changed.** A server answers a forbidden publish
with an error on the connection, not on the request, which then waits in vain. `check` therefore
publishes something harmless to one subject of each pattern (a body that is no JSON, a stream that
is not the one expected, a consumer that cannot exist) and then flushes: what is forbidden has been
said by the time the flush returns. Later, a request that is not answered in time is tried in the
same way, if the server has complained about anything (`Api.request`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import nats.errors
from nats.aio.client import Client

from .. import naming
from ..errors import PermissionMissing, ServerUnreachable
from .api import API_PREFIX, NO_EFFECT, Api, flushed, forbids, key_subject
from .keys import MADE_KEY

_NOBODY = "="
"""In no member's name."""


class Role(StrEnum):
    """What a process does with a group."""

    WORKER = "worker"
    LEADER = "leader"
    OBSERVER = "observer"
    ADMIN = "admin"
    SERVICE = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One pattern a user must be allowed, and how it is tried without any effect."""

    pattern: str
    example: str
    """A subject of the pattern at which nothing can happen."""
    payload: bytes = b""
    is_stored: bool = False
    """A stream listens there: the message is sent so that it has to refuse it."""

    @classmethod
    def of_call(cls, pattern: str, wildcard: str = "") -> "Grant":
        """A function of the API; what is sent is no JSON, so it cannot be carried out."""
        example = pattern[:-1] + wildcard if wildcard else pattern
        return cls(pattern=pattern, example=example, payload=b"?")

    @classmethod
    def of_store(cls, pattern: str, wildcard: str = "") -> "Grant":
        """A subject of a stream's, such as a bucket's key."""
        example = pattern[:-1] + wildcard if wildcard else pattern
        return cls(pattern=pattern, example=example, is_stored=True)


SERVICE: Final = tuple(
    Grant(pattern=it, example=it) for it in ("$SRV.>", f"{naming.REQUESTS}.>", naming.release("*"))
)
"""What the service subscribes to, whichever groups it leads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a user must be allowed to publish and to subscribe to."""

    group: str | None
    """None: it is about no single one."""
    publish: tuple[Grant, ...] = ()
    subscribe: tuple[Grant, ...] = ()
    has_responses: bool = False
    """Whether it answers requests (``allow_responses``)."""


def needs(
    role: Role,
    group: str,
    streams: Sequence[str] = (),
    *,
    prefix: str = API_PREFIX,
    inbox: str = "_INBOX",
    has_letters: bool = True,
    member: str = "0",
) -> Needs:
    """Return what a role needs on a group.

    ``streams``: those the group reads (none: membership only). ``prefix``: where JetStream is
    asked. ``inbox``: the client's inbox prefix. ``has_letters``: dead letters may be stored.
    ``member``: whose name stands where a member's is tried.
    """
    listed = _Listed(group, streams, prefix, member)
    is_member = role in (Role.WORKER, Role.LEADER, Role.SERVICE)
    looks = role in (Role.OBSERVER, Role.ADMIN, Role.SERVICE)
    publish = [*listed.reading()]
    if is_member:
        publish += listed.serving()
    if role in (Role.LEADER, Role.SERVICE):
        publish += listed.leading()
    if looks:
        publish += listed.looking()
    if role in (Role.ADMIN, Role.SERVICE):
        publish += listed.administration()
    if streams and has_letters:
        publish += listed.letters(role)
    subscribe = [Grant(pattern=f"{inbox}.>", example=f"{inbox}.{_NOBODY}")]
    if is_member:
        subscribe += [
            Grant(pattern=subject(group, "*"), example=subject(group, member))
            for subject in (naming.heartbeat, naming.probe)
        ]
    if role is not Role.WORKER:
        event = naming.event(group, "*")
        subscribe.append(Grant(pattern=event, example=event))
    if looks:
        beat = naming.heartbeat(group, "*")
        subscribe.append(Grant(pattern=beat, example=beat))
    if role is Role.SERVICE:
        subscribe += SERVICE
    return Needs(
        group=group,
        publish=tuple({one.pattern: one for one in publish}.values()),
        subscribe=tuple({one.pattern: one for one in subscribe}.values()),
        has_responses=is_member,
    )


class _Listed:
    """The grants, by what they are for."""

    def __init__(self, group: str, streams: Sequence[str], prefix: str, member: str) -> None:
        self._group = group
        self._streams = streams
        self._prefix = prefix
        self._member = member
        self._bucket = f"KV_{naming.bucket(group)}"
        self._letters = naming.dead_letter_stream(group)
        self._consumer = naming.consumer(group, 0, 0)
        """No epoch is 0, so there is no consumer of this name."""

    def reading(self) -> Iterable[Grant]:
        yield self._api("INFO")
        yield self._api(f"STREAM.INFO.{self._bucket}")
        yield self._api(f"STREAM.MSG.GET.{self._bucket}")
        for stream in self._streams:
            yield self._api(f"STREAM.INFO.{stream}")
            yield self._api(f"CONSUMER.NAMES.{stream}")
            yield self._api(f"CONSUMER.INFO.{stream}.*", self._consumer)

    def serving(self) -> Iterable[Grant]:
        yield self._api(f"CONSUMER.CREATE.{self._bucket}.*", self._consumer)
        yield self._api(f"CONSUMER.MSG.NEXT.{self._bucket}.*", self._consumer)
        yield self._key(naming.CONFIG_KEY)
        yield self._key(naming.member_key("*"), self._member)
        yield self._key(f"{naming.PARTITION_PREFIX}*", "0")
        yield self._key(f"{naming.PARKED_PREFIX}*", "0")
        yield self._key(naming.done_key("*"), self._member)
        for stream in self._streams:
            yield self._api(f"CONSUMER.CREATE.{stream}.>", f"{self._consumer}.{_NOBODY}")
            yield self._api(f"CONSUMER.DELETE.{stream}.*", self._consumer)
            yield self._api(f"CONSUMER.MSG.NEXT.{stream}.*", self._consumer)
            for ack in (f"$JS.ACK.{stream}", f"$JS.ACK.*.*.{stream}"):
                example = f"{ack.replace('*', '_')}.{self._consumer}.1.1.1.1.0"
                yield Grant(pattern=f"{ack}.>", example=example)
        for subject, member in (
            (naming.heartbeat, self._member),
            (naming.probe, _NOBODY),
            (naming.event, self._member),
        ):
            yield Grant(pattern=subject(self._group, "*"), example=subject(self._group, member))

    def leading(self) -> Iterable[Grant]:
        yield self._api(f"STREAM.CREATE.{self._bucket}")
        yield self._key(naming.LEADER_KEY)
        yield self._key(naming.CONTROL_KEY)
        yield self._key(MADE_KEY)
        yield self._key(f"{naming.EVENT_PREFIX}*", "0")

    def looking(self) -> Iterable[Grant]:
        yield self._api("STREAM.NAMES")
        for stream in self._streams:
            yield self._api(f"STREAM.MSG.GET.{stream}")

    def administration(self) -> Iterable[Grant]:
        yield self._key(naming.CONFIG_KEY)
        yield self._key(naming.CONTROL_KEY)
        yield self._key(f"{naming.PARTITION_PREFIX}*", "0")
        yield self._key(f"{naming.PARKED_PREFIX}*", "0")
        yield self._api(f"STREAM.DELETE.{self._bucket}")
        for stream in self._streams:
            yield self._api(f"CONSUMER.CREATE.{stream}")
            yield self._api(f"CONSUMER.DELETE.{stream}.*", self._consumer)
        probe = naming.probe(self._group, "*")
        yield Grant(pattern=probe, example=naming.probe(self._group, _NOBODY))
        release = naming.release(self._group)
        yield Grant(pattern=release, example=release)

    def letters(self, role: Role) -> Iterable[Grant]:
        yield self._api(f"STREAM.INFO.{self._letters}")
        yield self._api(f"STREAM.MSG.GET.{self._letters}")
        if role is not Role.OBSERVER:
            yield self._api(f"STREAM.MSG.DELETE.{self._letters}")
        if role in (Role.ADMIN, Role.SERVICE):
            yield self._api(f"STREAM.DELETE.{self._letters}")
        if role in (Role.WORKER, Role.LEADER, Role.SERVICE):
            yield self._api(f"STREAM.CREATE.{self._letters}")
            yield Grant(
                pattern=naming.dead_letter(self._group, "*", ">"),
                example=naming.dead_letter(self._group, 0, _NOBODY),
                is_stored=True,
            )

    def _api(self, name: str, wildcard: str = "") -> Grant:
        return Grant.of_call(f"{self._prefix}.{name}", wildcard)

    def _key(self, key: str, wildcard: str = "") -> Grant:
        return Grant.of_store(key_subject(self._prefix, naming.bucket(self._group), key), wildcard)


def config_text(needed: Needs) -> str:
    """Write ``permissions { … }`` as a server's configuration wants it for a user."""
    lines = ["permissions {"]
    for name, grants in (("publish", needed.publish), ("subscribe", needed.subscribe)):
        lines.append(f"  {name}: [")
        lines += [f'    "{grant.pattern}"' for grant in grants]
        lines.append("  ]")
    if needed.has_responses:
        lines.append("  allow_responses: true")
    return "\n".join([*lines, "}", ""])


async def check(client: Client, needed: Needs, timeout_s: float) -> None:
    """Try everything once, harmlessly; raises PermissionMissing that names what is forbidden.

    ServerUnreachable: the connection went, or nobody answers within ``timeout_s``.
    """
    try:
        before = client.last_error
        for grant in needed.publish:
            await _publish(client, grant)
        for grant in needed.subscribe:
            await _subscribe(client, grant)
        await flushed(client, timeout_s)
        if client.last_error is before:
            return
        # Something was said, and a client keeps only the last of it: once more, one by one.
        missing = []
        for grant in needed.publish:
            await _publish(client, grant)
            await flushed(client, timeout_s)
            if forbids(client.last_error, grant.example):
                missing.append(f"publish to {grant.pattern!r}")
        for grant in needed.subscribe:
            await _subscribe(client, grant)
            await flushed(client, timeout_s)
            if forbids(client.last_error, grant.example, "subscription"):
                missing.append(f"subscribe to {grant.pattern!r}")
    except nats.errors.Error as error:
        raise ServerUnreachable(Api(client, timeout_s).url, str(error)) from error
    if missing:
        raise PermissionMissing(needed.group, missing)


async def _publish(client: Client, grant: Grant) -> None:
    headers = NO_EFFECT if grant.is_stored else None
    await client.publish(grant.example, grant.payload, headers=headers)


async def _subscribe(client: Client, grant: Grant) -> None:
    subscription = await client.subscribe(grant.example)
    await subscription.unsubscribe()
