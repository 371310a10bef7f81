"""The sinks that publish, on both servers: one message per effect, and atomic batches."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeVar

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from millstream_coordinator.errors import BadName
from millstream_coordinator.partitioning.key import from_token
from millstream_coordinator.partitioning.publisher import SubjectTemplate
from millstream_coordinator.sinks.batch import OUTPUTS_MAX, BatchSink, Step
from millstream_coordinator.sinks.contract import (
    BadEffect,
    BadMark,
    SinkContended,
    SinkCounters,
    SinkUnavailable,
    SinkUnfit,
    StaleEpoch,
)
from millstream_coordinator.sinks.mark import MARK_HEADER, Fenced, Verdict, entry_key, entry_of_key
from millstream_coordinator.sinks.outlet import Output
from millstream_coordinator.sinks.publish import PublishSink
from millstream_coordinator.sinks.testing import Delivery, EffectFailed, SinkContract, Trial
from tests.helpers.servers import Server

POLLS = 400
POLL_S = 0.025

C = TypeVar("C", bound=Client)


class Connected(Protocol):
    """Connects a client of one's own kind, closed after the test."""

    async def __call__(self, kind: type[C]) -> C: ...


@pytest.fixture
async def connected(server: Server) -> AsyncIterator[Connected]:
    opened: list[Client] = []

    async def connect(kind: type[C]) -> C:
        connection = kind()
        await connection.connect(server.url)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        if not connection.is_closed:
            await connection.close()


async def call(client: Client, name: str, body: object = None) -> Any:
    """Ask JetStream's API."""
    payload = b"" if body is None else json.dumps(body).encode()
    return json.loads((await client.request(f"$JS.API.{name}", payload, timeout=5)).data)


async def create(client: Client, stream: str, **config: object) -> None:
    """Make a stream with a topic of its own name; batches and rollups are allowed."""
    wanted = {
        "name": stream,
        "subjects": [f"{stream}.>", f"millstream.sink.{stream}.>"],
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
        "storage": "file",
    }
    answer = await call(client, f"STREAM.CREATE.{stream}", wanted | config)
    assert "error" not in answer


async def stored(client: Client, stream: str, pattern: str) -> list[tuple[str, str]]:
    """(subject, data) of the stream's messages that match, in order."""
    jetstream = client.jetstream()
    found: list[tuple[str, str]] = []
    seq = 1
    while True:
        try:
            message = await jetstream.get_msg(stream, seq, subject=pattern, next=True)
        except nats.js.errors.NotFoundError:
            return found
        found.append((message.subject or "", (message.data or b"").decode()))
        seq = (message.seq or 0) + 1


class PublishTrial:
    """The contract's trial of the sink with one message per effect."""

    def __init__(self, sink: PublishSink, client: Client, stream: str) -> None:
        self.sink, self.client, self.stream = sink, client, stream

    @property
    def counters(self) -> SinkCounters:
        return self.sink.counters

    async def apply(self, message: Fenced, text: str, *, fails: bool = False) -> Verdict:
        return await self.sink.apply(message, Output(data=text.encode()))

    async def texts(self, key: bytes) -> list[str]:
        subject = self.sink.subject_of(Delivery(key=key))
        return [data for _, data in await stored(self.client, self.stream, subject)]

    async def close(self) -> None:
        pass


class TestPublishSink(SinkContract):
    """The contract on one message per effect."""

    effects_can_fail = False

    @pytest.fixture(autouse=True)
    async def _stream(self, client: Client, name: str) -> None:
        self.client, self.name = client, name
        await create(client, name)

    async def open(self) -> Trial:
        subject = f"{self.name}.{{key}}"
        sink = await PublishSink.open(self.client, stream=self.name, subject=subject)
        return PublishTrial(sink, self.client, self.name)


