"""Loads on a NATS server over raw sockets, cheap enough that the server is what gets measured.

``python -m tests.benchmarks.load NAME --port P --pid PID --messages N …`` prints one JSON object:
messages, wall_s, cpu_s (the server's, over the measured part only) and extra figures. Messages are
encoded before the clock starts; what is received is counted, not parsed, wherever counting will do.
"""

import argparse
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.measure import cpu_seconds

BLOCK = 5_000
"""Messages encoded into one large write of a pipelined publisher."""
HELLO = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'


class Refused(RuntimeError):
    """The server answered something a load can't go on with."""


@dataclass
class Clock:
    """What the measured part cost; filled in when ``measured`` ends."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def measured(pid: int) -> Iterator[Clock]:
    clock = Clock()
    cpu, started = cpu_seconds(pid), time.perf_counter()
    yield clock
    clock.wall_s = time.perf_counter() - started
    clock.cpu_s = cpu_seconds(pid) - cpu


class Peer:
    """One connection to the server under load."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.read_until(b"\r\n")
        self.send(HELLO)
        self.settle()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> bytes:
        data = self.socket.recv(1 << 18)
        if not data:
            raise Refused(f"the server closed the connection after {self.rest[-200:]!r}")
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with ``mark``; what follows stays for the next call."""
        while (at := self.rest.find(mark)) < 0:
            self.rest += self.read()
        found, self.rest = self.rest[: at + len(mark)], self.rest[at + len(mark) :]
        return found

    def settle(self) -> None:
        """PING, PONG: the server has taken everything sent so far."""
        self.send(b"PING\r\n")
        self.read_until(b"PONG\r\n")

    def subscribe(self, subject: bytes) -> None:
        self.send(b"SUB " + subject + b" 1\r\n")
        self.settle()

    def drain(self, size: int) -> None:
        """Receive ``size`` bytes and forget them."""
        buffer = bytearray(1 << 20)
        while size > 0:
            count = self.socket.recv_into(buffer, min(size, len(buffer)))
            if not count:
                raise Refused("the server closed a subscriber")
            size -= count

    def request(self, subject: str, body: object = None) -> dict[str, Any]:
        """One JetStream API request; its answer, or Refused with its error."""
        payload = b"" if body is None else json.dumps(body).encode()
        self.send(b"SUB bench.reply 9\r\n" + encode(subject.encode(), payload, b"bench.reply"))
        self.read_until(b"MSG bench.reply 9 ")
        size = int(self.read_until(b"\r\n"))
        while len(self.rest) < size + 2:
            self.rest += self.read()
        answer: dict[str, Any] = json.loads(self.rest[:size])
        self.rest = self.rest[size + 2 :]
        self.send(b"UNSUB 9\r\n")
        if "error" in answer:
            raise Refused(f"{subject}: {answer['error']}")
        return answer

    def close(self) -> None:
        self.socket.close()


def encode(subject: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    to = subject + b" " + reply if reply else subject
    return b"PUB %s %d\r\n%s\r\n" % (to, len(payload), payload)


def delivered(subject: bytes, payload: bytes) -> int:
    """Bytes of the MSG a subscriber with sid 1 gets for it."""
    return len(b"MSG %s 1 %d\r\n%s\r\n" % (subject, len(payload), payload))


# --- core


def core(options: argparse.Namespace) -> dict[str, Any]:
    """Publishers and subscribers. ``--publishers 1`` writes large blocks, more write one by one."""
    payload = b"x" * options.size
    subjects = [b"bench.core.%d" % number for number in range(options.subjects)]
    blocks = max(1, options.messages // BLOCK)
    chosen = [subjects[number % len(subjects)] for number in range(BLOCK)]
    frames = [encode(subject, payload) for subject in chosen]
    expected = blocks * sum(delivered(subject, payload) for subject in chosen)
    subscribers = [Peer(options.port) for _ in range(options.subscribers)]
    for subscriber in subscribers:
        subscriber.subscribe(b"bench.core.>")
    publishers = [Peer(options.port) for _ in range(options.publishers)]
    block = b"".join(frames)

    with ThreadPoolExecutor(options.subscribers + 1) as pool, measured(options.pid) as clock:
        draining = [pool.submit(subscriber.drain, expected) for subscriber in subscribers]
        for _ in range(blocks):
            if len(publishers) == 1:
                publishers[0].send(block)
                continue
            for number, frame in enumerate(frames):
                publishers[number % len(publishers)].send(frame)
        for publisher in publishers:
            publisher.settle()
        for drained in draining:
            drained.result()
    for peer in (*publishers, *subscribers):
        peer.close()
    return result(blocks * BLOCK, clock)


def request_reply(options: argparse.Namespace) -> dict[str, Any]:
    """``--pairs`` askers and answerers in lockstep; latency is that of a whole round."""
    pairs = options.pairs
    askers = [Peer(options.port) for _ in range(pairs)]
    answerers = [Peer(options.port) for _ in range(pairs)]
    questions, answers = [], []
    for number in range(pairs):
        askers[number].subscribe(b"bench.answer.%d" % number)
        answerers[number].subscribe(b"bench.ask.%d" % number)
        questions.append(encode(b"bench.ask.%d" % number, b"?", b"bench.answer.%d" % number))
        answers.append(encode(b"bench.answer.%d" % number, b"!"))
    rounds = max(1, options.messages // pairs)
    took = []

    with measured(options.pid) as clock:
        for _ in range(rounds):
            started = time.perf_counter()
            for asker, question in zip(askers, questions, strict=True):
                asker.send(question)
            for answerer, answer in zip(answerers, answers, strict=True):
                answerer.read_until(b"?\r\n")
                answerer.send(answer)
            for asker in askers:
                asker.read_until(b"!\r\n")
            took.append(time.perf_counter() - started)
    for peer in (*askers, *answerers):
        peer.close()
    took.sort()
    latencies = {"p50_us": took[len(took) // 2] * 1e6, "p99_us": took[len(took) * 99 // 100] * 1e6}
    return result(rounds * pairs, clock, latencies)


# --- JetStream


def make_stream(control: Peer, storage: str) -> None:
    control.request(
        "$JS.API.STREAM.CREATE.BENCH",
        {"name": "BENCH", "subjects": ["bench.js.>"], "storage": storage, "num_replicas": 1},
    )


class Acks:
    """Counts acknowledgements as they come, and lets a publisher wait for its window."""

    MARK = b"MSG bench.ack 1 "

    def __init__(self, peer: Peer, window: int) -> None:
        self._peer = peer
        self._window = window
        self._count = 0
        self._failure = ""
        self._changed = threading.Condition()

    def read(self, total: int) -> None:
        """Until ``total`` came. Raises Refused when one of them is an error."""
        tail = b""
        while self._count < total:
            data = tail + self._peer.read()
            tail = data[1 - len(self.MARK) :]
            with self._changed:
                self._count += data.count(self.MARK)
                if b'"error"' in data:
                    self._failure = data[-300:].decode(errors="replace")
                self._changed.notify()
            if self._failure:
                raise Refused(self._failure)

    def wait_for_room(self, sent: int) -> None:
        """Until fewer than the window are outstanding, or one was refused."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or sent - self._count < self._window)


