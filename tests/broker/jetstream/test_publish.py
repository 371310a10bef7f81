import pytest

from .harness import Disk, World


def err(answer: dict[str, object]) -> object:
    error = answer["error"]
    assert isinstance(error, dict)
    return error["err_code"]


def test_an_ack_names_stream_and_sequence(world: World) -> None:
    world.stream()

    answer = world.request("s.a", b"1")

    assert answer is not None
    assert answer.payload == b'{"stream":"S","seq":1}'


def test_no_ack_streams_answer_nothing(world: World) -> None:
    world.stream(no_ack=True)

    assert world.request("s.a", b"1") is None
    assert world.state()["messages"] == 1


def test_acks_of_one_read_come_in_order(world: World) -> None:
    world.stream()

    acks = world.publish_run([(f"s.{n}", b"") for n in range(50)])

    assert [ack.json()["seq"] for ack in acks.got] == list(range(1, 51))


# Nats-Msg-Id


def test_a_message_id_is_stored_once_within_the_window(world: World) -> None:
    world.stream()
    world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})
    world.publish("s.a", b"2")

    answer = world.request("s.b", b"3", {"Nats-Msg-Id": "x"})

    assert answer is not None
    assert answer.payload == b'{"stream":"S","seq":1,"duplicate": true}'
    assert world.state()["last_seq"] == 2


def test_a_message_id_is_free_again_after_the_window(world: World) -> None:
    world.stream(duplicate_window=10**9)
    world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})

    world.advance(1.0)

    assert world.publish("s.a", b"1", {"Nats-Msg-Id": "x"}) == {"stream": "S", "seq": 2}


def test_message_ids_are_known_after_a_kill(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})

    world = disk.boot(wall_ns=world.wall_ns + 60 * 10**9)

    assert world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})["duplicate"] is True


def test_message_ids_past_the_window_are_not_known_after_a_kill(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})

    world = disk.boot(wall_ns=world.wall_ns + 121 * 10**9)

    assert world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})["seq"] == 2


# Nats-Expected-*


def test_expected_stream_must_be_this_one(world: World) -> None:
    world.stream()

    assert err(world.publish("s.a", b"", {"Nats-Expected-Stream": "T"})) == 10060
    assert world.publish("s.a", b"", {"Nats-Expected-Stream": "S"})["seq"] == 1


@pytest.mark.parametrize("expected", ["0", "2", "x"])
def test_a_wrong_last_sequence_is_refused_with_the_right_one(world: World, expected: str) -> None:
    world.stream()
    world.publish("s.a")

    answer = world.publish("s.a", b"", {"Nats-Expected-Last-Sequence": expected})

    assert answer["error"]["description"] == "wrong last sequence: 1"
    assert world.publish("s.a", b"", {"Nats-Expected-Last-Sequence": "1"})["seq"] == 2


def test_a_wrong_last_sequence_of_the_subject_is_refused(world: World) -> None:
    world.stream()
    world.publish("s.a")
    world.publish("s.b")
    header = "Nats-Expected-Last-Subject-Sequence"

    assert err(world.publish("s.a", b"", {header: "2"})) == 10071
    assert err(world.publish("s.a", b"", {header: "0"})) == 10071
    assert world.publish("s.a", b"", {header: "1"})["seq"] == 3
    assert world.publish("s.c", b"", {header: "0"})["seq"] == 4


def test_two_writers_with_the_same_expectation_in_one_read_are_told_apart(world: World) -> None:
    world.stream()
    inbox = world.inbox()
    headers = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n"
    for payload in (b"1", b"2"):
        world.bus.publish("s.a", payload, reply=inbox.pattern, headers=headers)

    world.settle()

    assert inbox.got[0].json() == {"stream": "S", "seq": 1}
    assert err(inbox.got[1].json()) == 10071


def test_the_tested_subject_may_be_another_and_hold_wildcards(world: World) -> None:
    world.stream()
    for subject in ("s.a.1", "s.a.2", "s.b"):
        world.publish(subject)

    def expect(seq: str, subject: str) -> dict[str, object]:
        headers = {
            "Nats-Expected-Last-Subject-Sequence": seq,
            "Nats-Expected-Last-Subject-Sequence-Subject": subject,
        }
        answer: dict[str, object] = world.publish("s.c", b"", headers)
        return answer

    assert expect("2", "s.a.*")["seq"] == 4
    assert err(expect("1", "s.a.*")) == 10071
    assert expect("0", "s.none.>")["seq"] == 5


def test_a_tested_subject_alone_is_refused(world: World) -> None:
    world.stream()

    answer = world.publish("s.a", b"", {"Nats-Expected-Last-Subject-Sequence-Subject": "s.a"})

    assert err(answer) == 10193