class BatchTrial:
    """The contract's trial of batches: each effect is two messages and a longer state."""

    def __init__(self, sink: BatchSink, client: Client, stream: str) -> None:
        self.sink, self.client, self.stream = sink, client, stream

    @property
    def counters(self) -> SinkCounters:
        return self.sink.counters

    async def apply(self, message: Fenced, text: str, *, fails: bool = False) -> Verdict:
        entry = entry_key(message)

        def step(state: bytes | None) -> Step:
            if fails:
                raise EffectFailed
            texts = [*json.loads(state or b"[]"), text]
            outputs = [
                Output(subject=f"{self.stream}.{part}.{entry}", data=text.encode())
                for part in ("one", "two")
            ]
            return Step(outputs=outputs, state=json.dumps(texts).encode())

        return await self.sink.apply(message, step)

    async def texts(self, key: bytes) -> list[str]:
        entry = entry_of_key(key)
        one, two = [
            [data for _, data in await stored(self.client, self.stream, subject)]
            for subject in (f"{self.stream}.one.{entry}", f"{self.stream}.two.{entry}")
        ]
        state = json.loads(await self.sink.state(key) or b"[]")
        assert one == two == state, "a batch is there in part"
        return one

    async def close(self) -> None:
        pass


class TestBatchSink(SinkContract):
    """The contract on atomic batches."""

    fences_partitions = True
    allow_rollup_hdrs = True
    remembered_max = 1024

    @pytest.fixture(autouse=True)
    async def _stream(self, client: Client, name: str) -> None:
        self.client, self.name = client, name
        await create(client, name, allow_rollup_hdrs=self.allow_rollup_hdrs)

    async def open(self) -> Trial:
        sink = await BatchSink.open(
            self.client, stream=self.name, group=self.name, remembered_max=self.remembered_max
        )
        return BatchTrial(sink, self.client, self.name)


class TestBatchSinkThatKeepsAll(TestBatchSink):
    """The contract with nothing remembered, on a stream without rollups."""

    allow_rollup_hdrs = False
    remembered_max = 0


async def test_each_output_follows_on_its_keys_subject(client: Client, name: str) -> None:
    await create(client, name)
    sink = await PublishSink.open(client, stream=name, subject=f"{name}.of.{{key}}.delay")
    deliveries = [Delivery(key=b"a.b"), Delivery(key=None, seq=7), Delivery(key=b"a.b", seq=2)]

    for number, delivery in enumerate(deliveries):
        headers = {"Trace": f"t{number}"}
        await sink.apply(delivery, Output(data=b"%d" % number, headers=headers))

    assert await stored(client, name, f"{name}.>") == [
        (f"{name}.of.a%2Eb.delay", "0"),
        (f"{name}.of.%none-3-7.delay", "1"),
        (f"{name}.of.a%2Eb.delay", "2"),
    ]
    message = await client.jetstream().get_msg(name, 3)
    assert message.headers is not None
    assert (message.headers["Trace"], message.headers[MARK_HEADER]) == ("t2", "3:1:2")
    assert await sink.value(b"a.b") == b"2"


async def test_outputs_can_go_to_the_keys_own_partition(client: Client, name: str) -> None:
    await create(client, name)
    template = SubjectTemplate.parse(f"{name}.{{partition}}.{{key}}", partitions=12)

    def subject(key: bytes) -> str:
        return template.subject(key, template.partition(key) or 0)

    sink = await PublishSink.open(client, stream=name, subject=subject)
    await sink.apply(Delivery(key=b"N14228"), Output(data=b"1"))

    ((found, _),) = await stored(client, name, f"{name}.>")
    assert found == subject(b"N14228")
    assert from_token(found.split(".")[2]) == b"N14228"
    with pytest.raises(BadEffect, match="no key"):
        await sink.apply(Delivery(key=None), Output(data=b"1"))


async def test_a_function_that_leads_elsewhere_is_found_out(client: Client, name: str) -> None:
    await create(client, name)
    sink = await PublishSink.open(client, stream=name, subject=lambda key: f"other.{key!r}")

    with pytest.raises(BadEffect, match="does not take"):
        await sink.apply(Delivery(key=b"a"), Output())


