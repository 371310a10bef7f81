"""Cut-over and rollback work with exactly the rights that are listed, and miss each of them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from confluent_kafka import Consumer, TopicPartition

from millstream_bridge import BridgeError, Route
from millstream_bridge.cutover.cutover import cut_over
from millstream_bridge.cutover.proof import CutProof
from millstream_bridge.cutover.rollback import roll_back
from millstream_bridge.project.file import GroupMove
from millstream_bridge.project.permissions import Needs, Purpose, needs
from millstream_coordinator import naming
from tests.bridge.moves import a_route, move_all
from tests.bridge.rights import Line, make_topic, permit, permit_nothing
from tests.bridge.test_back import fill, publish, shared_route
from tests.bridge.test_cutover import commit, handled_by
from tests.helpers.kafka import Kafka, KafkaNode
from tests.helpers.require import need
from tests.helpers.servers import Server, real_server

GROUP = GroupMove(kafka="billing", group="billing", routes=())
DISPENSABLE = {"$JS.API.CONSUMER.CREATE.FLIGHTS"}
"""Without it what is behind cannot be counted, which takes the server two seconds to say."""
Switch = Callable[[str], Coroutine[Any, Any, CutProof]]
Operation = Callable[..., Coroutine[Any, Any, CutProof]]


@asynccontextmanager
async def server_for(folder: Path, listed: Needs) -> AsyncIterator[Server]:
    """A nats-server with users ``listed``, ``less<n>`` without the n-th right, and all else."""
    users = {"all": "", "listed": listed.config_text()}
    for number, missing in enumerate(listed.publish):
        less = tuple(it for it in listed.publish if it != missing)
        users[f"less{number}"] = replace(listed, publish=less).config_text()
    lines = [f"{{ user: {name}, password: p, {text} }}" for name, text in users.items()]
    config = folder / "server.conf"
    text = "\n".join(["no_auth_user: all", "authorization { users: [", *lines, "] }", ""])
    await asyncio.to_thread(config.write_text, text)
    async with real_server(folder / "nats", arguments=["-c", str(config)]) as server:
        yield server


def url_of(server: Server, user: str) -> str:
    return f"nats://{user}:p@{server.url.removeprefix('nats://')}"


async def switch(
    operation: Operation,
    kafka: str,
    url: str,
    route: Route,
    **options: Any,
) -> CutProof:
    """`cut_over` or `roll_back`, as ``--yes`` does it."""
    return await operation(
        kafka=kafka,
        nats=url,
        route=route,
        **{
            "kafka_group": GROUP.kafka,
            "group": GROUP.group,
            "apply": True,
            "is_stopped": True,
            "timeout_s": 5.0,
            **options,
        },
    )


async def forget_group(server: Server) -> None:
    """As if the coordinator group had never been there."""
    client = await nats.connect(server.url)
    try:
        with suppress(nats.js.errors.NotFoundError):
            await client.jetstream().delete_stream(f"KV_{naming.bucket(GROUP.group)}")
    finally:
        await client.close()


async def missed(
    attempt: Switch, server: Server, listed: Needs, but: Collection[str] = ()
) -> set[str]:
    """Which rights ``but`` some cannot be done without, all tried at once; the error names it."""
    told: dict[str, str] = {}

    async def without(number: int, missing: str) -> None:
        try:
            async with asyncio.timeout(30):
                await attempt(url_of(server, f"less{number}"))
        except BridgeError as error:
            told[missing] = str(error)

    await asyncio.gather(
        *(without(number, it) for number, it in enumerate(listed.publish) if it not in but)
    )
    for line in told.values():
        assert "ermission" in line
        assert "\n" not in line
        assert ":p@" not in line
    return {*told}


@pytest.mark.real_server
async def test_a_cutover_needs_each_of_the_listed_subjects_and_no_other(
    mock: Kafka, tmp_path: Path, topic: str
) -> None:
    """Some to make a group, some to move one that has been at work."""
    need("nats")
    listed = needs(Purpose.CUTOVER, [shared_route(topic)], groups=[GROUP])

    async with server_for(tmp_path, listed) as server:
        route = await fill(mock, server, topic)
        commit(mock, GROUP.kafka, topic, dict.fromkeys(range(3), 1))

        async def cut(url: str) -> CutProof:
            return await switch(cut_over, mock.bootstrap, url, route)

        made = await cut(url_of(server, "listed"))
        await handled_by(server, route, GROUP.group, 9)
        to_move = await missed(cut, server, listed)
        moved = await cut(url_of(server, "listed"))
        await forget_group(server)
        to_make = await missed(cut, server, listed, to_move | DISPENSABLE)

    assert (made.problems, made.applied) == ([], True)
    assert (moved.problems, moved.applied) == ([], True)
    assert to_move | to_make == {*listed.publish} - DISPENSABLE


@pytest.mark.real_server
async def test_a_rollback_needs_each_of_the_listed_subjects_and_no_other(
    mock: Kafka, tmp_path: Path, topic: str
) -> None:
    need("nats")
    listed = needs(Purpose.ROLLBACK, [shared_route(topic)], groups=[GROUP])

    async with server_for(tmp_path, listed) as server:
        route = await fill(mock, server, topic)
        commit(mock, GROUP.kafka, topic, dict.fromkeys(range(3), 1))
        await switch(cut_over, mock.bootstrap, server.url, route)
        await publish(server, range(6))
        await handled_by(server, route, GROUP.group, 15)

        async def look(url: str) -> CutProof:
            return await switch(roll_back, mock.bootstrap, url, route, apply=False, timeout_s=0)

        needed = await missed(look, server, listed)
        rolled = await switch(
            roll_back, mock.bootstrap, url_of(server, "listed"), route, bring_back=True
        )

    assert (rolled.problems, rolled.applied) == ([], True)
    assert needed == {*listed.publish} - DISPENSABLE


@pytest.mark.kafka
async def test_the_listed_operations_are_enough_on_kafka_and_each_is_needed(
    secured: KafkaNode,
    topic: str,
    nats_server: Server,
) -> None:
    """Each is given when what it is for was refused, in the order in which they are met."""
    make_topic(secured, topic)
    route = shared_route(topic)
    group = replace(GROUP, kafka=f"group-{topic}", group=topic)
    await move_all(secured.bootstrap, nats_server.url, route, kafka_options=secured.options)
    await publish(nats_server, range(2), partitions=1)
    settings = {"bootstrap.servers": secured.bootstrap, "group.id": group.kafka}
    consumer = Consumer({**settings, **secured.options})
    consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
    consumer.close()

    async def try_and_permit(purpose: Purpose, operation: Operation, **options: Any) -> CutProof:
        permit_nothing(secured)
        given: list[Line] = []

        async def attempt() -> CutProof:
            return await switch(
                operation,
                secured.bootstrap,
                nats_server.url,
                route,
                kafka_group=group.kafka,
                group=group.group,
                is_stopped=False,
                kafka_options=KafkaNode.options_of(KafkaNode.BRIDGE),
                **options,
            )

        for line in needs(purpose, [route], groups=[group]).kafka:
            with pytest.raises(BridgeError, match=r"uthorization|permits no"):
                await attempt()
            given.append(line)
            permit(secured, given)
        return await attempt()

    cut = await try_and_permit(Purpose.CUTOVER, cut_over)
    await handled_by(nats_server, route, topic, 2, partitions=1)
    rolled = await try_and_permit(Purpose.ROLLBACK, roll_back, bring_back=True)

    assert (cut.problems, cut.applied) == ([], True)
    assert (rolled.problems, rolled.applied) == ([], True)


def test_the_command_prints_them() -> None:
    words = [
        *("permissions", "--kafka", "127.0.0.1:1", "--topic", "flights", "--stream", "FLIGHTS"),
        *("--subject", "flights.{partition}.{key}", "--json"),
    ]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "millstream_bridge", *words, *more],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    told = json.loads(run("--for", "rollback", "--kafka-group", "billing").stdout)
    without_group = run("--for", "cutover")

    assert "$JS.API.STREAM.MSG.GET.KV_MILLSTREAM_billing" in told["publish"]
    assert ["group", "billing", "Read"] in told["kafka"]
    assert without_group.returncode == 2
    assert "--kafka-group is missing" in without_group.stderr


def test_a_group_that_is_of_one_route_adds_nothing_to_another() -> None:
    routes = [a_route("flights"), a_route("crews", stream="CREWS", subject="crews.{partition}")]
    moves = [GroupMove(kafka="billing", group="billing", routes=("crews",))]

    found = needs(Purpose.CUTOVER, routes, groups=moves, api_prefix="$JS.edge.API")

    assert "$JS.edge.API.CONSUMER.NAMES.CREWS" in found.publish
    assert "$JS.edge.API.CONSUMER.NAMES.FLIGHTS" not in found.publish
    assert "$JS.edge.API.$KV.MILLSTREAM_billing.cfg" in found.publish
