"""The parts of the JetStream port on a client that stands still where it is told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from millstream_coordinator import Group
from millstream_coordinator.jetstream.api import (
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    Api,
    RequestFailed,
    api_prefix,
    parse_ack,
)
from millstream_coordinator.jetstream.consumers import AT_ONCE, Consumers
from millstream_coordinator.jetstream.keys import Bucket, bucket_config
from millstream_coordinator.jetstream.port import JetStreamPort
from millstream_coordinator.jetstream.pull import (
    PULL_HEARTBEAT_S,
    SILENT_HEARTBEATS,
    Pulls,
    StandingPull,
)
from millstream_coordinator.jetstream.streams import Streams
from millstream_coordinator.jetstream.watch import Watch
from millstream_coordinator.jetstream.wire import Wire
from millstream_coordinator.model import ConfigRecord, MemberSettings
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.ports import (
    Announce,
    Announced,
    CreateConsumer,
    Done,
    Failure,
    Happening,
    Listen,
    OpenPull,
    PullEnded,
    Reply,
    WriteKey,
    Written,
)
from tests.helpers.servers import Server

from .members import running, until

SETTINGS = MemberSettings(
    group="g",
    member="m",
    instance="i",
    config=ConfigRecord(partitions=4, stream="S", filter=None),
)


class FakeSubscription:
    def __init__(self, client: "FakeClient", take: Callable[[Msg], Awaitable[None]] | None) -> None:
        self._client = client
        self.take = take
        client.open.append(self)

    async def unsubscribe(self) -> None:
        self._client.open.remove(self)


@dataclass(frozen=True)
class FakeReply:
    data: bytes


class FakeClient:
    """What the parts use of nats-py's client; subscribing and asking wait for ``gate``."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.open: list[FakeSubscription] = []
        self.published: list[str] = []
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.answers: dict[str, dict[str, object]] = {}
        """By what the subject has in it."""
        self.is_connected = True
        self.stats = {"reconnects": 0}
        self.last_error: Exception | None = None
        self.does_swallow = False
        self.unheard = 0
        """So many requests meet nobody."""
        self._inboxes = 0

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX.{self._inboxes}"

    async def subscribe(self, _subject: str, cb: Any = None, **_: Any) -> FakeSubscription:
        await self.gate.wait()
        return FakeSubscription(self, cb)

    async def request(self, subject: str, payload: bytes, **_: Any) -> FakeReply:
        self.asked.append(subject)
        self.bodies.append(payload)
        await self.gate.wait()
        if self.unheard:
            self.unheard -= 1
            raise NoRespondersError
        for name, answer in self.answers.items():
            if name in subject:
                return FakeReply(json.dumps(answer).encode())
        return FakeReply(b'{"created": "now", "name": "w"}')

    async def publish(self, subject: str, _payload: bytes, reply: str = "") -> None:
        del reply
        self.published.append(subject)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            if not self.does_swallow:
                raise


