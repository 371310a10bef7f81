import gc
import weakref

import pytest

from millstream_broker.store.memory import MemoryStore

from .harness import World


def test_an_equal_create_succeeds_as_if_new(world: World) -> None:
    world.stream()

    assert world.stream()["did_create"] is True


def test_a_create_with_another_configuration_is_refused(world: World) -> None:
    world.stream()

    assert world.err_code("STREAM.CREATE.S", {"name": "S", "subjects": ["x"]}) == 10058


def test_subjects_of_two_streams_do_not_overlap(world: World) -> None:
    world.stream()

    assert world.err_code("STREAM.CREATE.T", {"name": "T", "subjects": ["s.a"]}) == 10065


def test_a_fresh_stream_has_no_first_sequence(world: World) -> None:
    state = world.stream()["state"]

    assert (state["first_seq"], state["last_seq"]) == (0, 0)


def test_first_seq_is_where_counting_begins(world: World) -> None:
    state = world.stream(first_seq=10)["state"]

    assert (state["first_seq"], state["last_seq"]) == (10, 9)
    assert world.publish("s.a")["seq"] == 10


def test_names_are_sorted_and_paged(world: World) -> None:
    for name in "CAB":
        world.stream(name)

    page = world.api("STREAM.NAMES", {"offset": 1})

    assert page["streams"] == ["B", "C"]
    assert (page["total"], page["offset"], page["limit"]) == (3, 1, 1024)


def test_names_without_a_match_are_null_and_lists_empty(world: World) -> None:
    assert world.api("STREAM.NAMES", {"subject": "zz"})["streams"] is None
    assert world.api("STREAM.LIST", {"subject": "zz"})["streams"] == []


def test_names_are_found_by_subject(world: World) -> None:
    world.stream("A")
    world.stream("B")

    assert world.api("STREAM.NAMES", {"subject": "b.x"})["streams"] == ["B"]


def test_info_counts_subjects_and_names_deleted_sequences(world: World) -> None:
    world.stream()
    for subject in ("s.a", "s.b", "s.a", "s.a"):
        world.publish(subject)
    world.api("STREAM.MSG.DELETE.S", {"seq": 3})

    state = world.api("STREAM.INFO.S", {"subjects_filter": "s.*", "deleted_details": True})["state"]

    assert state["subjects"] == {"s.a": 2, "s.b": 1}
    assert (state["num_deleted"], state["deleted"]) == (1, [3])


def test_an_unknown_stream_is_not_found(world: World) -> None:
    assert world.err_code("STREAM.INFO.NOPE") == 10059
    assert world.err_code("STREAM.DELETE.NOPE") == 10059


@pytest.mark.parametrize(
    "subject",
    ["NOPE", "NOPE.X", "STREAM.NOPE.X", "STREAM.CREATE", "STREAM.INFO.A.B", "CONSUMER.NOPE.B.C"],
)
def test_an_unknown_request_is_met_with_silence(world: World, subject: str) -> None:
    assert world.bus.has_interest(f"$JS.API.{subject}")
    assert world.request(f"$JS.API.{subject}") is None


@pytest.mark.parametrize("subject", ["CONSUMER.MSG.NEXT.S.C", "DIRECT.GET.S", "DIRECT.GET.S.s.a"])
def test_pulls_and_direct_gets_of_nothing_have_no_responders(world: World, subject: str) -> None:
    assert not world.bus.has_interest(f"$JS.API.{subject}")


def test_clustering_requests_are_answered_that_there_is_none(world: World) -> None:
    assert world.err_code("STREAM.LEADER.STEPDOWN.S") == 10010


def test_a_required_api_level_too_high_is_refused(world: World) -> None:
    world.stream()

    response = world.api("STREAM.INFO.S", headers={"Nats-Required-Api-Level": "6"})

    assert response["error"]["err_code"] == 10185


def test_delete_frees_subjects_and_name(world: World) -> None:
    world.stream()
    world.publish("s.a")

    assert world.api("STREAM.DELETE.S") == {
        "type": "io.nats.jetstream.api.v1.stream_delete_response",
        "success": True,
    }
    assert not world.bus.has_interest("s.a")
    assert world.stream()["state"]["messages"] == 0


