"""The JetStream API: requests on ``$JS.API.>`` in, one JSON response each out.

A handler takes the subject's tokens after its verb, and the message; it gives the body of a
success or raises ApiError. Which subjects are listened to is chosen so that silence and *no
responders* come out as they do on nats-server: an unknown request is swallowed, while MSG.NEXT
and DIRECT.GET of something that does not exist reach nobody (consumers and streams listen for
themselves).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from ..protocol import headers as header_blocks
from ..routing.port import Message
from ..store.errors import StoreError
from . import wire
from .batch import REQUIRED_LEVEL, supports_level
from .codes import ApiError
from .consumer import Consumer
from .direct import find, is_asking, is_sensible
from .model import (
    API_LEVEL,
    ConsumerConfig,
    ConsumerRequest,
    DeleteRequest,
    GetRequest,
    PageRequest,
    PauseRequest,
    PurgeRequest,
    StorageType,
    StreamInfoRequest,
)
from .registry import Registry
from .stream import Stream
from .strictjson import JsonError

HEAD: Final = "$JS.API."
NAMES_LIMIT: Final = 1024
LIST_LIMIT: Final = 256
SUBJECTS_LIMIT: Final = 100_000
_PATTERNS: Final = (
    "*",
    "*.*",
    "STREAM.*.>",
    "CONSUMER.*.*",
    "CONSUMER.*.*.*",
    "CONSUMER.CREATE.*.*.>",
    "CONSUMER.DURABLE.*.*.>",
    "CONSUMER.LEADER.*.*.>",
    "META.*.>",
    "SERVER.*.>",
    "ACCOUNT.*.>",
)
_PAGE: Final = {"total": 0, "offset": 0, "limit": 0}

Handler = Callable[[list[str], Message], dict[str, Any]]


class _Call(NamedTuple):
    """How a request is answered; ``on_error`` is what a failed response shows besides the error."""

    handler: Handler
    kind: str
    on_error: dict[str, Any]


class Api:
    """Answers the API of one account."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._host = registry.host
        self._unsubscribe: list[Callable[[], None]] = []
        self.total = 0
        self.errors = 0
        self._calls = self._table()

    def start(self) -> None:
        """Listen."""
        subscribe = self._host.subscribe
        self._unsubscribe = [
            subscribe(f"{HEAD}{pattern}", self._on_requests) for pattern in _PATTERNS
        ]

    def stop(self) -> None:
        """Stop listening."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def _table(self) -> dict[tuple[str, int], _Call]:
        """Give the calls by verb and number of tokens after it."""

        def call(handler: Handler, kind: str, **on_error: Any) -> _Call:
            return _Call(handler, f"io.nats.jetstream.api.v1.{kind}_response", on_error)

        refuse = self._refuse_clustering
        paused = {"paused": False, "pause_until": wire.ZERO_TIME}
        return {
            ("INFO", 0): call(self._account_info, "account_info"),
            ("STREAM.CREATE", 1): call(self._stream_create, "stream_create"),
            ("STREAM.UPDATE", 1): call(self._stream_update, "stream_update"),
            ("STREAM.NAMES", 0): call(self._stream_names, "stream_names", **_PAGE, streams=None),
            ("STREAM.LIST", 0): call(self._stream_list, "stream_list", **_PAGE, streams=[]),
            ("STREAM.INFO", 1): call(self._stream_info, "stream_info", **_PAGE),
            ("STREAM.DELETE", 1): call(self._stream_delete, "stream_delete"),
            ("STREAM.PURGE", 1): call(self._stream_purge, "stream_purge", purged=0),
            ("STREAM.MSG.GET", 1): call(self._message_get, "stream_msg_get"),
            ("STREAM.MSG.DELETE", 1): call(self._message_delete, "stream_msg_delete"),
            ("STREAM.SNAPSHOT", 1): call(self._refuse_snapshot, "stream_snapshot"),
            ("STREAM.RESTORE", 1): call(self._refuse_restore, "stream_restore"),
            ("CONSUMER.CREATE", 1): call(self._consumer_create_ephemeral, "consumer_create"),
            ("CONSUMER.CREATE", 2): call(self._consumer_create_named, "consumer_create"),
            ("CONSUMER.DURABLE.CREATE", 2): call(self._consumer_create_durable, "consumer_create"),
            ("CONSUMER.NAMES", 1): call(
                self._consumer_names, "consumer_names", **_PAGE, consumers=[]
            ),
            ("CONSUMER.LIST", 1): call(self._consumer_list, "consumer_list", **_PAGE, consumers=[]),
            ("CONSUMER.INFO", 2): call(self._consumer_info, "consumer_info"),
            ("CONSUMER.DELETE", 2): call(self._consumer_delete, "consumer_delete"),
            ("CONSUMER.PAUSE", 2): call(self._consumer_pause, "consumer_pause", **paused),
            ("CONSUMER.UNPIN", 2): call(self._consumer_unpin, "consumer_unpin"),
            ("CONSUMER.RESET", 2): call(self._refuse_reset, "consumer_reset"),
            ("STREAM.LEADER.STEPDOWN", 1): call(refuse, "stream_leader_stepdown"),
            ("STREAM.PEER.REMOVE", 1): call(refuse, "stream_remove_peer"),
            ("STREAM.CANCEL_MOVE", 1): call(refuse, "stream_cancel_move"),
            ("CONSUMER.LEADER.STEPDOWN", 2): call(refuse, "consumer_leader_stepdown"),
        }

    def _find(self, tokens: list[str]) -> tuple[_Call, list[str]] | None:
        """Find the call of a request and the tokens it gets."""
        for length in (3, 2, 1):
            verb = ".".join(tokens[:length])
            rest = tokens[length:]
            call = self._calls.get((verb, len(rest)))
            if call is None and verb == "CONSUMER.CREATE" and len(rest) > 2:
                call = self._calls[verb, 2]
            if call is not None:
                return call, rest
        return None

    def _on_requests(self, messages: Sequence[Message]) -> None:
        for message in messages:
            found = self._find(message.subject[len(HEAD) :].split("."))
            if found is not None:
                self._answer(*found, message)

    def _answer(self, call: _Call, rest: list[str], message: Message) -> None:
        self.total += 1
        level = header_blocks.get(message.headers, REQUIRED_LEVEL)
        try:
            is_served = not level or supports_level(level)
            body = call.handler(rest, message) if is_served else self._failed(call, ApiError(10185))
        except JsonError as error:
            body = self._failed(call, ApiError(10025, err=str(error)))
        except StoreError as error:
            body = self._failed(call, ApiError(10051, err=str(error)))
        except ApiError as error:
            body = self._failed(call, error)
        if message.reply is not None:
            document = wire.encode({"type": call.kind, **body})
            self._host.bus.publish(message.reply, document)

    def _failed(self, call: _Call, error: ApiError) -> dict[str, Any]:
        self.errors += 1
        return {"error": error.document(), **call.on_error}

    # Account

    def _account_info(self, _rest: list[str], _message: Message) -> dict[str, Any]:
        limits, streams = self._host.limits, self._registry.streams.values()
        used = {
            kind: sum(s.store.size_bytes for s in streams if s.config.storage is kind)
            for kind in StorageType
        }
        reserved = {
            kind: sum(max(s.config.max_bytes, 0) for s in streams if s.config.storage is kind)
            for kind in StorageType
        }
        info: dict[str, Any] = {
            "memory": used[StorageType.MEMORY],
            "storage": used[StorageType.FILE],
            "reserved_memory": reserved[StorageType.MEMORY],
            "reserved_storage": reserved[StorageType.FILE],
            "streams": len(streams),
            "consumers": sum(len(stream.consumers) for stream in streams),
            "limits": {
                "max_memory": limits.max_memory,
                "max_storage": limits.max_storage,
                "max_streams": limits.max_streams,
                "max_consumers": limits.max_consumers,
                "max_ack_pending": limits.max_ack_pending,
                "memory_max_stream_bytes": -1,
                "storage_max_stream_bytes": -1,
                "max_bytes_required": False,
            },
            "api": {"level": API_LEVEL, "total": self.total - 1, "errors": self.errors},
        }
        if self._host.identity.domain:
            info["domain"] = self._host.identity.domain
        return info

    # Streams

    def _stream_create(self, rest: list[str], message: Message) -> dict[str, Any]:
        request = wire.read_stream_request(message.payload)
        if request.config.name != rest[0]:
            raise ApiError(10056)
        stream = self._registry.create_stream(request.config)
        return {**stream.info(), "did_create": True}

    def _stream_update(self, rest: list[str], message: Message) -> dict[str, Any]:
        request = wire.read_stream_request(message.payload)
        if request.config.name != rest[0]:
            raise ApiError(10056)
        return self._registry.update_stream(request.config).info()

    def _stream_names(self, _rest: list[str], message: Message) -> dict[str, Any]:
        request: PageRequest = wire.read_request(wire.PAGE, message.payload)
        names = [stream.name for stream in self._registry.matching(request.subject)]
        page, shown = _page(names, request.offset, NAMES_LIMIT)
        return {**page, "streams": shown or None}

    def _stream_list(self, _rest: list[str], message: Message) -> dict[str, Any]:
        request: PageRequest = wire.read_request(wire.PAGE, message.payload)
        streams = self._registry.matching(request.subject)
        page, shown = _page(streams, request.offset, LIST_LIMIT)
        return {**page, "streams": [stream.info(shows_server=False) for stream in shown]}

    def _stream_info(self, rest: list[str], message: Message) -> dict[str, Any]:
        request: StreamInfoRequest = wire.read_request(wire.STREAM_INFO, message.payload)
        stream = self._registry.get(rest[0])
        info = stream.info()
        page = dict(_PAGE)
        if request.deleted_details and stream.store.num_deleted:
            info["state"]["deleted"] = list(stream.store.deleted())
        if request.subjects_filter:
            counts = stream.store.subjects(request.subjects_filter)
            if counts:
                page, shown = _page(sorted(counts), request.offset, SUBJECTS_LIMIT)
                info["state"]["subjects"] = {subject: counts[subject] for subject in shown}
        ts = info.pop("ts")
        leader = self._host.identity.server_name or self._host.identity.server_id
        return {**page, **info, "cluster": {"leader": leader}, "ts": ts}

    def _stream_delete(self, rest: list[str], message: Message) -> dict[str, Any]:
        _expect_empty(message)
        self._registry.delete_stream(rest[0])
        return {"success": True}

    def _stream_purge(self, rest: list[str], message: Message) -> dict[str, Any]:
        request: PurgeRequest = wire.read_request(wire.PURGE, message.payload)
        stream = self._registry.get(rest[0])
        if request.seq and request.keep:
            raise ApiError(10003)
        if stream.config.sealed:
            raise ApiError(10109)
        if stream.config.deny_purge:
            raise ApiError(10110, err="stream purge not permitted")
        try:
            purged = stream.purge(
                subject=request.filter or ">",
                below_seq=request.seq or None,
                keep=request.keep,
            )
            if not request.filter:
                stream.skip_to(request.seq)
        except StoreError as error:
            raise ApiError(10110, err=str(error)) from error
        return {"success": True, "purged": purged}

    def _message_get(self, rest: list[str], message: Message) -> dict[str, Any]:
        if not message.payload:
            raise ApiError(10003)
        request: GetRequest = wire.read_request(wire.GET, message.payload)
        if (
            not is_asking(request)
            or not is_sensible(request)
            or request.batch
            or request.max_bytes
            or request.multi_last
        ):
            raise ApiError(10003)
        stream = self._registry.get(rest[0])
        seq = find(stream, request)
        try:
            stored = None if seq is None else stream.store.load(seq)
        except StoreError as error:
            raise ApiError(10051, err=str(error)) from error
        if stored is None:
            raise ApiError(10037)
        shown: dict[str, Any] = {"subject": stored.subject, "seq": stored.seq}
        if stored.headers and not request.no_hdr:
            shown["hdrs"] = base64.b64encode(stored.headers).decode()
        if stored.payload:
            shown["data"] = base64.b64encode(stored.payload).decode()
        shown["time"] = wire.format_time(stored.ts_ns)
        return {"message": shown}

    def _message_delete(self, rest: list[str], message: Message) -> dict[str, Any]:
        if not message.payload:
            raise ApiError(10003)
        request: DeleteRequest = wire.read_request(wire.DELETE, message.payload)
        stream = self._registry.get(rest[0])
        if stream.config.sealed:
            raise ApiError(10109)
        if stream.config.deny_delete:
            raise ApiError(10057, err="message delete not permitted")
        if not stream.remove(request.seq, erase=not request.no_erase):
            raise self._missing(stream, request.seq)
        stream.store.flush()
        stream.expiry.on_stored()
        return {"success": True}

    def _missing(self, stream: Stream, seq: int) -> ApiError:
        """Give nats-server's answer for a message that is not there to delete."""
        if stream.config.storage is StorageType.FILE:
            if seq < max(stream.store.first_seq, 1):
                return ApiError(10057, err="no message found")
            if seq > stream.store.last_seq:
                return ApiError(10057, err="stream store EOF")
        return ApiError(10043, seq=seq)

    # Consumers

    def _read_consumer(self, stream_name: str, message: Message) -> ConsumerRequest:
        request: ConsumerRequest = wire.read_request(wire.CONSUMER_REQUEST, message.payload)
        if request.stream_name != stream_name:
            raise ApiError(10056)
        return replace(request, config=request.config or ConsumerConfig())

    def _consumer_create_ephemeral(self, rest: list[str], message: Message) -> dict[str, Any]:
        request = self._read_consumer(rest[0], message)
        assert request.config is not None
        if request.config.durable_name:
            raise ApiError(10020)
        return self._consumer_create(rest[0], request, request.config.name)

    def _consumer_create_named(self, rest: list[str], message: Message) -> dict[str, Any]:
        request = self._read_consumer(rest[0], message)
        config = request.config
        assert config is not None
        name = rest[1]
        if config.durable_name and config.durable_name != name:
            raise ApiError(10017)
        if len(rest) > 2:
            if config.filter_subjects:
                raise ApiError(10137)
            if config.filter_subject != ".".join(rest[2:]):
                raise ApiError(10131)
        request = replace(request, config=replace(config, name=name))
        return self._consumer_create(rest[0], request, name)

    def _consumer_create_durable(self, rest: list[str], message: Message) -> dict[str, Any]:
        request = self._read_consumer(rest[0], message)
        config = request.config
        assert config is not None
        if not config.durable_name:
            raise ApiError(10018)
        if config.durable_name != rest[1]:
            raise ApiError(10017)
        if config.name and config.name != config.durable_name:
            raise ApiError(10132)
        request = replace(request, config=replace(config, name=rest[1]))
        return self._consumer_create(rest[0], request, rest[1])

    def _consumer_create(
        self, stream_name: str, request: ConsumerRequest, name: str
    ) -> dict[str, Any]:
        stream = self._registry.get(stream_name)
        return self._registry.create_consumer(stream, request, name).info()

    def _consumers(self, rest: list[str], message: Message) -> tuple[list[Consumer], int]:
        request: PageRequest = wire.read_request(wire.CONSUMER_PAGE, message.payload)
        consumers = self._registry.get(rest[0]).consumers
        return [consumers[name] for name in sorted(consumers)], request.offset

    def _consumer_names(self, rest: list[str], message: Message) -> dict[str, Any]:
        consumers, offset = self._consumers(rest, message)
        page, shown = _page(consumers, offset, NAMES_LIMIT)
        return {**page, "consumers": [consumer.name for consumer in shown]}

    def _consumer_list(self, rest: list[str], message: Message) -> dict[str, Any]:
        consumers, offset = self._consumers(rest, message)
        page, shown = _page(consumers, offset, LIST_LIMIT)
        return {**page, "consumers": [consumer.info(shows_server=False) for consumer in shown]}

    def _consumer_info(self, rest: list[str], message: Message) -> dict[str, Any]:
        _expect_empty(message)
        return self._registry.consumer(rest[0], rest[1]).info()

    def _consumer_delete(self, rest: list[str], message: Message) -> dict[str, Any]:
        _expect_empty(message)
        self._registry.delete_consumer(self._registry.consumer(rest[0], rest[1]))
        return {"success": True}

    def _consumer_pause(self, rest: list[str], message: Message) -> dict[str, Any]:
        request: PauseRequest = wire.read_request(wire.PAUSE, message.payload)
        consumer = self._registry.consumer(rest[0], rest[1])
        until_ns, now_ns = request.pause_until_ns, self._host.now.wall_ns
        consumer.update(replace(consumer.config, pause_until_ns=until_ns))
        paused: dict[str, Any] = {
            "paused": consumer.is_paused,
            "pause_until": wire.format_time(until_ns),
        }
        if until_ns is not None and until_ns > now_ns:
            paused["pause_remaining"] = until_ns - now_ns
        return paused

    def _consumer_unpin(self, rest: list[str], message: Message) -> dict[str, Any]:
        if not message.payload:
            raise ApiError(10025, err="unexpected end of JSON input")
        request = wire.read_request(wire.UNPIN, message.payload)
        self._registry.consumer(rest[0], rest[1])
        if not request.group:
            raise ApiError(10025, err="consumer group not specified")
        raise ApiError(10160)

    # Not there

    def _refuse_clustering(self, _rest: list[str], _message: Message) -> dict[str, Any]:
        raise ApiError(10010)

    def _refuse_snapshot(self, _rest: list[str], _message: Message) -> dict[str, Any]:
        raise ApiError(10064, err="this server does not support snapshots")

    def _refuse_restore(self, _rest: list[str], _message: Message) -> dict[str, Any]:
        raise ApiError(10062, err="this server does not support restores")

    def _refuse_reset(self, rest: list[str], _message: Message) -> dict[str, Any]:
        self._registry.consumer(rest[0], rest[1])
        raise ApiError(10204, err="this server does not support resets")


def _expect_empty(message: Message) -> None:
    if message.payload:
        raise ApiError(10038)


def _page(entries: list[Any], offset: int, limit: int) -> tuple[dict[str, int], list[Any]]:
    """Cut a page out of a list, with the numbers that describe it."""
    offset = min(max(offset, 0), len(entries))
    page = {"total": len(entries), "offset": offset, "limit": limit}
    return page, entries[offset : offset + limit]
