from typing import Any

from .harness import Disk, World


def stored(world: World, stream: str = "T") -> list[tuple[str, bytes]]:
    store = world.js.registry.get(stream).store
    found = []
    seq = store.next_match([">"], 1)
    while seq is not None:
        message = store.load(seq)
        assert message is not None
        found.append((message.subject, message.payload))
        seq = store.next_match([">"], seq + 1)
    return found


def sourcing(world: World, *sources: dict[str, Any], **config: Any) -> None:
    world.stream("T", subjects=[], sources=list(sources), **config)


def test_what_is_there_and_what_comes_is_taken(world: World) -> None:
    world.stream()
    world.publish("s.a", b"1")

    sourcing(world, {"name": "S"})
    world.publish("s.b", b"2")

    assert stored(world) == [("s.a", b"1"), ("s.b", b"2")]


def test_every_message_says_where_it_comes_from(world: World) -> None:
    world.stream()
    sourcing(world, {"name": "S", "filter_subject": "s.a"}, allow_direct=True)
    world.publish_run([("s.b", b""), ("s.a", b"1")])

    answer = world.request("$JS.API.DIRECT.GET.T.s.a")

    assert answer is not None
    fields = (answer.header("Nats-Stream-Source") or "").split(" ")
    assert fields[:5] == ["S", "2", "s.a", ">", "s.a"]
    assert len(fields) == 6


def test_filters_and_transforms_choose_and_rename(world: World) -> None:
    world.stream()
    rule = {"src": "s.*", "dest": "t.{{wildcard(1)}}"}
    sourcing(world, {"name": "S", "subject_transforms": [rule]})

    world.publish_run([("s.a", b"1"), ("s.a.b", b"2")])

    assert stored(world) == [("t.a", b"1")]


def test_two_sources_keep_their_own_order(world: World) -> None:
    world.stream("A")
    world.stream("B")
    sourcing(world, {"name": "A"}, {"name": "B"})

    for n in range(3):
        world.publish_run([("a.x", b"%d" % n), ("b.x", b"%d" % n)])

    taken = stored(world)
    assert [p for s, p in taken if s == "a.x"] == [b"0", b"1", b"2"]
    assert [p for s, p in taken if s == "b.x"] == [b"0", b"1", b"2"]


def test_a_source_begins_where_it_is_told(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"%d" % n) for n in range(1, 5)])

    sourcing(world, {"name": "S", "opt_start_seq": 3})

    assert [payload for _, payload in stored(world)] == [b"3", b"4"]


def test_an_origin_that_is_not_there_yet_is_waited_for(world: World) -> None:
    sourcing(world, {"name": "S"})
    world.stream()

    world.publish("s.a", b"1")

    assert stored(world) == [("s.a", b"1")]


def test_a_work_queue_gives_up_what_was_taken(world: World) -> None:
    world.stream(retention="workqueue")
    world.publish("s.a", b"1")

    sourcing(world, {"name": "S"})
    world.publish("s.a", b"2")

    assert world.state()["messages"] == 0
    assert len(stored(world)) == 2


def test_sourcing_counts_as_interest(world: World) -> None:
    world.stream(retention="interest")
    sourcing(world, {"name": "S"})

    world.publish("s.a", b"1")

    assert stored(world) == [("s.a", b"1")]
    assert world.state()["messages"] == 0


def test_sources_go_over_several_streams(world: World) -> None:
    world.stream()
    sourcing(world, {"name": "S"})
    world.stream("U", subjects=[], sources=[{"name": "T"}])

    world.publish("s.a", b"1")

    assert stored(world, "U") == [("s.a", b"1")]


def test_a_cycle_of_sources_is_refused(world: World) -> None:
    sourcing(world, {"name": "U"})

    error = world.api("STREAM.CREATE.U", {"name": "U", "sources": [{"name": "T"}]})["error"]

    assert error["description"] == "detected cycle"


def test_sourcing_goes_on_after_a_kill_without_gap_or_repeat(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    sourcing(world, {"name": "S"})
    world.publish_run([("s.a", b"1"), ("s.a", b"2")])

    world = disk.boot()
    world.publish("s.a", b"3")

    assert [payload for _, payload in stored(world)] == [b"1", b"2", b"3"]


def test_an_origin_made_again_is_read_from_its_beginning(world: World) -> None:
    world.stream()
    sourcing(world, {"name": "S"})
    world.publish("s.a", b"old")

    world.api("STREAM.DELETE.S")
    world.advance(1)
    world.stream()
    world.publish("s.a", b"new")

    assert [payload for _, payload in stored(world)] == [b"old", b"new"]


def test_info_shows_what_is_behind(world: World) -> None:
    world.stream()
    sourcing(world, {"name": "S", "filter_subject": "s.a"})
    world.publish("s.a")

    source = world.api("STREAM.INFO.T")["sources"][0]

    assert (source["name"], source["lag"], source["filter_subject"]) == ("S", 0, "s.a")
    assert source["active"] >= 0


def test_a_full_target_stalls_its_source_and_goes_on_when_there_is_room(world: World) -> None:
    world.stream()
    sourcing(world, {"name": "S"}, max_msgs=1, discard="new")
    world.publish_run([("s.a", b"1"), ("s.a", b"2")])
    assert [payload for _, payload in stored(world)] == [b"1"]

    world.api("STREAM.PURGE.T")
    world.advance(11)

    assert [payload for _, payload in stored(world)] == [b"2"]