class Bench:
    """A wire over the fake, its tasks, and what the machine was told."""

    def __init__(self) -> None:
        self.client = FakeClient()
        self.told: list[Happening | Reply] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.api = Api(self.client, 1.0)  # type: ignore[arg-type]
        self.wire = Wire(
            self.client,  # type: ignore[arg-type]
            self.api,
            SETTINGS,
            KeyRule.parse("s.*.{key}"),
            self.told.append,
            self._spawn,
        )

    def _spawn(self, task: Coroutine[None, None, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(task, name=name))

    async def settle(self) -> None:
        await asyncio.gather(*self.tasks)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():  # noqa: ASYNC110 - there is nothing to wait on but the loop's rounds
                await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    yield one
    for task in one.tasks:
        task.cancel()
    await asyncio.gather(*one.tasks, return_exceptions=True)


def _open_pull(number: int) -> OpenPull:
    return OpenPull(pull=number, name="g-p0-e1", partition=0, epoch=1)


async def test_a_watch_opened_twice_at_once_leaves_one_subscription(bench: Bench) -> None:
    watch = Watch(bench.wire, Bucket(bench.api, SETTINGS))
    bench.client.gate.clear()

    watch.open()
    await bench.until(lambda: len(bench.client.asked) == 1)
    watch.open()
    await bench.until(lambda: len(bench.client.asked) == 2)
    bench.client.gate.set()
    await bench.settle()

    assert len(bench.client.open) == 1


async def test_a_watch_closed_while_it_opens_leaves_no_subscription(bench: Bench) -> None:
    watch = Watch(bench.wire, Bucket(bench.api, SETTINGS))
    bench.client.gate.clear()

    watch.open()
    await bench.until(lambda: len(bench.client.asked) == 1)
    await watch.close()
    bench.client.gate.set()
    await bench.settle()

    assert not bench.client.open


async def test_a_pull_closed_while_it_subscribes_leaves_no_subscription(bench: Bench) -> None:
    pulls = Pulls(bench.wire, lambda _: "S")
    bench.client.gate.clear()

    pulls.open(_open_pull(1))
    await asyncio.sleep(0)
    pulls.close(1)
    await asyncio.sleep(0)
    bench.client.gate.set()
    await bench.settle()

    assert not bench.client.open


async def _asked_for_a_pull_that_nobody_answers(bench: Bench) -> None:
    """A pull's first request, and the server's word that nobody is there to take it."""
    bench.tasks.append(asyncio.create_task(bench.wire.send()))
    Pulls(bench.wire, lambda _: "S").open(_open_pull(1))
    await bench.until(lambda: len(bench.client.published) == 1)
    (subscription,) = bench.client.open
    nobody = Msg(bench.client, headers={"Status": "503"})  # type: ignore[arg-type]
    assert subscription.take is not None
    await subscription.take(nobody)


async def test_a_consumer_just_made_that_does_not_listen_yet_is_asked_again(bench: Bench) -> None:
    await _asked_for_a_pull_that_nobody_answers(bench)
    await bench.until(lambda: len(bench.client.published) == 2)

    assert bench.client.published == ["$JS.API.CONSUMER.MSG.NEXT.S.g-p0-e1"] * 2
    assert not bench.told


async def test_a_consumer_that_nobody_serves_for_long_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream_coordinator.jetstream.pull.FRESH_S", 0.0)
    await _asked_for_a_pull_that_nobody_answers(bench)

    assert bench.told == [PullEnded(pull=1, reason="503")]


@pytest.mark.parametrize("does_deliver", [True, False])
async def test_messages_are_as_good_as_heartbeats(bench: Bench, does_deliver: bool) -> None:
    messages: list[Msg] = []
    pull = StandingPull(bench.wire, "S", "c", messages.append, lambda _: None, lambda _: None)
    bench.tasks.append(asyncio.create_task(bench.wire.send()))
    await pull.open()
    (subscription,) = bench.client.open
    assert subscription.take is not None
    pull.check(bench.wire.now)
    if does_deliver:
        await subscription.take(Msg(bench.client, reply="$JS.ACK.S.c.1.7.1.0.0"))  # type: ignore[arg-type]

    pull.check(bench.wire.now + 2 * SILENT_HEARTBEATS * PULL_HEARTBEAT_S)
    bench.wire.publish("what was sent before it is out", b"")
    await bench.until(lambda: "what was sent before it is out" in bench.client.published)

    assert len(messages) == does_deliver
    assert len(bench.client.published) == (2 if does_deliver else 3)


async def test_pulls_closed_before_they_began_are_forgotten(bench: Bench) -> None:
    pulls = Pulls(bench.wire, lambda _: "S")

    for number in range(10):
        pulls.open(_open_pull(number))
        pulls.close(number)
        pulls.close(number)
    await bench.settle()

    assert not bench.client.open
    assert not pulls.numbers


async def test_a_cancellation_that_the_client_swallows_ends_the_outbox(bench: Bench) -> None:
    bench.client.does_swallow = True
    bench.client.gate.clear()
    sending = asyncio.create_task(bench.wire.send())
    bench.wire.publish("a", b"")
    await bench.until(lambda: bench.client.published == ["a"])

    sending.cancel()

    for _ in range(10):
        await asyncio.sleep(0)
    assert sending.cancelled()


async def test_output_keeps_its_order_around_a_call(bench: Bench) -> None:
    sending = asyncio.create_task(bench.wire.send())
    bench.wire.publish("a", b"")
    bench.wire.after_output(lambda: bench.client.published.append("call"))
    bench.wire.publish("b", b"")

    await bench.until(lambda: len(bench.client.published) == 3)
    sending.cancel()

    assert bench.client.published == ["a", "call", "b"]


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.S.g-p0-e1.2.7.5.1700.3",
        "$JS.ACK.hub.ABCDEF.S.g-p0-e1.2.7.5.1700.3",
        "$JS.ACK._.ABCDEF.S.g-p0-e1.2.7.5.1700.3.token",
    ],
)
def test_an_ack_subject_is_read_with_and_without_a_domain(reply: str) -> None:
    delivery = parse_ack(reply)

    assert (delivery.num_delivered, delivery.seq, delivery.consumer_seq) == (2, 7, 5)
    assert (delivery.timestamp_ns, delivery.num_pending) == (1700, 3)


