"""The port on a NATS server: commands as JetStream and core NATS requests over nats-py.

What is worth knowing of the wire:

* **Standing pull.** One long-lived pull request per partition with idle heartbeats, renewed before
  its batch or its time runs out; two overlap for a while, which costs nothing. nats-py's ``fetch``
  would wait out a timeout whenever fewer messages than asked for may be under way.
* **Idle heartbeats** carry the consumer sequence of the last delivery (``Nats-Last-Consumer``), so
  a delivery that was lost at the end of a burst is noticed without another one.
* **The watch** is an ephemeral push consumer on the newest value of each key that matters. It is
  made anew after every reconnect, hole, or silence; values come again and the book ignores them.
* **Consumers are durable with an inactive threshold**: they survive a server's restart, and orphans
  die by themselves. On limits streams with several replicas they have one: the truth about a
  position is in the bucket, and making a replicated consumer takes ten times as long.
* **Reconnects are counted** (``stats["reconnects"]``): a no-responders that comes over a new
  connection says nothing about who was there on the old one.
* **Interest retention is refused.** Such a stream deletes a message when the last consumer that
  wanted it goes, and a change of owner deletes the consumer before it makes the next.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from .. import naming
from ..errors import GroupError, ServerUnreachable, StreamMissing, StreamUnfit
from ..model import MemberSettings, Message, Retention
from ..partitioning.key import KeyRule, stored_subjects
from ..ports import (
    Ack,
    Alive,
    Beat,
    Broken,
    BucketGone,
    ClosePull,
    Command,
    Conflict,
    ConsumerNames,
    ConsumerRead,
    CreateConsumer,
    DeleteConsumer,
    DeleteKey,
    Delivered,
    Disconnected,
    Done,
    DoubleAck,
    Failed,
    Failure,
    Heard,
    KeyChanged,
    KeyRead,
    ListConsumers,
    Listen,
    Listener,
    OpenPull,
    Overlap,
    Prepare,
    Prepared,
    Probe,
    PullEnded,
    PullIdle,
    ReadConsumer,
    ReadKey,
    Reconnected,
    Reply,
    Spawn,
    Watch,
    WatchCaughtUp,
    WriteKey,
    Written,
)
from .api import (
    CONSUMER_NOT_FOUND,
    FILTER_OVERLAP,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
    marks_deletion,
)

logger = logging.getLogger(__name__)

PULL_BATCH = 10_000
PULL_EXPIRES_S = 60.0
PULL_HEARTBEAT_S = 1.0
WATCH_HEARTBEAT_S = 1.0
SILENT_HEARTBEATS = 3
"""So many heartbeats missed: what should send them is not there any more."""
INACTIVE_THRESHOLD_S = 6 * 3600
MARKER_TTL_S = 3600
STREAM_CONSUMERS_MAX = 1000
"""What a stream takes where its own limit says nothing (seen on 2.15.1: error 10026)."""
_CHECK_INTERVAL_S = 0.05
_NS = 1_000_000_000


async def connect(url: str) -> Client:
    """Connect for a group: quick and patient reconnects; raises ServerUnreachable."""
    client = Client()
    try:
        await client.connect(
            url,
            name="millstream group",
            connect_timeout=2,
            allow_reconnect=True,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            error_cb=_on_error,
        )
    except (OSError, nats.errors.Error, ValueError, TimeoutError) as error:
        raise ServerUnreachable(url, str(error) or type(error).__name__) from error
    except asyncio.CancelledError:
        await client.close()
        raise
    # Only now: with it from the start, nats-py tries for ever to connect the first time.
    client.options["max_reconnect_attempts"] = -1
    client.options["reconnect_time_wait"] = random.uniform(0.05, 0.2)  # noqa: S311 - spreads them
    return client


async def _on_error(error: Exception) -> None:
    logger.debug("connection: %s", error, extra={"event": "connection_error"})


class _Pull:
    """A standing pull."""

    def __init__(self, command: OpenPull, inbox: str, subscription: Subscription) -> None:
        self.command = command
        self.inbox = inbox
        self.subscription = subscription
        self.left = 0
        self.renew_at = 0.0
        self.heard_at = 0.0
        self.buffer: list[Message] = []


class JetStreamPort:
    """A member's `Port` on a NATS server."""

    def __init__(
        self, connection: str | Client, settings: MemberSettings, rule: KeyRule | None
    ) -> None:
        """``rule`` None: the group has no stream. A client that is given stays open."""
        self._given = connection
        self._settings = settings
        self._rule = rule
        self._client: Client | None = None
        self._has_message_ttl = False
        self._stream: dict[str, Any] = {}
        self._bucket = naming.bucket(settings.group)
        self._bucket_created: str | None = None
        self._pulls: dict[int, _Pull] = {}
        self._closed_pulls: set[int] = set()
        self._outbox: deque[tuple[str, bytes, str] | DoubleAck] = deque()
        self._has_output = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._listening: Subscription | None = None
        self._watch: Subscription | None = None
        self._watch_heard_at = 0.0
        self._watch_seq = 0
        self._watch_inbox = ""
        self._is_connected = True
        self._reconnects = 0
        self._is_closed = False

    # ---- life ----

    async def open(self, listener: Listener, spawn: Spawn) -> None:
        """Connect, look at server and stream, subscribe to what this member must hear."""
        self._listener, self._spawn = listener, spawn
        if isinstance(self._given, str):
            self._client = await connect(self._given)
        else:
            self._client = self._given
        self._loop = asyncio.get_running_loop()
        self._api = Api(self._client, self._settings.timing.request_timeout_s)
        self._reconnects = self._client.stats["reconnects"]
        try:
            await self._look()
            settings = self._settings
            probe = naming.probe(settings.group, settings.member)
            beat = naming.heartbeat(settings.group, settings.member)
            self._subscriptions = [
                await self._client.subscribe(probe, cb=self._on_probe),
                await self._client.subscribe(beat, cb=self._on_beat),
            ]
        except BaseException:
            await self.close()
            raise
        spawn(self._send(), "send")
        spawn(self._check(), "check")

    async def close(self) -> None:
        """Unsubscribe everything; close the connection if it is our own."""
        if self._is_closed or self._client is None:
            return
        self._is_closed = True
        if isinstance(self._given, str):
            await self._client.close()
            return
        subscriptions = [*self._subscriptions, *(one.subscription for one in self._pulls.values())]
        subscriptions += [one for one in (self._listening, self._watch) if one is not None]
        for subscription in subscriptions:
            await _unsubscribe(subscription)

    async def _look(self) -> None:
        """Check server and stream before anything is changed."""
        assert self._client is not None
        url = self._client.connected_url.netloc if self._client.connected_url else "?"
        try:
            info = await self._api.call("INFO")
        except RequestFailed as error:
            raise ServerUnreachable(url, f"JetStream does not answer ({error.reason})") from error
        self._has_message_ttl = info.get("api", {}).get("level", 0) >= 1
        config = self._settings.config
        if config.stream is None:
            return
        try:
            answer = await self._api.call(f"STREAM.INFO.{config.stream}")
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                raise StreamMissing(config.stream) from error
            raise ServerUnreachable(url, error.detail) from error
        self._stream = answer["config"]
        self._check_stream(config.stream, config.partitions)

    def _check_stream(self, stream: str, partitions: int) -> None:
        if self._stream.get("retention") == Retention.INTEREST:
            raise StreamUnfit(stream, "interest retention loses messages on a change of owner")
        limit = self._stream.get("max_consumers", -1)
        limit = limit if limit > 0 else STREAM_CONSUMERS_MAX
        if partitions * 2 > limit:
            reason = (
                f"{partitions} partitions need up to {partitions * 2} consumers, it takes {limit}"
            )
            raise StreamUnfit(stream, reason)
        if self._rule is not None:
            destination = (self._stream.get("subject_transform") or {}).get("dest")
            if self._stream.get("sources") or self._stream.get("mirror"):
                return
            self._rule.check(
                stored_subjects(self._stream.get("subjects") or [], destination), partitions
            )

    # ---- commands ----

    def execute(self, command: Command) -> None:
        """Start carrying out a command."""
        match command:
            case Ack():
                payload = b"+WPI" if command.is_progress else b"+ACK"
                self._publish(command.message.reply, payload)
            case Beat():
                settings = self._settings
                subject = naming.heartbeat(settings.group, settings.member)
                self._publish(subject, f"{settings.instance} {command.sent_at!r}".encode())
            case DoubleAck():
                self._outbox.append(command)
                self._has_output.set()
            case OpenPull():
                self._start(self._open_pull(command), "pull")
            case ClosePull():
                self._start(self._close_pull(command.pull), "close pull")
            case Watch():
                self._start(self._open_watch(), "watch")
            case Listen():
                self._start(self._listen(command.member), "listen")
            case _:
                self._start(self._answer(command), type(command).__name__)

    def _start(self, task: Coroutine[None, None, None], name: str) -> None:
        self._spawn(task, name)

    async def _answer(self, command: Command) -> None:
        reply: Reply
        try:
            reply = await self._carry_out(command)
        except RequestFailed as error:
            id_ = getattr(command, "id", 0)
            reply = Failed(id=id_, reason=error.reason, detail=error.detail)
        if not self._is_closed:
            self._listener(reply)

    async def _carry_out(self, command: Command) -> Reply:
        stream = self._settings.config.stream
        match command:
            case Prepare():
                return await self._prepare(command)
            case ReadKey():
                return await self._read_key(command)
            case WriteKey() | DeleteKey():
                return await self._write_key(command)
            case ListConsumers():
                return await self._list_consumers(command)
            case ReadConsumer():
                return await self._read_consumer(command)
            case CreateConsumer():
                return await self._create_consumer(command)
            case DeleteConsumer():
                try:
                    await self._api.call(f"CONSUMER.DELETE.{stream}.{command.name}")
                except RequestFailed as error:
                    if error.code != CONSUMER_NOT_FOUND:
                        raise _stream_gone(error) from error
                return Done(id=command.id)
            case Probe():
                subject = naming.probe(self._settings.group, command.member)
                return Alive(id=command.id, instance=(await self._api.request(subject)).decode())
            case DoubleAck():
                await self._api.request(command.message.reply, b"+ACK")
                return Done(id=command.id)
            case _:
                raise AssertionError(f"no command of a port: {command}")

    async def _prepare(self, command: Prepare) -> Reply:
        config: dict[str, object] = {
            "name": f"KV_{self._bucket}",
            "subjects": [f"$KV.{self._bucket}.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "num_replicas": self._stream.get("num_replicas", 1),
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
        }
        if self._has_message_ttl:
            config["allow_msg_ttl"] = True
            config["subject_delete_marker_ttl"] = MARKER_TTL_S * _NS
        try:
            answer = await self._api.call(f"STREAM.CREATE.KV_{self._bucket}", config)
        except RequestFailed as error:
            if error.code != STREAM_NAME_IN_USE:
                raise
            answer = await self._api.call(f"STREAM.INFO.KV_{self._bucket}")
        self._bucket_created = answer["created"]
        self._has_message_ttl = bool(answer["config"].get("allow_msg_ttl"))
        return Prepared(id=command.id)

    async def _read_key(self, command: ReadKey) -> Reply:
        try:
            entry = await self._api.read(self._bucket, command.key)
        except RequestFailed as error:
            raise _bucket_gone(error) from error
        return KeyRead(id=command.id, value=entry.value, revision=entry.revision)

    async def _write_key(self, command: WriteKey | DeleteKey) -> Reply:
        headers = {}
        value = b""
        if isinstance(command, DeleteKey):
            headers["KV-Operation"] = "DEL"
        else:
            value = command.value
            if command.ttl_s is not None and self._has_message_ttl:
                headers["Nats-TTL"] = f"{max(1, round(command.ttl_s))}s"
        try:
            revision = await self._api.write(
                self._bucket, command.key, value, command.revision, headers
            )
        except RequestFailed as error:
            if error.code in WRONG_LAST_SEQUENCE:
                return Conflict(id=command.id)
            if error.reason is Failure.NO_RESPONDERS:
                await self._expect_bucket()
            raise
        return Written(id=command.id, revision=revision)

    async def _expect_bucket(self) -> None:
        """Raise bucket gone if that is why nobody answered a write."""
        try:
            await self._api.call(f"STREAM.INFO.KV_{self._bucket}")
        except RequestFailed as error:
            raise _bucket_gone(error) from error

    async def _list_consumers(self, command: ListConsumers) -> Reply:
        names: list[str] = []
        while True:
            answer = await self._api.call(
                f"CONSUMER.NAMES.{self._settings.config.stream}", {"offset": len(names)}
            )
            page = answer.get("consumers") or []
            names += page
            if not page or len(names) >= answer.get("total", 0):
                return ConsumerNames(id=command.id, names=tuple(names))

    async def _read_consumer(self, command: ReadConsumer) -> Reply:
        try:
            info = await self._api.call(
                f"CONSUMER.INFO.{self._settings.config.stream}.{command.name}"
            )
        except RequestFailed as error:
            if error.code == CONSUMER_NOT_FOUND:
                return ConsumerRead(id=command.id, is_there=False)
            raise _stream_gone(error) from error
        return ConsumerRead(
            id=command.id,
            is_there=True,
            ack_floor=info["ack_floor"]["stream_seq"],
            delivered=info["delivered"]["consumer_seq"],
            num_ack_pending=info["num_ack_pending"],
        )

    async def _create_consumer(self, command: CreateConsumer) -> Reply:
        assert self._rule is not None
        settings = self._settings
        is_limits = self._stream.get("retention") == Retention.LIMITS
        subjects = self._rule.subject_filter(command.partition)
        config: dict[str, object] = {
            "durable_name": command.name,
            "name": command.name,
            "ack_policy": "explicit",
            "ack_wait": int(settings.timing.ack_wait_s * _NS),
            "max_ack_pending": settings.limits.max_ack_pending,
            "max_deliver": -1,
            "deliver_policy": "all",
            "filter_subject": subjects,
            "inactive_threshold": INACTIVE_THRESHOLD_S * _NS,
        }
        if is_limits:
            config["deliver_policy"] = "by_start_sequence"
            config["opt_start_seq"] = command.start_seq
            if self._stream.get("num_replicas", 1) > 1:
                config["num_replicas"] = 1
        try:
            await self._api.call(
                f"CONSUMER.CREATE.{settings.config.stream}.{command.name}.{subjects}",
                {"stream_name": settings.config.stream, "config": config, "action": "create"},
            )
        except RequestFailed as error:
            if error.code in FILTER_OVERLAP:
                return Overlap(id=command.id)
            raise _stream_gone(error) from error
        return Done(id=command.id)

    # ---- what goes out without an answer ----

    def _publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self._outbox.append((subject, payload, reply))
        self._has_output.set()

    async def _send(self) -> None:
        """Publish in order; what cannot go out now is dropped, its time is over."""
        assert self._client is not None
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while self._outbox:
                one = self._outbox.popleft()
                if isinstance(one, DoubleAck):
                    self._start(self._answer(one), "double ack")
                    await asyncio.sleep(0)
                    continue
                if not self._client.is_connected:
                    continue
                try:
                    await self._client.publish(one[0], one[1], reply=one[2])
                except nats.errors.Error as error:
                    logger.debug("publish: %s", error, extra={"event": "publish_failed"})

    # ---- heartbeats and probes ----

    async def _on_probe(self, message: Msg) -> None:
        self._publish(message.reply, self._settings.instance.encode())

    async def _on_beat(self, message: Msg) -> None:
        instance, _, sent_at = message.data.decode("ascii", "replace").partition(" ")
        try:
            at = float(sent_at)
        except ValueError:
            return
        member = message.subject.rpartition(".")[2]
        self._listener(Heard(member=member, instance=instance, sent_at=at))

    async def _listen(self, member: str | None) -> None:
        assert self._client is not None
        before, self._listening = self._listening, None
        if before is not None:
            await _unsubscribe(before)
        if member == self._settings.member:
            return
        subject = naming.heartbeat(self._settings.group, member or "*")
        try:
            self._listening = await self._client.subscribe(subject, cb=self._on_beat)
        except nats.errors.Error as error:
            logger.debug("listen: %s", error, extra={"event": "listen_failed"})

    # ---- pulls ----

    async def _open_pull(self, command: OpenPull) -> None:
        assert self._client is not None
        if command.pull in self._closed_pulls:
            self._closed_pulls.discard(command.pull)
            return
        inbox = self._client.new_inbox()

        async def on_message(message: Msg) -> None:
            self._on_pulled(command.pull, message)

        try:
            subscription = await self._client.subscribe(
                inbox, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except nats.errors.Error as error:
            self._listener(PullEnded(pull=command.pull, reason=str(error)))
            return
        pull = _Pull(command, inbox, subscription)
        self._pulls[command.pull] = pull
        self._renew_pull(pull)

    def _renew_pull(self, pull: _Pull) -> None:
        now = self._loop.time()
        pull.left = PULL_BATCH
        pull.renew_at = now + PULL_EXPIRES_S * 0.8
        pull.heard_at = now
        request = {
            "batch": PULL_BATCH,
            "expires": int(PULL_EXPIRES_S * _NS),
            "idle_heartbeat": int(PULL_HEARTBEAT_S * _NS),
        }
        stream = self._settings.config.stream
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{pull.command.name}"
        self._publish(subject, msgspec.json.encode(request), pull.inbox)

    async def _close_pull(self, number: int) -> None:
        pull = self._pulls.pop(number, None)
        if pull is None:
            self._closed_pulls.add(number)
            return
        await _unsubscribe(pull.subscription)

    def _on_pulled(self, number: int, received: Msg) -> None:
        pull = self._pulls.get(number)
        if pull is None:
            return
        pull.heard_at = self._loop.time()
        if not received.reply.startswith("$JS.ACK."):
            self._on_status(pull, received.headers or {})
            return
        try:
            message = self._message(pull.command, received)
        except (GroupError, ValueError, IndexError) as error:
            fault = error if isinstance(error, GroupError) else GroupError(f"unreadable: {error}")
            self._listener(Broken(fault))
            return
        if not pull.buffer:
            self._loop.call_soon(self._flush, pull)
        pull.buffer.append(message)
        pull.left -= 1
        if pull.left < PULL_BATCH // 2:
            self._renew_pull(pull)

    def _message(self, command: OpenPull, received: Msg) -> Message:
        assert self._rule is not None
        tokens = received.reply.split(".")
        first = 4 if len(tokens) == 9 else 6
        headers = received.headers or {}
        return Message(
            subject=received.subject,
            data=received.data,
            headers=headers,
            key=self._rule.key_of(received.subject, headers, received.data),
            partition=command.partition,
            seq=int(tokens[first + 1]),
            epoch=command.epoch,
            num_delivered=int(tokens[first]),
            timestamp_ns=int(tokens[first + 3]),
            reply=received.reply,
            consumer_seq=int(tokens[first + 2]),
        )

    def _flush(self, pull: _Pull) -> None:
        messages, pull.buffer = tuple(pull.buffer), []
        if messages and not self._is_closed and self._pulls.get(pull.command.pull) is pull:
            self._listener(Delivered(pull.command.pull, messages))

    def _on_status(self, pull: _Pull, headers: dict[str, str]) -> None:
        status = headers.get("Status", "")
        text = headers.get("Description", "")
        if status == "100":
            last = headers.get("Nats-Last-Consumer", "")
            if last.isdecimal():
                self._flush(pull)
                self._listener(PullIdle(pull=pull.command.pull, consumer_seq=int(last)))
        elif status == "503" or "Consumer Deleted" in text or status == "400":
            self._flush(pull)
            self._listener(PullEnded(pull=pull.command.pull, reason=f"{status} {text}".strip()))
        elif "Leadership Change" in text or "MaxWaiting" in text:
            self._loop.call_later(PULL_HEARTBEAT_S, self._renew_if_open, pull)

    def _renew_if_open(self, pull: _Pull) -> None:
        if self._pulls.get(pull.command.pull) is pull and not self._is_closed:
            self._renew_pull(pull)

    # ---- the watch ----

    async def _open_watch(self) -> None:
        assert self._client is not None
        before, self._watch = self._watch, None
        self._watch_heard_at = self._loop.time()
        if before is not None:
            await _unsubscribe(before)
        inbox = self._client.new_inbox()
        self._watch_seq = 0
        prefix = f"$KV.{self._bucket}."
        config = {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "flow_control": True,
            "idle_heartbeat": int(WATCH_HEARTBEAT_S * _NS),
            "filter_subjects": [
                f"{prefix}{naming.CONFIG_KEY}",
                f"{prefix}{naming.LEADER_KEY}",
                f"{prefix}{naming.MEMBER_PREFIX}*",
                f"{prefix}{naming.PARTITION_PREFIX}*",
            ],
        }
        stream = f"KV_{self._bucket}"
        try:
            subscription = await self._client.subscribe(inbox, cb=self._watcher(inbox))
            self._watch = subscription
            self._watch_inbox = inbox
            info = await self._api.call(f"STREAM.INFO.{stream}")
            if self._bucket_created is not None and info["created"] != self._bucket_created:
                self._listener(BucketGone())
                return
            await self._api.call(
                f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}
            )
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                self._listener(BucketGone())
            return
        except nats.errors.Error as error:
            logger.debug("watch: %s", error, extra={"event": "watch_failed"})

    def _watcher(self, inbox: str) -> Any:
        async def on_message(message: Msg) -> None:
            if inbox == self._watch_inbox:
                self._on_watched(message)

        return on_message

    def _on_watched(self, message: Msg) -> None:
        self._watch_heard_at = self._loop.time()
        headers = message.headers or {}
        if headers.get("Status") == "100":
            if message.reply:
                self._publish(message.reply, b"")
            stalled = headers.get("Nats-Consumer-Stalled")
            if stalled:
                self._publish(stalled, b"")
            last = headers.get("Nats-Last-Consumer", "")
            if last.isdecimal() and int(last) != self._watch_seq:
                self._start(self._open_watch(), "watch")
            return
        tokens = message.reply.split(".")
        first = 4 if len(tokens) == 9 else 6
        seq, consumer_seq, num_pending = (int(tokens[first + i]) for i in (1, 2, 4))
        if consumer_seq != self._watch_seq + 1:
            self._start(self._open_watch(), "watch")
            return
        self._watch_seq = consumer_seq
        value = None if marks_deletion(headers) else message.data
        key = message.subject.removeprefix(f"$KV.{self._bucket}.")
        self._listener(KeyChanged(key=key, value=value, revision=seq))
        if num_pending == 0:
            self._listener(WatchCaughtUp())

    # ---- time ----

    async def _check(self) -> None:
        """Notice that the connection went or came back, and what has fallen silent."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            self._check_connection()
            if not self._is_connected:
                continue
            now = self._loop.time()
            for pull in list(self._pulls.values()):
                silent_s = now - pull.heard_at
                if now >= pull.renew_at or silent_s > SILENT_HEARTBEATS * PULL_HEARTBEAT_S:
                    self._renew_pull(pull)
            if self._watch is not None or self._watch_heard_at:
                silent_s = now - self._watch_heard_at
                if silent_s > SILENT_HEARTBEATS * WATCH_HEARTBEAT_S:
                    self._start(self._open_watch(), "watch")

    def _check_connection(self) -> None:
        assert self._client is not None
        reconnects = self._client.stats["reconnects"]
        is_connected = self._client.is_connected
        if self._is_connected and (not is_connected or reconnects != self._reconnects):
            self._is_connected = False
            self._listener(Disconnected())
        if not self._is_connected and is_connected:
            self._is_connected = True
            self._reconnects = reconnects
            self._listener(Reconnected())


async def _unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except nats.errors.Error as error:
        logger.debug("unsubscribe: %s", error, extra={"event": "unsubscribe_failed"})


def _bucket_gone(error: RequestFailed) -> RequestFailed:
    if error.code == STREAM_NOT_FOUND:
        return RequestFailed(Failure.BUCKET_GONE, error.detail, error.code)
    return error


def _stream_gone(error: RequestFailed) -> RequestFailed:
    if error.code == STREAM_NOT_FOUND:
        return RequestFailed(Failure.STREAM_GONE, error.detail, error.code)
    return error