@pytest.mark.parametrize(
    "subject", ["{name}.fixed", "{name}.{key}.{key}", "{name}.a{key}", "{name}.*.{key}", "{key}."]
)
async def test_a_subject_that_is_no_template_is_refused(
    client: Client, name: str, subject: str
) -> None:
    with pytest.raises(SinkUnfit, match="subject"):
        await PublishSink.open(client, stream=name, subject=subject.replace("{name}", name))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"retention": "workqueue"}, "retention workqueue"),
        ({"retention": "interest"}, "retention interest"),
        ({"subjects": ["elsewhere.{name}.>"]}, "does not take"),
        (
            {"subject_transform": {"src": "{name}.*", "dest": "{name}.0.{{wildcard(1)}}"}},
            "transforms",
        ),
    ],
)
async def test_a_stream_that_would_lose_marks_or_miss_outputs_is_refused(
    client: Client, name: str, config: dict[str, object], reason: str
) -> None:
    named = json.loads(json.dumps(config).replace("{name}", name))
    await create(client, name, **named)

    with pytest.raises(SinkUnfit, match=reason):
        await PublishSink.open(client, stream=name, subject=f"{name}.{{key}}")


async def test_a_stream_that_is_not_there_is_refused(client: Client, name: str) -> None:
    with pytest.raises(SinkUnfit, match=f"no stream '{name}'"):
        await PublishSink.open(client, stream=name, subject=f"{name}.{{key}}")
    with pytest.raises(SinkUnfit, match=f"no stream '{name}'"):
        await BatchSink.open(client, stream=name, group="orders")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output(headers={"Nats-Expected-Last-Sequence": "1"}), "the sink's own"),
        (Output(headers={"nats-batch-id": "1"}), "the sink's own"),
        (Output(headers={"Trace": "a\r\nNats-Rollup: all"}), "line break"),
        (Output(data=b"x" * 1024 * 1024), "over the limit"),
        (Output(subject="somewhere"), "names a subject"),
    ],
)
async def test_an_output_that_can_never_be_stored_is_refused(
    client: Client, name: str, output: Output, reason: str
) -> None:
    await create(client, name)
    sink = await PublishSink.open(client, stream=name, subject=f"{name}.{{key}}")

    with pytest.raises(BadEffect, match=reason):
        await sink.apply(Delivery(), output)

    assert await stored(client, name, ">") == []


@pytest.fixture
async def batches(client: Client, name: str) -> BatchSink:
    """A sink on a new stream."""
    await create(client, name)
    return await BatchSink.open(client, stream=name, group=name)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([Output(subject="elsewhere")], "does not take"),
        ([Output()], "does not take"),
        ([Output(subject="{name}.*")], "does not take"),
        ([Output(subject="millstream.sink.{name}.key.x")], "the sink's own"),
        ([Output(subject="{name}.a", headers={"Nats-Rollup": "all"})], "the sink's own"),
        ([Output(subject="{name}.a"), Output(subject="{name}.a", data=b"x" * 2**20)], "over the"),
        ([Output(subject="{name}.a")] * (OUTPUTS_MAX + 1), "1000 outputs"),
        ([Output(subject="{name}.a", headers={"Nats-Msg-Id": "1"})] * 2, "duplicate message id"),
        ([Output(subject="{name}.a", headers={"Nats-TTL": "1s"})], "TTL"),
    ],
)
async def test_a_batch_that_can_never_be_stored_is_refused_as_a_whole(
    client: Client, name: str, batches: BatchSink, outputs: list[Output], reason: str
) -> None:
    named = [
        Output(subject=it.subject.replace("{name}", name), data=it.data, headers=it.headers)
        for it in outputs
    ]

    with pytest.raises(BadEffect, match=reason):
        await batches.apply(Delivery(), named)

    assert await stored(client, name, f"{name}.>") == []
    assert await batches.apply(Delivery(), []) is Verdict.APPLY


