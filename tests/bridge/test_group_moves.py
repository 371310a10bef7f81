"""Which groups are moved side by side, when their members are told to stop, and what is told."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import typer

from millstream_bridge import ConfigurationError, Route
from millstream_bridge.cutover.cutover import WhenRead
from millstream_bridge.cutover.proof import CutProof
from millstream_bridge.operation.group_moves import move_groups
from millstream_bridge.project.file import GroupMove, load_project

Move = Callable[[Route, GroupMove, WhenRead], Awaitable[CutProof]]


def move_all(folder: Path, groups: Sequence[GroupMove], move: Move) -> None:
    """Move the groups of a project with a route for each of theirs; the report is `told`."""
    text = '[kafka]\nbootstrap = "k"\n[nats]\nurl = "nats://n"\n'
    for name in sorted({it.routes[0] for it in groups}):
        subject = f"{name}.{{partition}}.{{key}}"
        text += f'[[route]]\ntopic = "{name}"\nstream = "{name}"\nsubject = "{subject}"\n'
    file = folder / "project.toml"
    file.write_text(text)
    report = folder / "report.json"
    move_groups(load_project(file), "cutover", groups, move, report, as_json=False, yes=True)


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

    async def move(route: Route, groups: GroupMove, when_read: WhenRead) -> CutProof:
        for _ in range({"a": 1, "b": 30, "c": 5}[route.topic]):
            await asyncio.sleep(0)
        events.append(f"read {route.topic}")
        await when_read()
        events.append(f"stop {route.topic}")
        return proof_of(route, groups)

    move_all(tmp_path, groups_of("b", "a", "c"), move)

    assert events[:3] == ["read a", "read c", "read b"]
    assert sorted(events[3:]) == ["stop a", "stop b", "stop c"]
    assert told(tmp_path) == ["billing-b", "billing-a", "billing-c"]


def test_a_topic_that_cannot_be_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def move(route: Route, groups: GroupMove, when_read: WhenRead) -> CutProof:
        if route.topic == "a":
            raise ConfigurationError("stream a: stream not found")
        await when_read()
        return proof_of(route, groups)

    with pytest.raises(ConfigurationError, match="stream a"):
        move_all(tmp_path, groups_of("a", "b"), move)

    assert told(tmp_path) == ["billing-b"]


def test_of_several_errors_the_first_ends_it_and_each_other_is_told_with_its_route(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def move(route: Route, groups: GroupMove, when_read: WhenRead) -> CutProof:
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

    async def move(route: Route, groups: GroupMove, when_read: WhenRead) -> CutProof:
        assert not busy
        busy.append(groups.group)
        await when_read()
        await asyncio.sleep(0)
        busy.clear()
        return proof_of(route, groups)

    one, other = (GroupMove(kafka=it, group=it, routes=("a",)) for it in ("one", "other"))

    move_all(tmp_path, [one, other], move)

    assert told(tmp_path) == ["one", "other"]


def test_one_that_is_not_exact_makes_it_exit_code_1(tmp_path: Path) -> None:
    async def move(route: Route, groups: GroupMove, when_read: WhenRead) -> CutProof:
        await when_read()
        return proof_of(route, groups, *(["it is at work"] if route.topic == "a" else []))

    with pytest.raises(typer.Exit) as end:
        move_all(tmp_path, groups_of("a", "b"), move)

    assert end.value.exit_code == 1
    assert told(tmp_path) == ["billing-a", "billing-b"]