def publish_acked(options: argparse.Namespace, peer: Peer) -> None:
    """Publish with acknowledgements, at most ``--window`` of them outstanding."""
    payload = b"x" * options.size
    peer.subscribe(b"bench.ack")
    acks = Acks(peer, options.window)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(acks.read, options.messages)
        for first in range(0, options.messages, 250):
            numbers = range(first, min(first + 250, options.messages))
            data = b"".join(
                encode(b"bench.js.%d" % (n % 1000), payload, b"bench.ack") for n in numbers
            )
            acks.wait_for_room(first)
            if reading.done():
                break
            peer.send(data)
        reading.result()


def js_publish(options: argparse.Namespace) -> dict[str, Any]:
    """Publish to a stream, every message acknowledged."""
    with closing(Peer(options.port)) as control, closing(Peer(options.port)) as publisher:
        make_stream(control, options.storage)
        try:
            with measured(options.pid) as clock:
                publish_acked(options, publisher)
            check_stored(control, options.messages)
        finally:
            control.request("$JS.API.STREAM.DELETE.BENCH")
    return result(options.messages, clock)


def check_stored(control: Peer, messages: int) -> None:
    stored = control.request("$JS.API.STREAM.INFO.BENCH")["state"]["messages"]
    if stored != messages:
        raise Refused(f"{messages} acknowledged, {stored} stored")


def js_consume(options: argparse.Namespace) -> dict[str, Any]:
    """Pull everything in large batches; with ``--ack explicit`` each message is acknowledged."""
    with closing(Peer(options.port)) as control, closing(Peer(options.port)) as consumer:
        make_stream(control, options.storage)
        try:
            with closing(Peer(options.port)) as publisher:
                publish_acked(options, publisher)
            control.request(
                "$JS.API.CONSUMER.CREATE.BENCH.c",
                {
                    "stream_name": "BENCH",
                    "config": {
                        "name": "c",
                        "durable_name": "c",
                        "ack_policy": options.ack,
                        **({"max_ack_pending": 50_000} if options.ack == "explicit" else {}),
                    },
                },
            )
            consumer.subscribe(b"bench.in")
            with measured(options.pid) as clock:
                pull_all(options, consumer)
                consumer.settle()
        finally:
            control.request("$JS.API.STREAM.DELETE.BENCH")
    return result(options.messages, clock)


def pull_all(options: argparse.Namespace, consumer: Peer) -> None:
    whole = re.compile(
        rb"MSG \S+ 1 (\S+) %d\r\n.{%d}\r\n" % (options.size, options.size), re.DOTALL
    )
    left = options.messages
    while left:
        batch = min(5_000, left)
        body = json.dumps({"batch": batch, "expires": 60_000_000_000}).encode()
        consumer.send(encode(b"$JS.API.CONSUMER.MSG.NEXT.BENCH.c", body, b"bench.in"))
        came, rest = 0, b""
        while came < batch:
            rest += consumer.read()
            replies, end = [], 0
            for match in whole.finditer(rest):
                replies.append(match[1])
                end = match.end()
            if not replies and b"NATS/1.0" in rest:
                raise Refused(f"a status instead of messages: {rest[:300]!r}")
            rest = rest[end:]
            came += len(replies)
            if options.ack == "explicit" and replies:
                consumer.send(b"".join(b"PUB %s 4\r\n+ACK\r\n" % reply for reply in replies))
        left -= batch


def result(messages: int, clock: Clock, extra: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "messages": messages,
        "wall_s": clock.wall_s,
        "cpu_s": clock.cpu_s,
        "extra": extra or {},
    }


LOADS = {
    "core": core,
    "request_reply": request_reply,
    "js_publish": js_publish,
    "js_consume": js_consume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load", choices=LOADS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--size", type=int, default=16, help="payload bytes")
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--publishers", type=int, default=1)
    parser.add_argument("--subscribers", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--storage", choices=["file", "memory"], default="file")
    parser.add_argument("--window", type=int, default=4_000)
    parser.add_argument("--ack", choices=["none", "explicit"], default="none")
    options = parser.parse_args()
    sys.stdout.write(json.dumps(LOADS[options.load](options)) + "\n")


if __name__ == "__main__":
    main()