def test_delete_frees_the_messages_without_the_collector(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs rarely in a server, and there may be many messages."""
    made: list[weakref.ref[MemoryStore]] = []
    before = MemoryStore.__init__

    def note(store: MemoryStore, **options: int) -> None:
        before(store, **options)
        made.append(weakref.ref(store))

    monkeypatch.setattr(MemoryStore, "__init__", note)
    world.stream(storage="memory")
    world.publish("s.a", b"x")
    gc.disable()
    try:
        world.api("STREAM.DELETE.S")
        assert made[0]() is None
    finally:
        gc.enable()


def test_an_update_changes_what_is_captured(world: World) -> None:
    world.stream()

    world.api("STREAM.UPDATE.S", {"name": "S", "subjects": ["t.>"]})

    assert not world.bus.has_interest("s.a")
    assert world.publish("t.a")["seq"] == 1


# Limits


def test_max_msgs_drops_the_oldest(world: World) -> None:
    world.stream(max_msgs=3)

    world.publish_run([("s.a", b"%d" % n) for n in range(5)])

    state = world.state()
    assert (state["first_seq"], state["last_seq"], state["messages"]) == (3, 5, 3)


def test_max_bytes_drops_the_oldest(world: World) -> None:
    world.stream(max_bytes=100, storage="memory")

    world.publish_run([("s.a", b"x" * 20)] * 4)  # 39 bytes each in memory

    state = world.state()
    assert (state["messages"], state["bytes"]) == (2, 78)


def test_max_msgs_per_subject_keeps_the_newest_of_each(world: World) -> None:
    world.stream(max_msgs_per_subject=1)

    world.publish_run([("s.a", b"1"), ("s.b", b"2"), ("s.a", b"3"), ("s.a", b"4")])

    assert world.state()["messages"] == 2
    message = world.api("STREAM.MSG.GET.S", {"last_by_subj": "s.a"})["message"]
    assert message["seq"] == 4


def test_lowering_a_limit_removes_what_is_over_it(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"")] * 5)

    world.api("STREAM.UPDATE.S", {"name": "S", "subjects": ["s.>"], "max_msgs_per_subject": 2})

    assert world.state()["first_seq"] == 4


def test_discard_new_refuses_what_is_too_much(world: World) -> None:
    world.stream(max_msgs=2, discard="new")
    world.publish_run([("s.a", b"")] * 2)

    error = world.publish("s.a")["error"]

    assert error == {"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}


def test_discard_new_lets_a_subject_replace_its_own_oldest(world: World) -> None:
    world.stream(max_msgs=2, max_msgs_per_subject=1, discard="new")
    world.publish_run([("s.a", b""), ("s.b", b"")])

    assert world.publish("s.a")["seq"] == 3
    assert world.publish("s.c")["error"]["err_code"] == 10077


def test_discard_new_per_subject_refuses_the_second(world: World) -> None:
    world.stream(max_msgs_per_subject=1, discard="new", discard_new_per_subject=True)
    world.publish("s.a")

    error = world.publish("s.a")["error"]

    assert error["description"] == "maximum messages per subject exceeded"


def test_with_discard_new_a_lowered_limit_removes_nothing(world: World) -> None:
    world.stream(discard="new")
    world.publish_run([("s.a", b"")] * 5)
    lowered = {"name": "S", "subjects": ["s.>"], "discard": "new", "max_msgs": 2}

    world.api("STREAM.UPDATE.S", lowered)

    assert world.state()["messages"] == 5


def test_a_replacement_must_fit_into_what_it_frees(world: World) -> None:
    world.stream(
        storage="memory", max_bytes=64, max_msgs_per_subject=1, discard="new", subjects=["s.*"]
    )
    world.publish("s.a", b"x" * 30)  # 49 bytes

    assert world.publish("s.a", b"x" * 31)["error"]["err_code"] == 10077
    assert world.publish("s.a", b"x" * 30)["seq"] == 2


def test_discard_new_takes_exactly_what_fits(world: World) -> None:
    world.stream(storage="memory", max_bytes=2 * 19, discard="new")

    world.publish_run([("s.a", b"")] * 2)  # 19 bytes each in memory

    assert world.state()["bytes"] == 38
    assert world.publish("s.a")["error"]["err_code"] == 10077


def test_limits_act_before_a_rollup_does(world: World) -> None:
    world.stream(storage="memory", max_msgs=2, allow_rollup_hdrs=True)
    world.publish_run([("s.a", b""), ("s.b", b"")])

    world.publish("s.b", b"", {"Nats-Rollup": "sub"})

    assert world.state()["messages"] == 1


def test_a_message_over_the_size_limit_is_refused(world: World) -> None:
    world.stream(max_msg_size=5)

    assert world.publish("s.a", b"123456")["error"]["err_code"] == 10054
    assert world.publish("s.a", b"12345")["seq"] == 1


def test_subjects_are_transformed_before_they_are_stored(world: World) -> None:
    world.stream(
        subjects=["p.*"],
        subject_transform={"src": "p.*", "dest": "out.{{wildcard(1)}}.{{partition(10,1)}}"},
    )

    world.publish("p.alice")

    message = world.api("STREAM.MSG.GET.S", {"seq": 1})["message"]
    assert message["subject"] == "out.alice.9"


def test_stored_messages_are_published_again(world: World) -> None:
    world.stream(republish={"src": "s.*", "dest": "again.{{wildcard(1)}}"})
    inbox = world.inbox("again.>")

    world.publish("s.a", b"1")
    world.publish("s.a", b"2")

    assert [(d.subject, d.payload) for d in inbox.got] == [("again.a", b"1"), ("again.a", b"2")]
    assert inbox.got[1].header("Nats-Last-Sequence") == "1"


# Purge and delete


def test_purge_empties_and_keeps_counting(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"")] * 3)

    assert world.api("STREAM.PURGE.S")["purged"] == 3
    state = world.state()
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (0, 4, 3)
    assert world.publish("s.a")["seq"] == 4


def test_purge_by_subject_sequence_and_keep(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b""), ("s.b", b"")] * 3)

    assert world.api("STREAM.PURGE.S", {"filter": "s.a", "seq": 4})["purged"] == 2
    assert world.api("STREAM.PURGE.S", {"filter": "s.b", "keep": 1})["purged"] == 2
    assert world.state()["messages"] == 2


def test_purge_beyond_the_end_moves_the_next_sequence(world: World) -> None:
    world.stream()
    world.publish("s.a")

    world.api("STREAM.PURGE.S", {"seq": 10})

    state = world.state()
    assert (state["first_seq"], state["last_seq"]) == (10, 9)
    assert world.publish("s.a")["seq"] == 10


def test_purge_with_sequence_and_keep_is_a_bad_request(world: World) -> None:
    world.stream()

    assert world.err_code("STREAM.PURGE.S", {"seq": 1, "keep": 1}) == 10003


def test_deleting_what_is_not_there_has_its_own_answers(world: World) -> None:
    world.stream(first_seq=2)
    world.publish_run([("s.a", b"")] * 3)
    for seq in (2, 4):
        world.api("STREAM.MSG.DELETE.S", {"seq": seq})

    def told(seq: int) -> tuple[int, str]:
        error = world.api("STREAM.MSG.DELETE.S", {"seq": seq})["error"]
        return error["err_code"], error["description"]

    assert told(4) == (10043, "sequence 4 not found")
    assert told(2) == (10057, "no message found")
    assert told(9) == (10057, "stream store EOF")
    assert told(0) == (10057, "no message found")


def test_deny_flags_forbid_delete_and_purge(world: World) -> None:
    world.stream(deny_delete=True, deny_purge=True)
    world.publish("s.a")

    assert world.err_code("STREAM.MSG.DELETE.S", {"seq": 1}) == 10057
    assert world.err_code("STREAM.PURGE.S") == 10110


def test_account_info_counts_what_is_there(world: World) -> None:
    world.stream()
    world.stream("M", storage="memory")
    world.consumer()
    world.publish("m.a", b"1234")

    info = world.api("INFO")

    assert (info["streams"], info["consumers"]) == (2, 1)
    assert info["memory"] == 3 + 4 + 16
    assert info["api"]["level"] == 5
