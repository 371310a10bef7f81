"""What makes a consumer's configuration wrong, with the codes of nats-server 2.15.1."""

from typing import Any

import pytest

from .harness import World

EXPLICIT = {"ack_policy": "explicit"}


def create(world: World, config: dict[str, Any], name: str = "", action: str = "") -> Any:
    subject = f"CONSUMER.CREATE.S.{name}" if name else "CONSUMER.CREATE.S"
    return world.api(subject, {"stream_name": "S", "config": config, "action": action})


@pytest.mark.parametrize(
    ("config", "err_code"),
    [
        ({**EXPLICIT, "deliver_subject": "x.*"}, 10079),
        ({**EXPLICIT, "deliver_subject": "s.x"}, 10081),
        ({**EXPLICIT, "deliver_subject": "x y"}, 10112),
        ({**EXPLICIT, "deliver_subject": "x", "idle_heartbeat": 5}, 10083),
        ({**EXPLICIT, "deliver_subject": "x", "flow_control": True}, 10108),
        ({**EXPLICIT, "deliver_subject": "x", "max_waiting": 5}, 10080),
        ({"ack_policy": "none", "deliver_subject": "x", "max_ack_pending": 5}, 10082),
        ({**EXPLICIT, "idle_heartbeat": 5 * 10**8}, 10088),
        ({**EXPLICIT, "flow_control": True}, 10089),
        ({**EXPLICIT, "rate_limit_bps": 5}, 10086),
        ({**EXPLICIT, "max_expires": 5}, 10115),
        ({**EXPLICIT, "backoff": [5, 6], "max_deliver": 1}, 10116),
        ({**EXPLICIT, "backoff": [-5]}, 10184),
        ({**EXPLICIT, "ack_wait": -5}, 10183),
        ({**EXPLICIT, "filter_subject": "a", "filter_subjects": ["b"]}, 10136),
        ({**EXPLICIT, "filter_subjects": ["b", ""]}, 10139),
        ({**EXPLICIT, "filter_subjects": ["b", "*"]}, 10138),
        ({**EXPLICIT, "filter_subject": "b.."}, 10052),
        ({**EXPLICIT, "num_replicas": 3}, 10074),
        ({**EXPLICIT, "deliver_policy": "last", "opt_start_seq": 2}, 10094),
        ({**EXPLICIT, "deliver_policy": "last_per_subject"}, 10094),
        ({**EXPLICIT, "deliver_policy": "by_start_sequence"}, 10094),
        ({**EXPLICIT, "deliver_policy": "by_start_time"}, 10094),
        ({**EXPLICIT, "sample_freq": "x"}, 10095),
        ({**EXPLICIT, "description": "x" * 4097}, 10107),
        ({**EXPLICIT, "durable_name": "a"}, 10020),
        ({"ack_policy": "flow_control"}, 10012),
        ({**EXPLICIT, "priority_groups": ["a"], "priority_policy": "overflow"}, 10012),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_code(
    world: World, config: dict[str, Any], err_code: int
) -> None:
    world.stream()

    assert create(world, config)["error"]["err_code"] == err_code


def test_defaults_are_written_back(world: World) -> None:
    world.stream()

    config = create(world, EXPLICIT, "e")["config"]

    assert config["ack_wait"] == 30 * 10**9
    assert config["max_ack_pending"] == 1000
    assert config["max_waiting"] == 512
    assert config["max_deliver"] == -1
    assert config["inactive_threshold"] == 5 * 10**9


def test_an_equal_create_is_accepted_and_another_refused(world: World) -> None:
    world.stream()
    world.consumer("c")

    same = create(world, {**EXPLICIT, "durable_name": "c"}, "c", "create")
    other = create(world, {**EXPLICIT, "durable_name": "c", "description": "x"}, "c", "create")

    assert same["name"] == "c"
    assert other["error"]["err_code"] == 10148


def test_an_update_of_nothing_is_refused(world: World) -> None:
    world.stream()

    response = create(world, {**EXPLICIT, "durable_name": "c"}, "c", "update")

    assert response["error"]["err_code"] == 10149


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"deliver_policy": "new"}, "deliver policy can not be updated"),
        ({"ack_policy": "all"}, "ack policy can not be updated"),
        ({"mem_storage": True}, "storage type can not be updated"),
        ({"max_waiting": 5}, "max waiting can not be updated"),
        ({"replay_policy": "original"}, "replay policy can not be updated"),
        ({"deliver_subject": "x"}, "can not update pull consumer to push based"),
    ],
)
def test_what_cannot_change_is_refused(world: World, change: dict[str, Any], text: str) -> None:
    world.stream()
    world.consumer("c")

    error = create(world, {**EXPLICIT, "durable_name": "c", **change}, "c")["error"]

    assert (error["err_code"], error["description"]) == (10012, text)


@pytest.mark.parametrize(
    ("subject", "body", "err_code"),
    [
        ("CREATE.S.c", {"stream_name": "S", "config": {"durable_name": "d"}}, 10017),
        ("CREATE.S.c", {"stream_name": "Q", "config": {}}, 10056),
        ("CREATE.X.c", {"stream_name": "X", "config": {}}, 10059),
        ("CREATE.S.c.s.x", {"stream_name": "S", "config": {"filter_subject": "s.y"}}, 10131),
        ("CREATE.S.c.s.x", {"stream_name": "S", "config": {"filter_subjects": ["s.x"]}}, 10137),
        ("DURABLE.CREATE.S.c", {"stream_name": "S", "config": {}}, 10018),
        ("DURABLE.CREATE.S.c", {"stream_name": "S", "config": {"durable_name": "d"}}, 10017),
    ],
)
def test_subject_and_body_must_agree(
    world: World, subject: str, body: dict[str, Any], err_code: int
) -> None:
    world.stream()

    assert world.err_code(f"CONSUMER.{subject}", body) == err_code


def test_the_name_in_the_subject_wins(world: World) -> None:
    world.stream()

    assert create(world, {**EXPLICIT, "name": "d"}, "c")["name"] == "c"


def test_more_consumers_than_the_stream_allows_are_refused(world: World) -> None:
    world.stream(max_consumers=1)
    world.consumer("a")

    assert create(world, EXPLICIT, "b")["error"]["err_code"] == 10026
