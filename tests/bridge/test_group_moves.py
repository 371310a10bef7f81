"""Which groups are moved side by side, when their members are told to stop, and what is told."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from millstream_bridge import ConfigurationError, Route
from millstream_bridge.cutover.cutover import MayApply, WhenRead
from millstream_bridge.cutover.proof import CutProof
from millstream_bridge.operation.group_moves import READ_AT_ONCE, Move, move_groups
from millstream_bridge.project.file import GroupMove, load_project


def move_all(folder: Path, groups: Sequence[GroupMove], move: Move) -> None:
    """Move the groups of a project with a route for each of theirs; the report is `told`."""
    text = '[kafka]\nbootstrap = "k"\n[nats]\nurl = "nats://n"\n'
    for name in sorted({it.routes[0] for it in groups}):
        subject = f"{name}.{{partition}}.{{key}}"
        text += f'[[route]]\ntopic = "{name}"\nstream = "{name}"\nsubject = "{subject}"\n'
    file = folder / "project.toml"
    file.write_text(text)
    report = folder / "report.json"
    move_groups(load_project(file), "cutover", groups, move, report, as_json=False)


def told(folder: Path) -> list[str]:
    """The groups whose proofs were written down, in their order."""
    return [it["group"] for it in json.loads((folder / "report.json").read_text())["routes"]]


def groups_of(*routes: str) -> list[GroupMove]:
    """A group of the same name for each, all of one Kafka group."""
    return [GroupMove(kafka="billing", group=f"billing-{it}", routes=(it,)) for it in routes]


def proof_of(route: Route, groups: GroupMove, *obstacles: str) -> CutProof:
    return CutProof(
        what="cutover",
        topic=route.topic,
        kafka_group=groups.kafka,
        kafka_group_state="Empty",
        group=groups.group,
        partitions=[],
        obstacles=obstacles,
        made_at="",
    )


def test_nobody_is_told_to_stop_before_all_topics_are_read(tmp_path: Path) -> None:
    events: list[str] = []

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        for _ in range({"a": 1, "b": 30, "c": 5}[route.topic]):
            await asyncio.sleep(0)
        events.append(f"read {route.topic}")
        await when_read(False)
        events.append(f"stop {route.topic}")
        return proof_of(route, groups)

    move_all(tmp_path, groups_of("b", "a", "c"), move)

    assert events[:3] == ["read a", "read c", "read b"]
    assert sorted(events[3:]) == ["stop a", "stop b", "stop c"]
    assert told(tmp_path) == ["billing-b", "billing-a", "billing-c"]


@pytest.mark.parametrize("applies", [True, False])
def test_nobody_is_told_to_stop_where_one_topic_is_refused_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, applies: bool
) -> None:
    """And that one waits for nobody."""
    events: list[str] = []

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        is_refused = route.topic == "b"
        for _ in range({"a": 1, "b": 3, "c": 30}[route.topic]):
            await asyncio.sleep(0)
        goes_on = await when_read(is_refused)
        events.append(f"{route.topic} {goes_on}")
        proof = proof_of(route, groups, *(["it does not fit"] if is_refused else []))
        assert not applies or not await may_apply(proof)
        return proof

    with pytest.raises(typer.Exit):
        move_all(tmp_path, groups_of("a", "b", "c"), move)

    assert events[0] == "b False"
    assert sorted(events) == ["a False", "b False", "c False"]
    assert told(tmp_path) == ["billing-a", "billing-b", "billing-c"]
    assert "--yes does it" not in capsys.readouterr().out


def test_who_waits_for_nobody_refuses_nobody(tmp_path: Path) -> None:
    """A dry run of a group that nobody reads is over before the others are read."""
    waited: list[bool] = []

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        if route.topic == "b":
            for _ in range(30):
                await asyncio.sleep(0)
            waited.append(await when_read(False))
        return proof_of(route, groups)

    move_all(tmp_path, groups_of("a", "b"), move)

    assert waited == [True]


def test_a_topic_that_cannot_be_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        if route.topic == "a":
            raise ConfigurationError("stream a: stream not found")
        await when_read(False)
        return proof_of(route, groups)

    with pytest.raises(ConfigurationError, match="stream a"):
        move_all(tmp_path, groups_of("a", "b"), move)

    assert told(tmp_path) == ["billing-b"]


def test_of_several_errors_the_first_ends_it_and_each_other_is_told_with_its_route(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        raise ConfigurationError(f"stream {route.stream}: stream not found")

    with pytest.raises(ConfigurationError, match="stream b"):
        move_all(tmp_path, groups_of("b", "a", "c"), move)

    assert capsys.readouterr().err.splitlines() == [
        "cutover a → a: stream a: stream not found",
        "cutover c → c: stream c: stream not found",
    ]


def test_the_groups_of_one_route_follow_each_other(tmp_path: Path) -> None:
    """Two at a time would both bring back the same, and one of them would be thrown out."""
    busy: list[str] = []

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        assert not busy
        busy.append(groups.group)
        await when_read(False)
        await asyncio.sleep(0)
        busy.clear()
        return proof_of(route, groups)

    one, other = (GroupMove(kafka=it, group=it, routes=("a",)) for it in ("one", "other"))

    move_all(tmp_path, [one, other], move)

    assert told(tmp_path) == ["one", "other"]


def test_one_that_is_not_exact_makes_it_exit_code_1(tmp_path: Path) -> None:
    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        await when_read(False)
        return proof_of(route, groups, *(["it is at work"] if route.topic == "a" else []))

    with pytest.raises(typer.Exit) as end:
        move_all(tmp_path, groups_of("a", "b"), move)

    assert end.value.exit_code == 1
    assert told(tmp_path) == ["billing-a", "billing-b"]


def test_nothing_is_done_of_a_kafka_group_before_all_of_it_is_proven(tmp_path: Path) -> None:
    events: list[str] = []

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        await when_read(False)
        for _ in range({"a": 1, "b": 30, "c": 5}[route.topic]):
            await asyncio.sleep(0)
        events.append(f"proven {route.topic}")
        proof = proof_of(route, groups)
        assert await may_apply(proof)
        events.append(f"done {route.topic}")
        return replace(proof, applied=True)

    move_all(tmp_path, groups_of("b", "a", "c"), move)

    assert sorted(events[:3]) == ["proven a", "proven b", "proven c"]
    assert sorted(events[3:]) == ["done a", "done b", "done c"]


@pytest.mark.parametrize("is_error", [False, True])
def test_where_one_topic_of_a_kafka_group_is_refused_none_is_moved_but_other_groups_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_error: bool
) -> None:
    """Half a group on each side would be two."""

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        if is_error and route.topic == "b":
            raise ConfigurationError("stream b: stream not found")
        await when_read(False)
        proof = proof_of(route, groups, *(["it is at work"] if route.topic == "b" else []))
        return replace(proof, applied=await may_apply(proof))

    other = GroupMove(kafka="audit", group="audit", routes=("d",))
    with pytest.raises(ConfigurationError if is_error else typer.Exit):
        move_all(tmp_path, [*groups_of("a", "b", "c"), other], move)

    report = json.loads((tmp_path / "report.json").read_text())["routes"]
    assert {it["group"]: it["applied"] for it in report if it["topic"] != "b"} == {
        "billing-a": False,
        "billing-c": False,
        "audit": True,
    }
    assert "as another topic of the Kafka group is not exact" in capsys.readouterr().out


def test_only_a_few_topics_are_read_at_a_time(tmp_path: Path) -> None:
    """However many a Kafka group has; and all of them are read before it has to stop."""
    reading: set[str] = set()
    most: list[int] = []
    read: list[str] = []

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        reading.add(route.topic)
        most.append(len(reading))
        for _ in range(5):
            await asyncio.sleep(0)
        reading.remove(route.topic)
        read.append(route.topic)
        if route.topic != "t0":  # as where nobody has to be waited for
            await when_read(False)
            assert len(read) == 10
        proof = proof_of(route, groups)
        return replace(proof, applied=await may_apply(proof))

    move_all(tmp_path, groups_of(*(f"t{n}" for n in range(10))), move)

    assert max(most) == READ_AT_ONCE


def test_kafka_groups_that_share_routes_follow_each_other_whatever_their_order(
    tmp_path: Path,
) -> None:
    busy: set[str] = set()

    async def move(
        route: Route, groups: GroupMove, when_read: WhenRead, may_apply: MayApply
    ) -> CutProof:
        assert route.topic not in busy
        busy.add(route.topic)
        await when_read(False)
        proof = proof_of(route, groups)
        assert await may_apply(proof)
        busy.remove(route.topic)
        return proof

    order = [("one", "a"), ("one", "b"), ("other", "b"), ("other", "a"), ("one", "a")]
    groups = [
        GroupMove(kafka=kafka, group=f"{kafka}-{n}", routes=(route,))
        for n, (kafka, route) in enumerate(order)
    ]

    move_all(tmp_path, groups, move)

    assert told(tmp_path) == ["one-0", "one-1", "other-2", "other-3", "one-4"]
