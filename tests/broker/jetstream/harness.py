"""A JetStream engine in a test: a bus of lists, a clock that moves when told, and no sockets."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millstream_broker.jetstream.engine import JetStream
from millstream_broker.jetstream.model import Identity, Limits
from millstream_broker.protocol import headers as header_blocks
from millstream_broker.routing.port import Instant, Message, Sink
from millstream_broker.store.directory import FileStorage, MemoryStorage
from millstream_broker.store.port import Storage
from millstream_broker.subjects import subject as subjects

START_WALL_NS = 1_700_000_000_000_000_000


@dataclass
class Delivery:
    """What a client's subscription got."""

    subject: str
    payload: bytes
    reply: str | None
    headers: bytes | None

    @property
    def status(self) -> str:
        """``404 No Messages`` and its like; empty for a message."""
        first_line = (self.headers or b"").partition(b"\r\n")[0].decode()
        return first_line.removeprefix("NATS/1.0").strip()

    def header(self, name: str) -> str | None:
        return header_blocks.get(self.headers, name)

    @property
    def ack_tokens(self) -> list[int]:
        """Delivered count, stream seq, consumer seq, time, pending."""
        assert self.reply is not None
        return [int(token) for token in self.reply.split(".")[4:]]

    @property
    def seq(self) -> int:
        return self.ack_tokens[1]

    def json(self) -> Any:
        return json.loads(self.payload)


@dataclass
class Inbox:
    """A client's subscription and what it got, oldest first."""

    pattern: str
    queue: str | None = None
    got: list[Delivery] = field(default_factory=list)

    @property
    def payloads(self) -> list[bytes]:
        return [delivery.payload for delivery in self.got if not delivery.status]

    @property
    def seqs(self) -> list[int]:
        return [delivery.seq for delivery in self.got if not delivery.status]

    @property
    def statuses(self) -> list[str]:
        return [delivery.status for delivery in self.got if delivery.status]

    def take(self) -> list[Delivery]:
        """What came since the last look."""
        taken, self.got = self.got, []
        return taken


