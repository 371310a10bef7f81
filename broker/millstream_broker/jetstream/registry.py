"""The streams of an account: made, found again after a restart, changed and deleted.

Whatever needs more than one stream to decide is here: overlapping subjects, cycles of sources,
limits of the account, and which stream is whose source. The file storage keeps streams and
consumers; what is in memory storage is gone with the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from ..store.errors import StoreError
from ..store.port import Storage
from ..subjects import subject as subjects
from . import advisory, consumer_config, consumer_state, sources, stream_config, wire
from .codes import ApiError
from .consumer import Consumer
from .direct import DirectGet
from .host import Host
from .model import (
    Action,
    ConsumerConfig,
    ConsumerRequest,
    Retention,
    StorageType,
    StreamConfig,
)
from .publish import Ingest
from .sources import Source
from .start import starting_point
from .stream import Stream
from .strictjson import JsonError


class Registry:
    """All streams by name."""

    def __init__(self, host: Host, *, file: Storage, memory: Storage) -> None:
        self.host = host
        self._storages = {StorageType.FILE: file, StorageType.MEMORY: memory}
        self.streams: dict[str, Stream] = {}
        self._subscriptions: dict[str, dict[str, Callable[[], None]]] = {}
        self._direct: dict[str, DirectGet] = {}

    def get(self, name: str) -> Stream:
        """Find a stream. Raises ApiError 10059."""
        stream = self.streams.get(name)
        if stream is None:
            raise ApiError(10059)
        return stream

    def consumer(self, stream_name: str, name: str) -> Consumer:
        """Find a consumer. Raises ApiError 10059 or 10014."""
        consumer = self.get(stream_name).consumers.get(name)
        if consumer is None:
            raise ApiError(10014)
        return consumer

    def matching(self, subject: str) -> list[Stream]:
        """Streams by name; with a subject those that could capture it."""
        return [
            self.streams[name]
            for name in sorted(self.streams)
            if not subject
            or any(subjects.collides(p, subject) for p in self.streams[name].config.subjects)
        ]

    # Streams

    def create_stream(self, config: StreamConfig) -> Stream:
        """Make a stream, or find the equal one. Raises ApiError."""
        limits = self.host.limits
        config = stream_config.with_metadata(stream_config.create(config, limits))
        existing = self.streams.get(config.name)
        if existing is not None:
            if existing.config != config:
                raise ApiError(10058)
            return existing
        self._check_against_others(config)
        if 0 <= limits.max_streams <= len(self.streams):
            raise ApiError(10027)
        created_ns = self.host.now.wall_ns
        try:
            storage = self._storages[config.storage]
            directory = storage.create_stream(self.host.identity.account, config.name)
            first_seq = max(config.first_seq, 1)
            store = directory.open_messages(first_seq=first_seq, sync_always=limits.sync_always)
            stream = Stream(self.host, config, created_ns, directory, store)
            directory.save_config(stream.document())
        except StoreError as error:
            raise ApiError(10049, err=str(error)) from error
        self._add(stream)
        self._link(stream)
        advisory.stream_action(self.host, "CREATED", config.name, "create")
        return stream

    def update_stream(self, config: StreamConfig) -> Stream:
        """Change a stream's configuration. Raises ApiError."""
        stream = self.get(config.name)
        before = stream.config
        config = stream_config.update(before, config, self.host.limits)
        config = stream_config.with_metadata(config)
        self._check_against_others(config)
        for consumer in stream.consumers.values():
            try:
                consumer_config.check(consumer.config, config, self.host.limits)
            except ApiError as error:
                raise ApiError(10069, err=error.description) from error
        try:
            stream.apply(config)
        except StoreError as error:
            raise ApiError(10069, err=str(error)) from error
        if not config.allow_atomic:
            stream.ingest.batches.clear()
        self._subscribe(stream)
        self._direct[config.name].configure()
        if before.sources != config.sources:
            for source in stream.sources:
                source.detach()
            stream.sources = [Source(stream, origin) for origin in config.sources]
            sources.recover(stream)
            self._link(stream)
        advisory.stream_action(self.host, "UPDATED", config.name, "modify")
        return stream

    def delete_stream(self, name: str) -> None:
        """Delete a stream with everything in it. Raises ApiError."""
        stream = self.get(name)
        for consumer in list(stream.consumers.values()):
            consumer.close(409, "Consumer Deleted")
        self._detach(stream)
        try:
            stream.destroy()
        except StoreError as error:
            raise ApiError(10050, err=str(error)) from error
        finally:
            del self.streams[name]
        advisory.stream_action(self.host, "DELETED", name, "delete")

    def _check_against_others(self, config: StreamConfig) -> None:
        others = [other.config for other in self.streams.values() if other.name != config.name]
        for other in others:
            if any(subjects.collides(a, b) for a in config.subjects for b in other.subjects):
                raise ApiError(10065)
        if config.sources and sources.find_cycle(config, others):
            raise stream_config.invalid("detected cycle")

    def _add(self, stream: Stream) -> None:
        """Let a stream listen."""
        stream.ingest = Ingest(stream)
        stream.sources = [Source(stream, config) for config in stream.config.sources]
        self.streams[stream.name] = stream
        self._subscriptions[stream.name] = {}
        self._subscribe(stream)
        self._direct[stream.name] = DirectGet(stream)
        self._direct[stream.name].configure()

    def _subscribe(self, stream: Stream) -> None:
        """Listen to the subjects of the configuration and to no others."""
        held = self._subscriptions[stream.name]
        for pattern in [pattern for pattern in held if pattern not in stream.config.subjects]:
            held.pop(pattern)()
        for pattern in stream.config.subjects:
            if pattern not in held:
                held[pattern] = self.host.subscribe(pattern, stream.ingest.receive)

    def _detach(self, stream: Stream) -> None:
        """Stop listening and sourcing; others that source from it wait for its return."""
        for unsubscribe in self._subscriptions.pop(stream.name).values():
            unsubscribe()
        self._direct.pop(stream.name).close()
        stream.ingest.batches.clear()
        for source in stream.sources:
            source.detach()
        for other in self.streams.values():
            for source in other.sources:
                if source.origin is stream:
                    source.detach()

    def _link(self, stream: Stream) -> None:
        """Connect a new stream with its origins and with who waits for it as an origin."""
        for source in stream.sources:
            origin = self.streams.get(source.config.name)
            if origin is not None:
                source.attach(origin)
        for other in self.streams.values():
            for source in other.sources:
                if source.config.name == stream.name and source.origin is None:
                    source.attach(stream)

    # Consumers

    def create_consumer(self, stream: Stream, request: ConsumerRequest, name: str) -> Consumer:
        """Make, find or change a consumer, as the request's action allows. Raises ApiError."""
        assert request.config is not None
        limits = self.host.limits
        config = consumer_config.with_defaults(request.config, stream.config)
        config = consumer_config.with_metadata(config)
        consumer_config.check(config, stream.config, limits)
        existing = stream.consumers.get(name) if name else None
        if existing is None and request.action is Action.UPDATE:
            raise ApiError(10149)
        if existing is not None:
            if request.action is Action.CREATE and existing.config != config:
                raise ApiError(10148)
            return self._update_consumer(existing, config)
        consumer_config.check_retention(config, stream.config)
        self._check_room(stream)
        self._check_unique(stream, config, name)
        if not name:
            name = self.host.random_text(8)
        start_seq, skip = starting_point(stream, config)
        consumer = Consumer(
            stream,
            name,
            config,
            self.host.now.wall_ns,
            start_seq=start_seq,
            skip=skip,
            on_inactive=self.delete_consumer,
        )
        try:
            consumer.save_document()
        except StoreError as error:
            raise ApiError(10104, err=str(error)) from error
        self._add_consumer(consumer)
        advisory.consumer_action(self.host, "CREATED", stream.name, name, "create")
        return consumer

    def _update_consumer(self, existing: Consumer, config: ConsumerConfig) -> Consumer:
        if config.pause_until_ns is None:
            config = replace(config, pause_until_ns=existing.config.pause_until_ns)
        if existing.config == config:
            return existing
        consumer_config.check_update(existing.config, config)
        consumer_config.check_retention(config, existing.stream.config)
        if existing.config.deliver_subject != config.deliver_subject and existing.window.look():
            raise ApiError(10013)
        self._check_unique(existing.stream, config, existing.name)
        try:
            existing.update(config)
        except StoreError as error:
            raise ApiError(10012, err=str(error)) from error
        return existing

    def _check_room(self, stream: Stream) -> None:
        limits = self.host.limits
        cap = stream.config.max_consumers
        if cap <= 0:
            cap = limits.max_consumers_per_stream
        if 0 < cap <= len(stream.consumers):
            raise ApiError(10026)
        total = sum(len(other.consumers) for other in self.streams.values())
        if 0 <= limits.max_consumers <= total:
            raise ApiError(10026)

    def _check_unique(self, stream: Stream, config: ConsumerConfig, name: str) -> None:
        if stream.config.retention is Retention.WORKQUEUE:
            others = [c.config for c in stream.consumers.values() if c.name != name]
            consumer_config.check_unique(config, others)

    def _add_consumer(self, consumer: Consumer) -> None:
        stream = consumer.stream
        stream.consumers[consumer.name] = consumer
        stream.readers[consumer] = None
        consumer.start()

    def delete_consumer(self, consumer: Consumer) -> None:
        """Delete a consumer; who waits on it is told. Raises ApiError."""
        stream = consumer.stream
        consumer.close(409, "Consumer Deleted")
        stream.consumers.pop(consumer.name, None)
        try:
            if consumer.is_saved:
                stream.directory.delete_consumer(consumer.name)
        except StoreError as error:
            facts = {"stream": stream.name, "consumer": consumer.name, "error": str(error)}
            self.host.report("consumer_not_deleted", facts)
        stream.sweep()
        advisory.consumer_action(self.host, "DELETED", stream.name, consumer.name, "delete")

    # Start and stop

    def recover(self) -> None:
        """Open everything the file storage holds; what can't be read is reported and left alone."""
        for storage in self._storages.values():
            for name in storage.streams(self.host.identity.account):
                try:
                    self._recover_stream(storage, name)
                except (StoreError, JsonError, msgspec.MsgspecError, ApiError) as error:
                    self.host.report("stream_offline", {"stream": name, "error": str(error)})
        for stream in self.streams.values():
            self._link(stream)

    def _recover_stream(self, storage: Storage, name: str) -> None:
        directory = storage.open_stream(self.host.identity.account, name)
        saved = msgspec.json.decode(directory.load_config())
        config: StreamConfig = wire.STREAM_CONFIG.read(saved["config"], "", strict=False)
        sync_always = self.host.limits.sync_always
        store = directory.open_messages(first_seq=max(config.first_seq, 1), sync_always=sync_always)
        stream = Stream(self.host, config, saved["created_ns"], directory, store)
        found = store.recovery
        if found.damages or found.truncated_bytes:
            facts = {
                "stream": name,
                "truncated_bytes": found.truncated_bytes,
                "lost_messages": found.lost_messages,
                "lost_bytes": found.lost_bytes,
            }
            self.host.report("stream_damaged", facts)
        stream.recover()
        self._add(stream)
        sources.recover(stream)
        for consumer_name in directory.consumers():
            try:
                self._recover_consumer(stream, consumer_name)
            except (StoreError, JsonError, msgspec.MsgspecError) as error:
                facts = {"stream": name, "consumer": consumer_name, "error": str(error)}
                self.host.report("consumer_offline", facts)
        for consumer in stream.consumers.values():
            consumer.release_acked()
        stream.enforce(store.subjects(">") if config.max_msgs_per_subject > 0 else ())

    def _recover_consumer(self, stream: Stream, name: str) -> None:
        document, entries = stream.directory.load_consumer(name)
        saved, config, state = consumer_state.decode(document)
        consumer = Consumer(
            stream,
            name,
            config,
            saved.created_ns,
            start_seq=saved.start_seq,
            skip=saved.skip,
            next_seq=saved.next_seq,
            state=state,
            on_inactive=self.delete_consumer,
        )
        consumer.recover(entries)
        self._add_consumer(consumer)

    def stop(self) -> None:
        """Tell who waits that the server stops, and close every stream."""
        for stream in self._each():
            for consumer in stream.consumers.values():
                consumer.save()
                consumer.close(409, "Server Shutdown", shows_pending=True)
            self._detach(stream)
            try:
                stream.close()
            except StoreError as error:
                self.host.report("store_failed", {"stream": stream.name, "error": str(error)})
        self.streams.clear()

    def _each(self) -> Iterator[Stream]:
        yield from list(self.streams.values())