def test_a_domain_is_a_prefix_and_a_prefix_is_taken_as_it_is() -> None:
    assert api_prefix() == "$JS.API"
    assert api_prefix("hub") == "$JS.hub.API"
    assert api_prefix(prefix="js.acc.") == "js.acc"


@pytest.mark.parametrize(
    ("domain", "prefix"), [("hub", "x"), ("a.b", None), ("", None), (None, "a.*"), (None, "a..b")]
)
def test_a_domain_or_prefix_that_is_none_is_refused(domain: str | None, prefix: str | None) -> None:
    with pytest.raises(ValueError, match=r"domain|API prefix"):
        api_prefix(domain, prefix)


async def test_buckets_are_written_under_a_prefix_and_stored_without_it(bench: Bench) -> None:
    api = Api(bench.client, 1.0, api_prefix("hub"))  # type: ignore[arg-type]

    assert api.key_subject("B", "cfg") == "$JS.hub.API.$KV.B.cfg"
    assert bench.api.key_subject("B", "cfg") == "$KV.B.cfg"
    assert api.subject("INFO") == "$JS.hub.API.INFO"


async def test_a_bucket_just_made_that_not_every_node_knows_is_written_when_it_does(
    bench: Bench,
) -> None:
    bench.client.unheard = 3
    bench.client.answers["cfg"] = {"stream": "KV_B", "seq": 7}

    with pytest.raises(RequestFailed) as raised:
        await bench.api.write("B", "cfg", b"x", 0, {})
    revision = await bench.api.write("B", "cfg", b"x", 0, {}, made_s=60)

    assert raised.value.reason is Failure.NO_RESPONDERS
    assert (revision, len(bench.client.asked)) == (7, 4)


async def test_one_of_several_servers_in_a_url_is_enough(server: Server, name: str) -> None:
    group = Group(f"nats://127.0.0.1:9, {server.url}", stream=None, name=name, partitions=2)

    async with running(group):
        await until(lambda: len(group.partitions) == 2)


async def test_revisions_grow_when_a_bucket_is_lost(
    server: Server, client: Client, name: str
) -> None:
    del server
    api = Api(client, 2.0)
    settings = replace(SETTINGS, group=name)
    revisions = []
    for _ in range(2):
        bucket = Bucket(api, settings)
        await bucket.prepare(1, has_ttl=True)
        answer = await bucket.write(WriteKey(id=1, key="cfg", value=b"x", revision=0))
        assert isinstance(answer, Written)
        revisions.append(answer.revision)
        await client.jetstream().delete_stream(bucket.stream)

    assert revisions[0] > 1_000_000
    assert revisions[1] > revisions[0]


async def consumers_of(bench: Bench, **config: object) -> tuple[Consumers, Streams]:
    """The maker of consumers of a stream that is configured so."""
    config = {"subjects": ["s.*.*"], **config}
    bench.client.answers["STREAM.INFO"] = {"config": config, "state": {}}
    rule = KeyRule.parse("s.*.{key}")
    streams = Streams(bench.api, SETTINGS, rule)
    await streams.look()
    return Consumers(bench.api, SETTINGS, rule, streams), streams


@pytest.mark.parametrize(("retention", "replicas"), [("limits", 1), ("workqueue", None)])
async def test_consumers_of_a_replicated_stream_have_one_replica_unless_it_is_a_work_queue(
    bench: Bench, retention: str, replicas: int | None
) -> None:
    consumers, streams = await consumers_of(bench, retention=retention, num_replicas=3)

    await consumers.create(CreateConsumer(id=1, name="g-p2-e1", partition=2, start_seq=7))

    made = json.loads(bench.client.bodies[-1])["config"]
    assert made.get("num_replicas") == replicas
    assert made.get("mem_storage") is True
    assert made["filter_subject"] == "s.2.*"
    assert made.get("opt_start_seq") == (7 if retention == "limits" else None)
    assert bucket_config("g", streams.num_replicas, has_ttl=True)["num_replicas"] == 3


async def test_the_bucket_of_a_group_without_a_stream_has_the_replicas_it_was_given(
    bench: Bench,
) -> None:
    config = ConfigRecord(partitions=4, stream=None, filter=None)
    streams = Streams(bench.api, replace(SETTINGS, config=config, replicas=3), None)
    await streams.look()

    assert streams.num_replicas == 3