async def test_the_most_outputs_of_one_batch_are_stored(
    client: Client, name: str, batches: BatchSink
) -> None:
    outputs = [Output(subject=f"{name}.a", data=b"%d" % number) for number in range(OUTPUTS_MAX)]

    assert await batches.apply(Delivery(), outputs) is Verdict.APPLY

    answer = await call(client, f"STREAM.INFO.{name}", {"subjects_filter": f"{name}.>"})
    assert answer["state"]["subjects"] == {f"{name}.a": OUTPUTS_MAX}


async def test_effects_without_outputs_leave_one_checkpoint_per_key(
    client: Client, name: str, batches: BatchSink
) -> None:
    for seq in range(1, 5):
        await batches.apply(Delivery(seq=seq), lambda state: Step(state=(state or b"") + b"x"))

    answer = await call(client, f"STREAM.INFO.{name}", {"subjects_filter": ">"})
    prefix = f"millstream.sink.{name}"
    assert answer["state"]["subjects"] == {
        f"{prefix}.fence.3": 1,
        f"{prefix}.guard.3": 1,
        f"{prefix}.key.N14228": 1,
    }
    assert await batches.state(b"N14228") == b"xxxx"


async def test_no_state_and_an_empty_state_are_two_things(batches: BatchSink) -> None:
    seen: list[bytes | None] = []

    def step(after: bytes | None) -> Callable[[bytes | None], Step]:
        def stepped(before: bytes | None) -> Step:
            seen.append(before)
            return Step(state=after)

        return stepped

    for seq, after in enumerate([b"", None, b"x"], 1):
        await batches.apply(Delivery(seq=seq), step(after))
        assert await batches.state(b"N14228") == after

    assert seen == [None, b"", None]


async def test_a_stale_owners_batch_is_refused_as_a_whole_whatever_its_key(
    client: Client, name: str, batches: BatchSink
) -> None:
    old = batches
    new = await BatchSink.open(client, stream=name, group=name)
    outputs = [Output(subject=f"{name}.a"), Output(subject=f"{name}.b")]
    await old.apply(Delivery(key=b"k"), [])  # it has read fence and mark
    await new.fence(3, 2)

    with pytest.raises(StaleEpoch) as refused:
        await old.apply(Delivery(key=b"k", seq=2), outputs)
    with pytest.raises(StaleEpoch):
        await old.apply(Delivery(key=b"never touched"), outputs)
    with pytest.raises(StaleEpoch):
        await old.fence(3, 1)

    assert refused.value.seen_epoch == 2
    assert old.counters.refused_stale == 2
    assert await stored(client, name, f"{name}.>") == []


async def test_a_batch_under_way_when_the_partition_is_fenced_is_refused(
    name: str, batches: BatchSink, client: Client, connected: Connected
) -> None:
    between = await connected(Between)
    between.new = batches
    old = await BatchSink.open(between, stream=name, group=name)

    with pytest.raises(StaleEpoch):
        await old.apply(Delivery(), [Output(subject=f"{name}.a"), Output(subject=f"{name}.b")])

    assert await stored(client, name, f"{name}.>") == []


class Between(Client):
    """A client whose partition goes to another owner after the first message of each batch."""

    new: BatchSink | None = None

    async def publish(self, subject: str, *args: Any, **options: Any) -> None:
        await super().publish(subject, *args, **options)
        if (options.get("headers") or {}).get("Nats-Batch-Sequence") == "1":
            await self.flush()
            assert self.new is not None
            await self.new.fence(3, 2)


