"""Atomic batches: all members are stored, or none, whatever happens in between."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from millstream_broker.store.directory import FileStorage
from tests.broker.store.faults import Crashed, FaultyFiles

from .harness import World


def member(batch: str, seq: int | str, commit: str = "", **more: str) -> dict[str, str]:
    headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(seq)}
    if commit:
        headers["Nats-Batch-Commit"] = commit
    return {**headers, **{name.replace("_", "-"): value for name, value in more.items()}}


@pytest.fixture
def batching(world: World) -> World:
    world.stream(allow_atomic=True, allow_msg_ttl=True, allow_rollup_hdrs=True)
    return world


def err(answer: dict[str, dict[str, object]]) -> object:
    return answer["error"]["err_code"]


def test_members_are_stored_at_the_commit_and_not_before(batching: World) -> None:
    assert batching.publish("s.a", b"1", member("b", 1)) == {}
    assert batching.publish("s.b", b"2", member("b", 2)) == {}
    assert batching.state()["messages"] == 0

    answer = batching.publish("s.c", b"3", member("b", 3, "1"))

    assert answer == {"stream": "S", "seq": 3, "batch": "b", "count": 3}
    assert batching.state()["messages"] == 3


def test_an_end_mark_is_not_stored(batching: World) -> None:
    batching.publish("s.a", b"1", member("b", 1))

    answer = batching.publish("s.a", b"", member("b", 2, "eob"))

    assert answer == {"stream": "S", "seq": 1, "batch": "b", "count": 1}


@pytest.mark.parametrize(
    ("headers", "err_code"),
    [
        ({"Nats-Batch-Id": "b"}, 10175),
        (member("b", "x"), 10175),
        (member("b", 2), 10176),
        (member("b", 0), 10176),
        (member("b", 1, "eob"), 10176),
        (member("x" * 65, 1), 10179),
        (member("b", 1, "0"), 10200),
    ],
)
def test_a_wrong_member_is_refused(batching: World, headers: dict[str, str], err_code: int) -> None:
    assert err(batching.publish("s.a", b"", headers)) == err_code


def test_a_gap_ends_the_batch(batching: World) -> None:
    batching.publish("s.a", b"", member("b", 1))

    assert err(batching.publish("s.a", b"", member("b", 3))) == 10176
    assert err(batching.publish("s.a", b"", member("b", 2, "1"))) == 10176
    assert batching.state()["messages"] == 0


def test_a_batch_left_alone_for_ten_seconds_is_gone(batching: World) -> None:
    batching.publish("s.a", b"", member("b", 1))
    batching.advance(9.9)
    batching.publish("s.a", b"", member("b", 2))

    batching.advance(10.0)

    assert err(batching.publish("s.a", b"", member("b", 3, "1"))) == 10176


def test_streams_that_do_not_allow_batches_refuse_them(world: World) -> None:
    world.stream()

    assert err(world.publish("s.a", b"", member("b", 1))) == 10174


def test_more_than_a_thousand_members_are_too_many(batching: World) -> None:
    for seq in range(1, 1001):
        batching.publish("s.a", b"", member("b", seq))

    assert err(batching.publish("s.a", b"", member("b", 1001, "1"))) == 10199
    assert batching.state()["messages"] == 0


def test_fifty_batches_may_be_open(batching: World) -> None:
    for number in range(50):
        assert batching.publish("s.a", b"", member(f"b{number}", 1)) == {}

    assert err(batching.publish("s.a", b"", member("b50", 1))) == 10210


@pytest.mark.parametrize(
    ("first", "last", "err_code"),
    [
        ({"Nats_Expected_Last_Subject_Sequence": "9"}, {}, 10071),
        ({}, {"Nats_Expected_Last_Sequence": "0"}, 10071),
        ({}, {"Nats_Expected_Last_Subject_Sequence": "0"}, 10164),
        ({"Nats_Expected_Stream": "T"}, {}, 10060),
        ({"Nats_TTL": "x"}, {}, 10165),
        ({"Nats_Expected_Last_Msg_Id": "x"}, {}, 10177),
        ({"Nats_Msg_Id": "m"}, {"Nats_Msg_Id": "m"}, 10201),
        ({}, {"Nats_Rollup": "sub"}, 10111),
        ({"Nats_Stream_Source": "x"}, {}, 10227),
    ],
)
def test_one_member_that_fails_its_check_at_the_commit_fails_all(
    batching: World, first: dict[str, str], last: dict[str, str], err_code: int
) -> None:
    assert batching.publish("s.a", b"", member("b", 1, **first)) == {}

    assert err(batching.publish("s.a", b"", member("b", 2, "1", **last))) == err_code
    assert batching.state()["last_seq"] == 0


def test_expected_sequences_count_the_members_before(batching: World) -> None:
    batching.publish("s.a", b"", member("b", 1, Nats_Expected_Last_Sequence="0"))
    last = member("b", 2, "1", Nats_Expected_Last_Sequence="1")

    assert batching.publish("s.b", b"", last)["seq"] == 2


def test_a_fence_inside_a_batch_guards_all_of_it(batching: World) -> None:
    batching.publish("s.owner", b"epoch 1")
    fence = member("b", 1, Nats_Expected_Last_Subject_Sequence="1")

    batching.publish("s.owner", b"epoch 2")
    batching.publish("s.owner", b"mine", fence)
    answer = batching.publish("s.effect", b"stale", member("b", 2, "1"))

    assert answer["error"]["description"] == "wrong last sequence: 2"
    assert batching.state()["last_seq"] == 2


def test_an_id_stored_before_fails_the_batch(batching: World) -> None:
    batching.publish("s.a", b"", {"Nats-Msg-Id": "m"})

    assert err(batching.publish("s.a", b"", member("b", 1, "1", Nats_Msg_Id="m"))) == 10201


def test_a_batch_the_limits_have_no_room_for_is_refused_whole(world: World) -> None:
    world.stream(allow_atomic=True, discard="new", max_msgs=2)
    for seq in (1, 2):
        world.publish("s.a", b"", member("b", seq))

    assert err(world.publish("s.a", b"", member("b", 3, "1"))) == 10077
    assert world.state()["messages"] == 0


def test_readers_never_see_part_of_a_batch(batching: World) -> None:
    batching.consumer()
    batching.publish("s.a", b"1", member("b", 1))
    assert batching.fetch(5) == []

    batching.publish("s.b", b"2", member("b", 2, "1"))

    assert [delivery.payload for delivery in batching.fetch(5)] == [b"1", b"2"]


def test_a_batch_whose_commit_was_cut_off_is_gone(tmp_path: Path) -> None:
    files = FaultyFiles()
    world = World(FileStorage(tmp_path, files=files))
    world.stream(allow_atomic=True)
    world.publish("s.a", b"before")
    for seq in (1, 2):
        world.publish("s.a", b"", member("b", seq))

    files.crash_at(1, part=0.9)
    with pytest.raises(Crashed):
        world.publish("s.a", b"", member("b", 3, "1"))
    files.let_go()

    storage = FileStorage(tmp_path)
    after = World(storage)
    assert after.state()["messages"] == 1
    assert ("batch_torn", {"stream": "S", "messages": 2}) in after.reports
    storage.close()


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=2, max_size=6),
    nth=st.sampled_from([1, 1, 1, 2]),
    percent=st.integers(10, 99),
    per_subject=st.sampled_from([-1, 1]),
)
def test_a_batch_cut_off_by_a_crash_is_all_there_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    nth: int,
    percent: int,
    per_subject: int,
) -> None:
    folder: Path = tmp_path_factory.mktemp("crash")
    files = FaultyFiles()
    world = World(FileStorage(folder, files=files))
    world.stream(allow_atomic=True, max_msgs_per_subject=per_subject)
    world.publish("s.0", b"before")
    count = len(sizes)
    for seq, size in enumerate(sizes[:-1], 1):
        world.publish(f"s.{seq % 3}", b"x" * size, member("b", seq))

    files.crash_at(nth, part=percent / 100)
    crashed = False
    try:
        last = member("b", count, "1")
        world.publish(f"s.{count % 3}", b"x" * sizes[-1], last)
    except Crashed:
        crashed = True
    files.let_go()

    storage = FileStorage(folder)
    after = World(storage)
    stored = [
        message
        for message in map(after.js.registry.get("S").store.load, range(2, count + 2))
        if message is not None
    ]
    is_old_there = after.js.registry.get("S").store.load(1) is not None
    storage.close()
    shutil.rmtree(folder)
    if per_subject < 0:
        assert len(stored) in ((0, count) if crashed else (count,))
        assert is_old_there
    else:
        newest = {f"s.{seq % 3}" for seq in range(1, count + 1)}
        assert {message.subject for message in stored} in (
            (set(), newest) if crashed else (newest,)
        )
        assert is_old_there or stored