def test_the_expected_last_message_id_is_that_of_the_newest_message(world: World) -> None:
    world.stream()
    header = "Nats-Expected-Last-Msg-Id"
    world.publish("s.a", b"", {"Nats-Msg-Id": "x"})

    answer = world.publish("s.a", b"", {header: "y"})

    assert answer["error"]["description"] == "wrong last msg ID: x"
    assert world.publish("s.a", b"", {header: "x"})["seq"] == 2
    assert world.publish("s.a", b"", {header: "x"})["error"]["description"] == "wrong last msg ID: "


def test_the_last_message_id_outlives_the_window_and_a_kill(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.publish("s.a", b"", {"Nats-Msg-Id": "x"})

    world = disk.boot(wall_ns=world.wall_ns + 3600 * 10**9)

    assert world.publish("s.a", b"", {"Nats-Expected-Last-Msg-Id": "x"})["seq"] == 2


def test_a_plain_message_makes_the_last_message_id_empty(world: World) -> None:
    world.stream()
    world.publish("s.a", b"", {"Nats-Msg-Id": "x"})
    world.publish("s.a")

    assert err(world.publish("s.a", b"", {"Nats-Expected-Last-Msg-Id": "x"})) == 10070


# Other headers


def test_clients_may_not_write_the_source_header(world: World) -> None:
    world.stream()

    assert err(world.publish("s.a", b"", {"Nats-Stream-Source": "x"})) == 10227


def test_rollup_of_a_subject_keeps_only_the_new_message(world: World) -> None:
    world.stream(allow_rollup_hdrs=True)
    world.publish_run([("s.a", b""), ("s.b", b""), ("s.a", b"")])

    world.publish("s.a", b"", {"Nats-Rollup": "sub"})

    state = world.api("STREAM.INFO.S", {"subjects_filter": ">"})["state"]
    assert state["subjects"] == {"s.a": 1, "s.b": 1}


def test_rollup_of_all_keeps_only_the_new_message(world: World) -> None:
    world.stream(allow_rollup_hdrs=True)
    world.publish_run([("s.a", b""), ("s.b", b"")])

    world.publish("s.c", b"", {"Nats-Rollup": "all"})

    state = world.state()
    assert (state["messages"], state["first_seq"]) == (1, 3)


def test_rollup_is_refused_where_it_is_not_allowed(world: World) -> None:
    world.stream()

    answer = world.publish("s.a", b"", {"Nats-Rollup": "sub"})

    assert answer["error"]["description"] == "rollup not permitted"


def test_a_wrong_rollup_is_named(world: World) -> None:
    world.stream(allow_rollup_hdrs=True)

    answer = world.publish("s.a", b"", {"Nats-Rollup": "foo"})

    assert answer["error"]["description"] == 'rollup value invalid: "foo"'


def test_headers_over_the_limit_are_refused(world: World) -> None:
    world.stream()

    assert err(world.publish("s.a", b"", {"X": "y" * 65_535})) == 10097


@pytest.mark.parametrize(
    ("headers", "err_code"),
    [({"Nats-Incr": "+1"}, 10168), ({"Nats-Schedule": "@every 1h"}, 10188)],
)
def test_headers_of_what_is_not_built_are_refused(
    world: World, headers: dict[str, str], err_code: int
) -> None:
    world.stream()

    assert err(world.publish("s.a", b"", headers)) == err_code


def test_the_checks_come_in_the_servers_order(world: World) -> None:
    world.stream(max_msg_size=400)
    faults = {
        "Nats-Expected-Stream": ("T", 10060),
        "Nats-TTL": ("5", 10166),
        "Nats-Expected-Last-Subject-Sequence": ("8", 10071),
        "Nats-Expected-Last-Sequence": ("8", 10071),
        "Nats-Stream-Source": ("X 1 > > x y", 10227),
        "Nats-Expected-Last-Msg-Id": ("x", 10070),
        "Nats-Rollup": ("sub", 10111),
    }
    headers = {name: value for name, (value, _) in faults.items()}
    assert err(world.publish("s.a", b"x" * 400, headers)) == 10054

    for name, (_, err_code) in faults.items():
        assert err(world.publish("s.a", b"", headers)) == err_code
        del headers[name]


def test_a_duplicate_is_told_before_later_faults(world: World) -> None:
    world.stream(allow_msg_ttl=True)
    world.publish("s.a", b"", {"Nats-Msg-Id": "x"})
    headers = {"Nats-Msg-Id": "x", "Nats-Expected-Last-Msg-Id": "y", "Nats-TTL": "-5"}

    assert world.publish("s.a", b"", headers)["duplicate"] is True