class Dropping(Client):
    """A client that loses its connection for good: before its n-th message, or just after it."""

    left = -1
    is_after = False

    async def publish(self, subject: str, *args: Any, **options: Any) -> None:
        if self.left == 0 and not self.is_after:
            await self._drop()
        await super().publish(subject, *args, **options)
        if self.left == 0:
            await self.flush()
            await self._drop()
        self.left -= 1

    async def _drop(self) -> None:
        await self.close()
        raise nats.errors.ConnectionClosedError


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("left", range(6))
async def test_a_worker_that_is_gone_between_any_two_messages_leaves_all_or_nothing(
    client: Client, name: str, connected: Connected, left: int, is_after: bool
) -> None:
    # The messages: reads of fence and mark are two, the fence's own one, then a batch of three.
    await create(client, name)
    dropping = await connected(Dropping)
    old = await BatchSink.open(dropping, stream=name, group=name)
    outputs = [Output(subject=f"{name}.a"), Output(subject=f"{name}.b")]
    dropping.left, dropping.is_after = left, is_after

    with pytest.raises(SinkUnavailable):
        await old.apply(Delivery(), outputs)

    is_stored = left == 5 and is_after
    whole = [(f"{name}.a", ""), (f"{name}.b", "")]
    for _ in range(POLLS if is_stored else 0):  # the client heard no answer to wait for
        if await stored(client, name, f"{name}.>"):
            break
        await asyncio.sleep(POLL_S)
    assert await stored(client, name, f"{name}.>") == (whole if is_stored else [])
    new = await BatchSink.open(client, stream=name, group=name)
    verdict = await new.apply(Delivery(epoch=2), outputs)
    assert verdict is (Verdict.REPEAT if is_stored else Verdict.APPLY)
    assert await stored(client, name, f"{name}.>") == whole


class Deaf(Client):
    """A client that does not hear answers to commits while it is deaf; they arrive."""

    is_deaf = False

    async def request(self, subject: str, *args: Any, **options: Any) -> Any:
        answer = await super().request(subject, *args, **options)
        if self.is_deaf and "Nats-Batch-Commit" in (options.get("headers") or {}):
            raise nats.errors.TimeoutError
        return answer


async def test_a_commit_without_an_answer_is_found_and_counted_once(
    client: Client, name: str, connected: Connected
) -> None:
    await create(client, name)
    deaf = await connected(Deaf)
    sink = await BatchSink.open(deaf, stream=name, group=name)
    deaf.is_deaf = True
    with pytest.raises(SinkUnavailable):
        await sink.apply(Delivery(), [Output(subject=f"{name}.a")])
    deaf.is_deaf = False

    verdicts = [await sink.apply(Delivery(), [Output(subject=f"{name}.a")]) for _ in range(2)]

    assert verdicts == [Verdict.APPLY, Verdict.REPEAT]
    assert await stored(client, name, f"{name}.>") == [(f"{name}.a", "")]
    assert (sink.counters.attempts, sink.counters.applied) == (3, 1)


async def test_a_stream_without_room_for_another_batch_is_tried_again(
    client: Client, name: str, batches: BatchSink
) -> None:
    for number in range(50):
        opened = {"Nats-Batch-Id": f"open{number}", "Nats-Batch-Sequence": "1"}
        await client.publish(f"{name}.a", headers=opened)
    await client.flush()
    hasty = await BatchSink.open(client, stream=name, group=name, attempts_max=2)
    with pytest.raises(SinkUnavailable, match="incomplete"):
        await hasty.apply(Delivery(), [Output(subject=f"{name}.b")])

    waiting = asyncio.create_task(batches.apply(Delivery(), [Output(subject=f"{name}.b")]))
    for number in range(50):
        closing = {"Nats-Batch-Id": f"open{number}", "Nats-Batch-Sequence": "7"}
        await client.request(f"{name}.a", headers=closing, timeout=5)

    assert await waiting is Verdict.APPLY
    assert await stored(client, name, f"{name}.>") == [(f"{name}.b", "")]


