"""What makes a stream's configuration wrong, with the code and text of nats-server 2.15.1."""

from typing import Any

import pytest

from .harness import World


@pytest.mark.parametrize(
    ("config", "err_code", "text"),
    [
        ({"max_age": 5}, 10052, "max age needs to be >= 100ms"),
        ({"max_age": -5}, 10052, "max age can not be negative"),
        ({"subjects": ["a.*", "a.b"]}, 10052, 'subject "a.*" overlaps with "a.b"'),
        ({"subjects": ["a b"]}, 10052, "invalid subject"),
        ({"subjects": [">"]}, 10052, "capturing all subjects requires no-ack to be true"),
        (
            {"subjects": ["$JS.API.>"]},
            10052,
            "subjects that overlap with jetstream api require no-ack to be true",
        ),
        ({"duplicate_window": 5}, 10052, "duplicates window needs to be >= 100ms"),
        (
            {"max_age": 10**9, "duplicate_window": 2 * 10**9},
            10052,
            "duplicates window can not be larger then max age",
        ),
        ({"sealed": True}, 10052, "stream configuration for create can not be sealed"),
        ({"num_replicas": 3}, 10074, "replicas > 1 not supported in non-clustered mode"),
        ({"num_replicas": 9}, 10052, "maximum replicas is 5"),
        ({"num_replicas": -1}, 10133, "replicas count cannot be negative"),
        (
            {"deny_purge": True, "allow_rollup_hdrs": True},
            10052,
            "roll-ups require the purge permission",
        ),
        (
            {"subject_delete_marker_ttl": 5},
            10052,
            "subject delete marker TTL must be at least 1 second",
        ),
        (
            {"discard_new_per_subject": True},
            10052,
            "discard new per subject requires discard new policy to be set",
        ),
        (
            {"subject_transform": {"src": "a..", "dest": "x"}},
            10155,
            "stream transform source: invalid subject a..",
        ),
        (
            {"subject_transform": {"src": "C", "dest": "x.{{wildcard(1)}}"}},
            10156,
            (
                "stream transform: invalid mapping destination: wildcard index out of range"
                " in {{wildcard(1)}}"
            ),
        ),
        ({"sources": [{"name": "X"}, {"name": "X"}]}, 10140, ""),
        ({"sources": [{"name": "X X"}]}, 10141, ""),
        ({"sources": [{"name": "C"}]}, 10052, "detected cycle"),
        ({"republish": {"src": "C", "dest": "C"}}, 10052, ""),
        ({"metadata": {"a": "x" * 128 * 1024}}, 10052, ""),
        ({"description": "x" * 4097}, 10052, ""),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_code(
    world: World, config: dict[str, Any], err_code: int, text: str
) -> None:
    error = world.api("STREAM.CREATE.C", {"name": "C", **config})["error"]

    assert error["err_code"] == err_code
    assert not text or error["description"] == text
    assert "C" not in world.js.registry.streams


@pytest.mark.parametrize(
    "config",
    [
        {"mirror": {"name": "X"}},
        {"allow_msg_counter": True},
        {"allow_msg_schedules": True},
        {"allow_batched": True},
        {"sources": [{"name": "X", "external": {"api": "a", "deliver": "d"}}]},
    ],
)
def test_what_is_not_built_is_refused_by_name(world: World, config: dict[str, Any]) -> None:
    error = world.api("STREAM.CREATE.C", {"name": "C", **config})["error"]

    assert error["err_code"] == 10052
    assert error["description"].startswith("this server does not support ")


def test_defaults_are_written_back(world: World) -> None:
    config = world.api("STREAM.CREATE.C", {"name": "C"})["config"]

    assert config["subjects"] == ["C"]
    assert config["max_msgs"] == config["max_bytes"] == config["max_consumers"] == -1
    assert config["duplicate_window"] == 120 * 10**9
    assert config["metadata"] == {"_nats.ver": "2.15.1", "_nats.level": "5", "_nats.req.level": "0"}


def test_the_duplicate_window_is_no_longer_than_the_age(world: World) -> None:
    config = world.api("STREAM.CREATE.C", {"name": "C", "max_age": 10**9})["config"]

    assert config["duplicate_window"] == 10**9


def test_delete_markers_turn_on_ttl_and_rollup(world: World) -> None:
    config = world.stream(subject_delete_marker_ttl=10**9)["config"]

    assert config["allow_msg_ttl"]
    assert config["allow_rollup_hdrs"]
    assert config["metadata"]["_nats.req.level"] == "1"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"storage": "memory"}, "stream configuration update can not change storage type"),
        (
            {"retention": "workqueue"},
            "stream configuration update can not change retention policy to/from workqueue",
        ),
        ({"deny_delete": False}, "stream configuration update can not cancel deny message deletes"),
        ({"allow_msg_ttl": False}, "message TTL status can not be disabled"),
    ],
)
def test_what_cannot_change_is_refused(world: World, change: dict[str, Any], text: str) -> None:
    config = {"name": "S", "subjects": ["s.>"], "deny_delete": True, "allow_msg_ttl": True}
    world.api("STREAM.CREATE.S", config)

    error = world.api("STREAM.UPDATE.S", {**config, **change})["error"]

    assert (error["err_code"], error["description"]) == (10052, text)


def test_sealing_stops_all_writing(world: World) -> None:
    world.stream()
    world.publish("s.a", b"1")

    config = world.api("STREAM.UPDATE.S", {"name": "S", "subjects": ["s.>"], "sealed": True})

    assert config["config"]["discard"] == "new"
    assert world.publish("s.a", b"2")["error"]["err_code"] == 10109
    assert world.err_code("STREAM.PURGE.S") == 10109
    assert world.state()["messages"] == 1