async def test_a_consumer_waits_an_hour_for_an_ack_and_an_orphan_dies_by_itself(
    bench: Bench,
) -> None:
    consumers, _ = await consumers_of(bench, retention="limits")

    await consumers.create(CreateConsumer(id=1, name="g-p2-e1", partition=2, start_seq=7))

    made = json.loads(bench.client.bodies[-1])["config"]
    assert (made["ack_policy"], made["max_deliver"]) == ("explicit", -1)
    assert made["ack_wait"] == 3600 * 10**9
    assert made["inactive_threshold"] == 6 * 3600 * 10**9
    assert made["max_ack_pending"] == SETTINGS.limits.max_ack_pending


async def test_the_consumers_of_a_single_server_outlast_its_restart(bench: Bench) -> None:
    consumers, _ = await consumers_of(bench, retention="workqueue", num_replicas=1)

    await consumers.create(CreateConsumer(id=1, name="g-p2-e1", partition=2, start_seq=7))

    assert "mem_storage" not in json.loads(bench.client.bodies[-1])["config"]


async def test_no_more_consumers_are_asked_for_at_once_than_the_server_answers_in_time(
    bench: Bench,
) -> None:
    consumers, _ = await consumers_of(bench, retention="limits")
    bench.client.asked.clear()
    bench.client.gate.clear()

    commands = [
        CreateConsumer(id=n, name=f"g-p{n}-e1", partition=n, start_seq=1) for n in range(100)
    ]
    making = [asyncio.create_task(consumers.create(command)) for command in commands]
    await bench.until(lambda: len(bench.client.asked) == AT_ONCE)
    for _ in range(5):
        await asyncio.sleep(0)
    at_once = len(bench.client.asked)
    bench.client.gate.set()
    answers = await asyncio.gather(*making)

    assert at_once == AT_ONCE
    assert answers == [Done(id=n) for n in range(100)]


@pytest.mark.parametrize(
    ("code", "err_code", "reason"),
    [
        (503, 10008, Failure.TIMEOUT),
        (400, 10005, Failure.TIMEOUT),
        (400, 10074, Failure.REFUSED),
    ],
)
async def test_what_a_cluster_says_while_a_node_is_down_is_no_refusal(
    bench: Bench, code: int, err_code: int, reason: Failure
) -> None:
    bench.client.answers["STREAM.CREATE"] = {
        "error": {"code": code, "err_code": err_code, "description": "no"}
    }

    with pytest.raises(RequestFailed) as raised:
        await bench.api.call("STREAM.CREATE.B")

    assert raised.value.reason is reason


async def test_who_listens_to_all_hears_what_members_announce(server: Server, name: str) -> None:
    told: list[Happening | Reply] = []
    settings = replace(SETTINGS, group=name, config=replace(SETTINGS.config, stream=None))
    port = JetStreamPort(server.url, settings, None)
    tasks: list[asyncio.Task[None]] = []
    await port.open(told.append, lambda task, _: tasks.append(asyncio.create_task(task)))

    port.execute(Listen(member=None))
    async with asyncio.timeout(60):
        while not any(isinstance(one, Announced) for one in told):
            port.execute(Announce(value=b"{}"))
            await asyncio.sleep(0.01)
    await port.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert Announced(value=b"{}") in told


class DeletingCluster:
    """An API that says of a stream being deleted that it is not there, and that it is."""

    async def call(self, request: str, _body: object = None) -> dict[str, Any]:
        if request.startswith("STREAM.CREATE."):
            raise RequestFailed(Failure.REFUSED, "stream name already in use", STREAM_NAME_IN_USE)
        raise RequestFailed(Failure.REFUSED, "stream not found", STREAM_NOT_FOUND)


async def test_a_bucket_that_is_being_deleted_is_asked_for_again() -> None:
    bucket = Bucket(DeletingCluster(), SETTINGS)  # type: ignore[arg-type]

    with pytest.raises(RequestFailed) as refused:
        await bucket.prepare(3, has_ttl=True)

    assert refused.value.reason is Failure.TIMEOUT


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_bucket_that_has_no_leader_yet_is_asked_for_again(
    bench: Bench, is_there: bool
) -> None:
    answer: dict[str, Any] = {
        "created": "now",
        "config": {"allow_msg_ttl": True},
        "cluster": {"name": "c"},
    }
    missing: dict[str, Any] = {
        "error": {"code": 404, "err_code": STREAM_NOT_FOUND, "description": "no"}
    }
    bench.client.answers["STREAM.INFO"] = answer if is_there else missing
    bench.client.answers["STREAM.CREATE"] = answer
    bucket = Bucket(bench.api, SETTINGS)

    with pytest.raises(RequestFailed) as refused:
        await bucket.prepare(3, has_ttl=True)
    answer["cluster"] = {"name": "c", "leader": "n1"}
    await bucket.prepare(3, has_ttl=True)

    assert refused.value.reason is Failure.TIMEOUT
    assert bucket.has_ttl