class FakeBus:
    """Subjects, clients' inboxes, and sinks that are called by ``settle`` only."""

    def __init__(self) -> None:
        self.inboxes: list[Inbox] = []
        self._sinks: dict[int, tuple[str, Sink]] = {}
        self._runs: list[tuple[Sink, list[Message]]] = []
        self._count = 0

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        reply: str | None = None,
        headers: bytes | None = None,
        deliver_as: str | None = None,
    ) -> int:
        reached = 0
        for inbox in self.inboxes:
            if subjects.matches(inbox.pattern, subject):
                inbox.got.append(Delivery(deliver_as or subject, payload, reply, headers))
                reached += 1
        for pattern, sink in self._sinks.values():
            if subjects.matches(pattern, subject):
                message = Message(deliver_as or subject, reply, headers, payload)
                if self._runs and self._runs[-1][0] is sink:
                    self._runs[-1][1].append(message)
                else:
                    self._runs.append((sink, [message]))
                reached += 1
        return reached

    def publish_all(self, subject: str, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self.publish(subject, payload)

    def takes_runs(self, subject: str) -> bool:
        return self.has_interest(subject)

    def deliver_all(self, to: str, messages: Sequence[Message]) -> None:
        for subject, reply, headers, payload in messages:
            self.publish(to, payload, reply=reply, headers=headers, deliver_as=subject)

    def has_interest(self, subject: str, queue: str | None = None) -> bool:
        if any(
            subjects.matches(inbox.pattern, subject) and inbox.queue == queue
            for inbox in self.inboxes
        ):
            return True
        return any(subjects.matches(pattern, subject) for pattern, _ in self._sinks.values())

    def subscribe(self, pattern: str, sink: Sink) -> Callable[[], None]:
        self._count += 1
        key = self._count
        self._sinks[key] = (pattern, sink)

        def unsubscribe() -> None:
            self._sinks.pop(key, None)

        return unsubscribe

    def settle(self, now: Instant) -> None:
        while self._runs:
            sink, messages = self._runs.pop(0)
            sink(messages, now)


class World:
    """One engine, its storage, and the clients around it."""

    def __init__(
        self,
        file: Storage | None = None,
        *,
        limits: Limits | None = None,
        wall_ns: int = START_WALL_NS,
        seed: int = 1,
    ) -> None:
        self.bus = FakeBus()
        self.mono_s = 1000.0
        self.wall_ns = wall_ns
        self.reports: list[tuple[str, dict[str, Any]]] = []
        self.file = file if file is not None else MemoryStorage()
        self.js = JetStream(
            self.bus,
            file=self.file,
            memory=MemoryStorage(),
            random=random.Random(seed).randrange,
            report=lambda event, facts: self.reports.append((event, facts)),
            identity=Identity(server_id="NTEST", server_name="test"),
            limits=limits or Limits(),
        )
        self._inbox_count = 0
        self.js.start(self.now)
        self.settle()

    @property
    def now(self) -> Instant:
        return Instant(self.mono_s, self.wall_ns)

    def settle(self) -> None:
        """Let everything that is due now happen."""
        self.bus.settle(self.now)
        for _ in range(100_000):
            deadline = self.js.next_deadline()
            if deadline is None or deadline > self.mono_s:
                return
            self.js.advance(self.now)
            self.bus.settle(self.now)
        raise AssertionError("the engine never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at every deadline on the way."""
        end = self.mono_s + seconds
        while (deadline := self.js.next_deadline()) is not None and deadline <= end:
            self._move_to(max(deadline, self.mono_s))
            self.js.advance(self.now)
            self.bus.settle(self.now)
        self._move_to(end)
        self.settle()

    def _move_to(self, mono_s: float) -> None:
        self.wall_ns += round((mono_s - self.mono_s) * 1e9)
        self.mono_s = mono_s

    def inbox(self, pattern: str | None = None, queue: str | None = None) -> Inbox:
        """Subscribe as a client."""
        self._inbox_count += 1
        inbox = Inbox(pattern or f"_INBOX.{self._inbox_count}", queue)
        self.bus.inboxes.append(inbox)
        return inbox

    def leave(self, inbox: Inbox) -> None:
        """Unsubscribe."""
        self.bus.inboxes.remove(inbox)

    @contextmanager
    def _reply(self) -> Iterator[Inbox]:
        inbox = self.inbox()
        yield inbox
        self.leave(inbox)

    def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None
    ) -> Delivery | None:
        """Ask and give the first answer, None when nobody answered."""
        with self._reply() as inbox:
            block = header_blocks.add(None, headers.items()) if headers else None
            self.bus.publish(subject, payload, reply=inbox.pattern, headers=block)
            self.settle()
            return inbox.got[0] if inbox.got else None

    def api(self, subject: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """Ask the API and give the response's document."""
        payload = b"" if body is None else body if isinstance(body, bytes) else _json(body)
        answer = self.request(f"$JS.API.{subject}", payload, headers)
        assert answer is not None, f"no answer from {subject}"
        return answer.json()

    def err_code(self, subject: str, body: Any = None) -> int:
        """Ask the API for something it must refuse."""
        response = self.api(subject, body)
        assert "error" in response, response
        return int(response["error"]["err_code"])

    def stream(self, name: str = "S", **config: Any) -> Any:
        """Make a stream; by default on ``<name in lower case>.>``."""
        config.setdefault("subjects", [f"{name.lower()}.>"])
        response = self.api(f"STREAM.CREATE.{name}", {"name": name, **config})
        assert "error" not in response, response
        return response

    def consumer(self, name: str = "C", stream: str = "S", **config: Any) -> Any:
        """Make a durable consumer with explicit acks."""
        config = {"durable_name": name, "ack_policy": "explicit", **config}
        body = {"stream_name": stream, "config": config}
        response = self.api(f"CONSUMER.CREATE.{stream}.{name}", body)
        assert "error" not in response, response
        return response

    def info(self, name: str = "C", stream: str = "S") -> Any:
        return self.api(f"CONSUMER.INFO.{stream}.{name}")

    def state(self, stream: str = "S") -> Any:
        return self.api(f"STREAM.INFO.{stream}", {"deleted_details": True})["state"]

    def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None
    ) -> Any:
        """Publish and give the ack's document."""
        answer = self.request(subject, payload, headers)
        assert answer is not None, f"no ack from {subject}"
        return answer.json() if answer.payload else {}

    def publish_run(self, messages: Sequence[tuple[str, bytes]]) -> Inbox:
        """Publish many at once, as one socket read brings them; their acks."""
        inbox = self.inbox()
        for subject, payload in messages:
            self.bus.publish(subject, payload, reply=inbox.pattern)
        self.settle()
        return inbox

    def pull(self, name: str = "C", stream: str = "S", body: bytes = b"", **request: Any) -> Inbox:
        """Send a pull request and keep listening."""
        inbox = self.inbox()
        payload = _json(request) if request else body
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        self.bus.publish(subject, payload, reply=inbox.pattern)
        self.settle()
        return inbox

    def fetch(self, count: int = 1, name: str = "C", stream: str = "S") -> list[Delivery]:
        """Pull what is there now."""
        inbox = self.pull(name, stream, batch=count, no_wait=True)
        self.leave(inbox)
        return [delivery for delivery in inbox.got if not delivery.status]

    def ack(self, delivery: Delivery, payload: bytes = b"") -> None:
        assert delivery.reply is not None
        self.bus.publish(delivery.reply, payload)
        self.settle()

    def double_ack(self, delivery: Delivery, payload: bytes = b"") -> bool:
        """Ack and wait; whether there was an answer."""
        assert delivery.reply is not None
        return self.request(delivery.reply, payload) is not None

    def stop(self) -> None:
        self.js.stop(self.now)
        self.bus.settle(self.now)


class Disk:
    """A folder a server can be killed over: the next one gets a copy of what was there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._open: list[FileStorage] = []

    def boot(self, **options: Any) -> World:
        """Start on the newest state, as after ``kill -9`` of the world before."""
        self._count += 1
        path = self._folder / str(self._count)
        before = self._folder / str(self._count - 1)
        if before.exists():
            shutil.copytree(before, path)
        else:
            path.mkdir(parents=True)
        storage = FileStorage(path)
        self._open.append(storage)
        return World(storage, **options)

    @property
    def newest(self) -> Path:
        """The folder of the world booted last."""
        return self._folder / str(self._count)

    def close(self) -> None:
        for storage in self._open:
            storage.close()


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