async def test_many_lanes_share_the_batches_a_stream_has_room_for(
    client: Client, name: str, batches: BatchSink
) -> None:
    output = [Output(subject=f"{name}.a"), Output(subject=f"{name}.b")]
    lanes = [Delivery(key=b"%d" % number) for number in range(120)]

    verdicts = await asyncio.gather(*(batches.apply(lane, output) for lane in lanes))

    assert verdicts == [Verdict.APPLY] * 120
    assert len(await stored(client, name, f"{name}.>")) == 240


async def test_a_checkpoint_that_never_stands_still_is_given_up(
    client: Client, name: str, connected: Connected
) -> None:
    await create(client, name)
    sink = await BatchSink.open(await connected(Meddling), stream=name, group=name, attempts_max=3)

    with pytest.raises(SinkContended, match="changed 3 times"):
        await sink.apply(Delivery(), [Output(subject=f"{name}.a")])

    assert await stored(client, name, f"{name}.>") == []


class Meddling(Client):
    """A client in whose streams somebody changes each checkpoint after it was read."""

    async def request(self, subject: str, payload: bytes = b"", *args: Any, **options: Any) -> Any:
        answer = await super().request(subject, payload, *args, **options)
        if "STREAM.MSG.GET" in subject and b".key." in payload:
            await super().request(json.loads(payload)["last_by_subj"], b"")
        return answer


@pytest.mark.parametrize("what", ["key.N14228", "fence.3"])
async def test_a_mark_that_cannot_be_read_stops_the_sink(
    client: Client, name: str, batches: BatchSink, what: str
) -> None:
    headers = {MARK_HEADER: "no mark", "Millstream-Epoch": "no epoch"}
    await client.jetstream().publish(f"millstream.sink.{name}.{what}", b"", headers=headers)

    with pytest.raises(BadMark, match=r"no mark|no epoch"):
        await batches.apply(Delivery(), [])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"allow_atomic": False}, "set allow_atomic"),
        ({"subjects": ["{name}.>"]}, "add it to its subjects"),
        ({"retention": "workqueue"}, "retention workqueue"),
    ],
)
async def test_a_stream_that_cannot_carry_batches_is_refused(
    client: Client, name: str, config: dict[str, object], reason: str
) -> None:
    await create(client, name, **json.loads(json.dumps(config).replace("{name}", name)))

    with pytest.raises(SinkUnfit, match=reason):
        await BatchSink.open(client, stream=name, group=name)


async def test_an_older_server_is_refused_before_anything_is_sent(
    tmp_path_factory: pytest.TempPathFactory, server: Server
) -> None:
    with Server(server.kind, tmp_path_factory.mktemp("old"), jetstream=False) as plain:
        connection = await nats.connect(plain.url)
        asked: list[str] = []

        async def answer(request: Any) -> None:
            asked.append(request.subject)
            await request.respond(b'{"api": {"level": 1}}')

        await connection.subscribe("$JS.API.>", cb=answer)
        with pytest.raises(SinkUnfit, match=r"need nats-server 2\.12 .* has level 1"):
            await BatchSink.open(connection, stream="S", group="orders")
        await connection.close()
    assert asked == ["$JS.API.INFO"]


async def test_a_server_without_jetstream_is_unavailable(
    tmp_path_factory: pytest.TempPathFactory, server: Server
) -> None:
    with Server(server.kind, tmp_path_factory.mktemp("plain"), jetstream=False) as plain:
        connection = await nats.connect(plain.url)
        with pytest.raises(SinkUnavailable):
            await BatchSink.open(connection, stream="S", group="orders")
        with pytest.raises(SinkUnavailable):
            await PublishSink.open(connection, stream="S", subject="s.{key}")
        await connection.close()


async def test_wrong_names_are_refused(client: Client, name: str) -> None:
    with pytest.raises(BadName):
        await BatchSink.open(client, stream=name, group="a group")
    with pytest.raises(SinkUnfit, match="literal"):
        await BatchSink.open(client, stream=name, group="orders", prefix="a.*")
