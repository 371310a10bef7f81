"""The port on a NATS server: commands as JetStream and core NATS requests over nats-py.

======================= ==========================================================================
`port.py`               life, dispatch, heartbeats and probes, the connection's comings and goings
`wire.py`               what the parts share: connection, outbox, tasks
`link.py`               whether the connection is up; what waits on it ends when it breaks
`api.py`                JetStream's JSON API, errors as values
`keys.py`               the group's bucket
`watch.py`              what changes in it
`streams.py`            the stream, looked at before anything is changed
`consumers.py`          the partitions' consumers
`pull.py`               standing pulls
`permissions.py`        what a user must be allowed, tried before anything is changed
`letters.py`            dead letters and parked messages
======================= ==========================================================================
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client, ServerVersion
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from .. import naming
from ..errors import BadRecord, PermissionMissing, ServerUnfit, ServerUnreachable
from ..model import ConfigRecord, FailurePolicy, MemberSettings, decode
from ..partitioning.key import KeyRule
from ..ports import (
    Ack,
    Acks,
    Alive,
    Announce,
    Announced,
    Beat,
    Broken,
    ClosePull,
    Command,
    CreateConsumer,
    DeleteConsumer,
    DeleteKey,
    DeleteLetter,
    Disconnected,
    Done,
    DoubleAck,
    Failed,
    FindParked,
    Heard,
    ListConsumers,
    Listen,
    Listener,
    ListKeys,
    OpenPull,
    Prepare,
    Prepared,
    Probe,
    ReadConsumer,
    ReadKey,
    ReadLetters,
    Reconnected,
    Reply,
    Spawn,
    StoreLetter,
    Watch as WatchCommand,
    WriteKey,
)
from .api import API_PREFIX, Api, Forbidden, RequestFailed, pass_cancellation
from .consumers import Consumers
from .keys import Bucket
from .letters import Letters
from .permissions import Role, check as check_permissions, needs
from .pull import Pulls
from .streams import Streams
from .watch import Watch
from .wire import Wire, close, connect, unsubscribe

logger = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.05
OLDEST = (2, 10)
"""Version of nats-server that a group needs: consumers with several filters came with it."""


def check_version(url: str, version: ServerVersion) -> None:
    """Refuse, with ServerUnfit, a server that is too old for any group; any other name is fine."""
    try:
        found = (version.major, version.minor, version.patch)
    except ValueError:
        return
    if (0, 0) < found[:2] < OLDEST:
        said, least = (".".join(map(str, one)) for one in (found, OLDEST))
        raise ServerUnfit(url, f"it is nats-server {said}, a group needs {least} or newer")


class JetStreamPort:
    """A member's `Port` on a NATS server."""

    def __init__(
        self,
        connection: str | Client,
        settings: MemberSettings,
        rule: KeyRule | None,
        *,
        prefix: str = API_PREFIX,
    ) -> None:
        """``rule`` None: the group has no stream. A client that is given stays open.

        ``prefix`` is where JetStream is asked: `api_prefix` makes it of a domain.
        """
        self._given = connection
        self._prefix = prefix
        self._settings = settings
        self._rule = rule
        self._client: Client | None = None
        self._has_ttl = False
        self._subscriptions: list[Subscription] = []
        self._listening: list[Subscription] = []
        self._listen_number = 0
        self._forbidden: set[str] = set()
        """What was found to be forbidden later than at the start; each is said once."""
        self._is_connected = True
        self._reconnects = 0
        self._is_closed = False

    # ---- life ----

    async def open(self, listener: Listener, spawn: Spawn) -> None:
        """Connect, look at server and stream, subscribe to what this member must hear."""
        client = self._given if isinstance(self._given, Client) else await connect(self._given)
        settings = self._settings
        self._client = client
        self._api = Api(client, settings.timing.request_timeout_s, self._prefix, is_patient=True)
        self._wire = Wire(client, self._api, settings, self._rule, listener, spawn)
        self._streams = Streams(self._api, settings, self._rule)
        self._consumers = Consumers(self._api, settings, self._rule, self._streams)
        self._bucket = Bucket(self._api, settings)
        self._letters = Letters(self._api, settings, self._rule, self._streams)
        self._watch = Watch(self._wire, self._bucket)
        self._pulls = Pulls(self._wire, self._streams.of)
        self._answers = self._table()
        self._reconnects = self._api.link.reconnects
        try:
            await self._check_permissions()
            await self._look()
            probe = naming.probe(settings.group, settings.member)
            beat = naming.heartbeat(settings.group, settings.member)
            for subject, callback in ((probe, self._on_probe), (beat, self._on_beat)):
                self._subscriptions.append(await client.subscribe(subject, cb=callback))
                pass_cancellation()
            spawn(self._wire.send(), "send")
            await self._check_responses()
        except BaseException:
            await self.close()
            raise
        spawn(self._check(), "check")

    async def close(self) -> None:
        """Unsubscribe everything; close the connection if it is our own."""
        if self._is_closed or self._client is None:
            return
        self._is_closed = self._wire.is_closed = True
        if not isinstance(self._given, Client):
            await close(self._client)
            return
        await self._pulls.close_all()
        await self._watch.close()
        for subscription in (*self._subscriptions, *self._listening):
            await unsubscribe(subscription)

    async def _check_permissions(self) -> None:
        """Find out what this user may not do before anything is asked or changed."""
        settings = self._settings
        needed = needs(
            Role.LEADER if settings.can_lead else Role.WORKER,
            settings.group,
            self._streams.names,
            prefix=self._prefix,
            inbox=self._wire.client.new_inbox().rpartition(".")[0],
            has_letters=settings.config.on_failure is not FailurePolicy.RETRY,
            member=settings.member,
        )
        await check_permissions(self._wire.client, needed, settings.timing.request_timeout_s)

    async def _check_responses(self) -> None:
        """Probe this member, as others will: it must be allowed to answer."""
        settings = self._settings
        try:
            await self._api.request(naming.probe(settings.group, settings.member))
        except RequestFailed as error:
            # The forbidden answer is this connection's own, to an inbox of its own.
            if "permissions violation for publish" in str(self._wire.client.last_error).lower():
                missing = "answer a probe (allow_responses)"
                raise PermissionMissing(settings.group, [missing]) from error
            raise ServerUnreachable(self._api.url, f"a probe of oneself: {error}") from error

    async def _look(self) -> None:
        """Check server and streams before anything is changed."""
        client = self._wire.client
        check_version(self._api.url, client.connected_server_version)
        try:
            info = await self._api.call("INFO")
        except RequestFailed as error:
            raise self._api.failure(error, self._settings.group) from error
        self._has_ttl = info.get("api", {}).get("level", 0) >= 1
        await self._streams.look()
        for warning in self._streams.warnings:
            logger.warning(
                "group %s: %s", self._settings.group, warning, extra={"event": "stream_may_drop"}
            )

    # ---- commands ----

    def execute(self, command: Command) -> None:
        """Start carrying out a command."""
        match command:
            case Ack():
                payload = b"+WPI" if command.is_progress else b"+ACK"
                self._wire.publish(command.message.reply, payload)
            case Acks():
                self._wire.acknowledge([message.reply for message in command.messages])
                self._pulls.acked(command.messages)
            case Beat():
                settings = self._settings
                subject = naming.heartbeat(settings.group, settings.member)
                beat = f"{settings.instance} {command.sent_at!r} {command.deaf_s!r} {command.epoch}"
                self._wire.publish(subject, beat.encode())
            case Announce():
                subject = naming.event(self._settings.group, self._settings.member)
                self._wire.publish(subject, command.value)
            case DoubleAck():
                self._wire.after_output(lambda: self._start(command))
            case OpenPull():
                self._pulls.open(command)
            case ClosePull():
                self._pulls.close(command.pull)
            case WatchCommand():
                self._watch.open()
            case Listen():
                self._listen_number += 1
                self._wire.start(self._listen(command.member, self._listen_number), "listen")
            case _:
                self._start(command)

    def _start(self, command: Command) -> None:
        self._wire.start(self._answer(command), type(command).__name__)

    async def _answer(self, command: Command) -> None:
        reply: Reply
        try:
            reply = await self._answers[type(command)](command)
        except RequestFailed as error:
            if isinstance(error, Forbidden) and error.missing not in self._forbidden:
                self._forbidden.add(error.missing)
                logger.warning(
                    "group %s: %s",
                    self._settings.group,
                    error.detail,
                    extra={"event": "permission_missing"},
                )
            id_ = getattr(command, "id", 0)
            reply = Failed(id=id_, reason=error.reason, detail=error.detail)
        self._wire.tell(reply)

    def _table(self) -> dict[type, Callable[[Any], Awaitable[Reply]]]:
        """Who carries out which command that is answered."""
        return {
            Prepare: self._prepare,
            Probe: self._probe,
            DoubleAck: self._double_ack,
            ReadKey: self._bucket.read,
            ListKeys: self._bucket.names,
            WriteKey: self._bucket.write,
            DeleteKey: self._bucket.write,
            ListConsumers: self._consumers.names,
            ReadConsumer: self._consumers.read,
            CreateConsumer: self._consumers.create,
            DeleteConsumer: self._consumers.delete,
            StoreLetter: self._letters.store,
            ReadLetters: self._letters.read,
            FindParked: self._letters.find_parked,
            DeleteLetter: self._letters.delete,
        }

    async def _prepare(self, command: Prepare) -> Reply:
        await self._bucket.prepare(self._streams.num_replicas, has_ttl=self._has_ttl)
        if await self._has_letters():
            await self._letters.prepare()
        return Prepared(
            id=command.id,
            begins_at=self._bucket.begins_at,
            has_key_ttl=self._bucket.has_ttl,
            may_overlap=self._streams.is_limits,
            warnings=self._streams.warnings,
        )

    async def _has_letters(self) -> bool:
        """Whether the group that is there keeps letters: one that does not will refuse this member.

        Its stream would be made for nothing.
        """
        bucket = naming.bucket(self._settings.group)
        value = (await self._api.read(bucket, naming.CONFIG_KEY)).value
        try:
            found = None if value is None else decode(ConfigRecord, value)
        except BadRecord:
            return False
        return found is None or found.on_failure != FailurePolicy.RETRY

    async def _probe(self, command: Probe) -> Reply:
        subject = naming.probe(self._settings.group, command.member)
        return Alive(id=command.id, instance=(await self._api.request(subject)).decode())

    async def _double_ack(self, command: DoubleAck) -> Reply:
        await self._api.request(command.message.reply, b"+ACK")
        return Done(id=command.id)

    # ---- heartbeats and probes ----

    async def _on_probe(self, message: Msg) -> None:
        if message.reply:
            self._wire.publish(message.reply, self._settings.instance.encode())

    async def _on_beat(self, message: Msg) -> None:
        """Hear ``<instance> <sent at> [<deaf for> [<epoch> …]]``; a newer member may say more."""
        instance, *numbers = message.data.decode("ascii", "replace").split(" ")
        try:
            sent_at = float(numbers[0])
            deaf_s = float(numbers[1]) if len(numbers) > 1 else 0.0
            epoch = int(numbers[2]) if len(numbers) > 2 else 0
        except (ValueError, IndexError):
            return
        member = message.subject.rpartition(".")[2]
        self._wire.tell(
            Heard(member=member, instance=instance, sent_at=sent_at, deaf_s=deaf_s, epoch=epoch)
        )

    async def _on_announced(self, message: Msg) -> None:
        if message.data:
            self._wire.tell(Announced(value=message.data))

    async def _listen(self, member: str | None, number: int) -> None:
        """Hear a member, or all and what they announce; ``number``: is it the newest wish?"""
        before, self._listening = self._listening, []
        for subscription in before:
            await unsubscribe(subscription)
        group = self._settings.group
        wanted = {naming.heartbeat(group, member or "*"): self._on_beat}
        if member is None:
            wanted[naming.event(group, "*")] = self._on_announced
        elif member == self._settings.member:
            return
        for subject, callback in wanted.items():
            if number != self._listen_number or self._is_closed:
                return
            try:
                subscription = await self._wire.client.subscribe(subject, cb=callback)
            except nats.errors.Error as error:
                logger.debug("listen: %s", error, extra={"event": "listen_failed"})
                return
            if number == self._listen_number and not self._is_closed:
                self._listening.append(subscription)
            else:
                await unsubscribe(subscription)

    # ---- time ----

    async def _check(self) -> None:
        """Notice that the connection went or came back, and what has fallen silent."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            self._check_connection()
            if self._api.link.is_over:
                reason = "the connection is closed, and its client does not open it again"
                self._wire.tell(Broken(ServerUnreachable(self._api.url, reason)))
                return
            if self._is_connected:
                self._pulls.check(self._wire.now)
                self._watch.check(self._wire.now)

    def _check_connection(self) -> None:
        link = self._api.link
        if self._is_connected and link.is_broken_since(self._reconnects):
            self._is_connected = False
            self._wire.tell(Disconnected())
        if not self._is_connected and link.is_up:
            self._is_connected = True
            self._reconnects = link.reconnects
            self._wire.tell(Reconnected())
