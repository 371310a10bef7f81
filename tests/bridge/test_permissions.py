"""The bridge works with exactly the rights that are listed, and misses each of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from millstream_bridge import BridgeError, Route, verify
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.project import permissions
from millstream_bridge.project.assess import assess
from millstream_bridge.project.permissions import Needs, Purpose, needs, widest
from millstream_coordinator.partitioning.pattern import covers
from tests.bridge.moves import a_route, move_all
from tests.bridge.rights import make_topic, permit
from tests.bridge.test_cli import SUBJECT, run
from tests.helpers.kafka import Kafka, KafkaNode
from tests.helpers.require import need
from tests.helpers.servers import real_server

CHAIN = a_route("flights")
SHARED = a_route("flights", shared=True, on_poison="skip", large="chunks")
OBJECTS = a_route("flights", on_poison="park", large="object-store")
BIG = b"x" * 1_500_000
HEADERS = [("n", b"\x00" * 60_000)]


def fill(kafka: Kafka) -> None:
    """A plain record, a large one, and one that cannot be moved."""
    kafka.create_topic("flights", 1)
    records: list[dict[str, Any]] = [
        {"value": b"v"},
        {"value": BIG},
        {"value": b"v", "headers": HEADERS},
    ]
    kafka.produce("flights", [{"partition": 0, "key": b"k", **it} for it in records])


def only_plain(kafka: Kafka) -> None:
    kafka.create_topic("flights", 1)
    kafka.produce("flights", [{"partition": 0, "key": b"k", "value": b"v"}])


@asynccontextmanager
async def server_for(folder: Path, run: Needs, look: Needs) -> AsyncIterator[tuple[str, str]]:
    """A nats-server with two users; the URLs of both."""
    config = folder.with_suffix(".conf")
    text = (
        "authorization { users: [\n"
        f"{{ user: run, password: p, {run.config_text()} }}\n"
        f"{{ user: look, password: p, {look.config_text()} }}\n] }}\n"
    )
    await asyncio.to_thread(config.write_text, text)
    async with real_server(folder, arguments=["-c", str(config)]) as server:
        address = server.url.removeprefix("nats://")
        yield f"nats://run:p@{address}", f"nats://look:p@{address}"


async def work(kafka: str, route: Route, run: str, look: str) -> None:
    await move_all(kafka, run, route)
    proof = await verify(kafka=kafka, nats=look, route=route)
    assert proof.equal, proof.difference


@pytest.mark.real_server
@pytest.mark.parametrize("route", [CHAIN, SHARED, OBJECTS], ids=["chain", "shared", "objects"])
async def test_the_listed_subjects_are_enough_on_nats(
    mock: Kafka, tmp_path: Path, route: Route
) -> None:
    need("nats")
    (only_plain if route is CHAIN else fill)(mock)
    run, look = (needs(purpose, [route]) for purpose in (Purpose.RUN, Purpose.VERIFY))

    async with server_for(tmp_path / "server", run, look) as (mover, looker):
        await work(mock.bootstrap, route, mover, looker)


def each_without_one(purpose: Purpose, route: Route) -> Sequence[str]:
    return needs(purpose, [route]).publish


@pytest.mark.real_server
@pytest.mark.parametrize(
    "missing",
    [it for it in each_without_one(Purpose.RUN, SHARED) if "INFO" not in it.split(".")[2:3]],
)
async def test_each_subject_is_needed_to_run(mock: Kafka, tmp_path: Path, missing: str) -> None:
    need("nats")
    fill(mock)
    run, look = (needs(purpose, [SHARED]) for purpose in (Purpose.RUN, Purpose.VERIFY))
    less = replace(run, publish=tuple(it for it in run.publish if it != missing))

    async with server_for(tmp_path / "server", less, look) as (mover, looker):
        with pytest.raises(BridgeError) as error:
            async with asyncio.timeout(30):
                await work(mock.bootstrap, SHARED, mover, looker)

    assert "ermission" in str(error.value)
    assert "\n" not in str(error.value)
    assert ":p@" not in str(error.value)


@pytest.mark.real_server
@pytest.mark.parametrize(
    "missing", [it for it in each_without_one(Purpose.VERIFY, CHAIN) if "MSG.GET" not in it]
)
async def test_each_subject_is_needed_to_verify(mock: Kafka, tmp_path: Path, missing: str) -> None:
    need("nats")
    only_plain(mock)
    run, look = (needs(purpose, [CHAIN]) for purpose in (Purpose.RUN, Purpose.VERIFY))
    less = replace(look, publish=tuple(it for it in look.publish if it != missing))

    async with server_for(tmp_path / "server", run, less) as (mover, looker):
        with pytest.raises(BridgeError) as error:
            async with asyncio.timeout(30):
                await work(mock.bootstrap, CHAIN, mover, looker)

    assert "ermission" in str(error.value)
    assert ":p@" not in str(error.value)


@pytest.mark.kafka
async def test_the_listed_operations_are_enough_on_kafka_and_without_them_nothing_is_read(
    secured: KafkaNode, topic: str, tmp_path: Path
) -> None:
    make_topic(secured, topic)
    route = a_route(topic)
    options = KafkaNode.options_of(KafkaNode.BRIDGE)

    async with real_server(tmp_path / "nats") as server:
        with pytest.raises(BridgeError) as error:
            await move_all(secured.bootstrap, server.url, route, kafka_options=options)
        permit(secured, needs(Purpose.RUN, [route]).kafka)
        report = await move_all(secured.bootstrap, server.url, route, kafka_options=options)
        proof = await verify(
            kafka=secured.bootstrap, nats=server.url, route=route, kafka_options=options
        )

    assert f"topic {topic}" in str(error.value)
    assert "uthorization" in str(error.value)
    assert report.records == 1
    assert proof.equal


@pytest.mark.kafka
async def test_an_assessment_says_what_it_may_not_ask_and_is_whole_with_what_is_listed(
    secured: KafkaNode, topic: str
) -> None:
    make_topic(secured, topic)
    options = KafkaNode.options_of(KafkaNode.BRIDGE)
    permit(secured, [("topic", topic, "Read")])

    partial = await assess(kafka=secured.bootstrap, topics=topic, kafka_options=options)
    permit(secured, needs(Purpose.ASSESS, [a_route(topic)]).kafka)
    whole = await assess(kafka=secured.bootstrap, topics=topic, kafka_options=options)

    assert [f"DescribeConfigs on topic {topic}" in it for it in partial.notes] == [True]
    assert partial.topics[0].config is None
    assert whole.notes == []
    assert whole.topics[0].config is not None
    assert whole.topics[0].shape.records == 1


def test_the_command_prints_what_a_user_needs() -> None:
    words = [
        *("permissions", "--kafka", "k", "--topic", "flights", "--stream", "FLIGHTS"),
        *("--subject", SUBJECT),
    ]

    shown = run(*words).stdout
    told = json.loads(run(*words, "--for", "verify", "--json").stdout)

    assert '    "$JS.API.STREAM.CREATE.FLIGHTS"\n' in shown
    assert shown.endswith("# Kafka\nRead on topic flights\n")
    assert told["schema"] == "millstream.bridge.permissions/1"
    assert "flights.*.*" not in told["publish"]


def test_a_domain_and_an_inbox_prefix_are_in_the_patterns() -> None:
    target = NatsTarget(url="nats://n", domain="edge", inbox_prefix="_INBOX.bridge")

    found = needs(
        Purpose.RUN,
        [CHAIN],
        api_prefix=target.jetstream_prefix,
        inbox_prefix=target.inbox_prefix,
    )

    assert "$JS.edge.API.STREAM.INFO.FLIGHTS" in found.publish
    assert found.subscribe == ("_INBOX.bridge.>",)


PATTERNS = st.lists(
    st.lists(st.sampled_from("ab*"), min_size=1, max_size=4)
    .flatmap(lambda tokens: st.sampled_from([tokens, [*tokens, ">"], [">"]]))
    .map(".".join),
    max_size=8,
)


@given(PATTERNS)
def test_a_pattern_is_listed_unless_another_covers_it(patterns: list[str]) -> None:
    distinct = list(dict.fromkeys(patterns))

    assert list(widest(patterns)) == [
        it for it in distinct if not any(covers(wide, it) for wide in distinct if wide != it)
    ]


def test_the_work_for_many_routes_grows_as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    look = permissions._count_covering

    def counted(branch: dict[str, Any], tokens: Sequence[str], place: int) -> int:
        nonlocal steps
        steps += 1
        return look(branch, tokens, place)

    monkeypatch.setattr(permissions, "_count_covering", counted)
    routes = [
        a_route(f"t{n}", stream=f"S{n}", subject=f"t{n}.{{partition}}.{{key}}") for n in range(200)
    ]

    needs(Purpose.VERIFY, routes[:20])
    few, steps = steps, 0
    found = needs(Purpose.VERIFY, routes)

    assert len(found.publish) == 5 * 200
    assert 0 < steps <= 11 * few
