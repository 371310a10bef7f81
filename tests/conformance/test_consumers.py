"""Consumers: create, update, info, names, list, delete, pause, and what is refused."""

import json
from datetime import datetime

import pytest

from tests.conformance.client import MS, SECOND, ApiError, Client, Json, consumer_body, eventually


async def test_a_created_consumer_shows_the_defaults(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.consumer(name, "c")

    assert answer["type"] == "io.nats.jetstream.api.v1.consumer_create_response"
    config = answer["config"]
    assert config.pop("metadata")["_nats.req.level"] == "0"
    assert config == {
        "durable_name": "c",
        "name": "c",
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": 30 * SECOND,
        "max_deliver": -1,
        "replay_policy": "instant",
        "max_waiting": 512,
        "max_ack_pending": 1000,
        "num_replicas": 0,
    }


async def test_a_created_consumer_has_everything_pending(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 3)

    answer = await client.consumer(name, "c")

    assert (answer["stream_name"], answer["name"]) == (name, "c")
    assert answer["delivered"] == {"consumer_seq": 0, "stream_seq": 0}
    assert answer["ack_floor"] == {"consumer_seq": 0, "stream_seq": 0}
    assert answer["num_pending"] == 3
    assert answer["num_ack_pending"] == answer["num_redelivered"] == answer["num_waiting"] == 0
    assert datetime.fromisoformat(answer["created"]).tzinfo is not None


async def test_an_ephemeral_consumer_gets_a_name(client: Client, name: str) -> None:
    await client.stream(name)

    body = {"stream_name": name, "config": {"ack_policy": "explicit"}}
    answer = await client.ok(f"CONSUMER.CREATE.{name}", body)

    assert len(answer["name"]) == 8
    assert answer["config"]["inactive_threshold"] == 5 * SECOND
    assert "durable_name" not in answer["config"]


async def test_an_ephemeral_consumer_may_have_a_name(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.consumer(name, "mine", durable_name=None)

    assert answer["name"] == "mine"
    assert answer["config"]["inactive_threshold"] == 5 * SECOND


async def test_an_unused_ephemeral_consumer_goes(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "mine", durable_name=None, inactive_threshold=100 * MS)

    async def is_gone() -> bool:
        return "error" in await client.api(f"CONSUMER.INFO.{name}.mine")

    await eventually(is_gone)


async def test_a_durable_by_the_older_request(client: Client, name: str) -> None:
    await client.stream(name)

    body = consumer_body(name, "c", {})
    answer = await client.ok(f"CONSUMER.DURABLE.CREATE.{name}.c", body)

    assert answer["config"]["durable_name"] == "c"


async def test_the_filter_may_be_part_of_the_request_subject(client: Client, name: str) -> None:
    await client.stream(name)

    body = consumer_body(name, "c", {"filter_subject": f"{name}.a"})
    answer = await client.ok(f"CONSUMER.CREATE.{name}.c.{name}.a", body)

    assert answer["config"]["filter_subject"] == f"{name}.a"


@pytest.mark.parametrize(
    ("policy", "pending"),
    [
        ({"deliver_policy": "all"}, 5),
        ({"deliver_policy": "last"}, 1),
        ({"deliver_policy": "new"}, 0),
        ({"deliver_policy": "by_start_sequence", "opt_start_seq": 3}, 3),
        ({"deliver_policy": "last_per_subject", "filter_subject": ">"}, 2),
        ({"deliver_policy": "by_start_time", "opt_start_time": "2020-01-01T00:00:00Z"}, 5),
        ({"deliver_policy": "by_start_time", "opt_start_time": "2100-01-01T00:00:00Z"}, 0),
    ],
)
async def test_pending_follows_the_deliver_policy(
    client: Client, name: str, policy: Json, pending: int
) -> None:
    await client.stream(name)
    for subject in "ababa":
        await client.stored(f"{name}.{subject}")

    answer = await client.consumer(name, "c", **policy)

    assert answer["num_pending"] == pending


@pytest.mark.parametrize(
    ("policy", "delivered"),
    [
        ({"deliver_policy": "last"}, 4),
        ({"deliver_policy": "new"}, 5),
        ({"deliver_policy": "by_start_sequence", "opt_start_seq": 3}, 2),
    ],
)
async def test_delivered_starts_before_the_first_message_to_come(
    client: Client, name: str, policy: Json, delivered: int
) -> None:
    await client.stream(name)
    await client.fill(name, 5)

    answer = await client.consumer(name, "c", **policy)

    assert answer["delivered"] == {"consumer_seq": 0, "stream_seq": delivered}
    assert answer["ack_floor"] == {"consumer_seq": 0, "stream_seq": delivered}


@pytest.mark.parametrize(
    ("filters", "delivered", "pending"),
    [
        ({"filter_subject": "b"}, 2, 1),
        ({"filter_subjects": ["b", "nothing"]}, 2, 1),
        ({"filter_subject": "nothing"}, 0, 0),
        ({"filter_subject": ">"}, 3, 1),
        ({}, 4, 0),
    ],
)
async def test_last_is_the_last_match_or_without_a_filter_the_last_sequence(
    client: Client, name: str, filters: Json, delivered: int, pending: int
) -> None:
    """The fifth and last message is deleted; only without a filter does its sequence count."""
    await client.stream(name)
    for subject in "babaa":
        await client.stored(f"{name}.{subject}")
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 5})
    if "filter_subject" in filters:
        filters = {"filter_subject": f"{name}.{filters['filter_subject']}"}
    if "filter_subjects" in filters:
        filters = {"filter_subjects": [f"{name}.{end}" for end in filters["filter_subjects"]]}

    answer = await client.consumer(name, "c", deliver_policy="last", **filters)

    assert (answer["delivered"]["stream_seq"], answer["num_pending"]) == (delivered, pending)


@pytest.mark.parametrize(("rollup", "pending"), [("all", 1), ("sub", 2)])
async def test_a_rollup_is_pending_once(
    client: Client, name: str, rollup: str, pending: int
) -> None:
    await client.stream(name, allow_rollup_hdrs=True)
    await client.stored(f"{name}.a")
    await client.stored(f"{name}.b")
    await client.consumer(name, "c", filter_subject=f"{name}.>")

    await client.stored(f"{name}.b", b"sum", {"Nats-Rollup": rollup})

    # nats-server tells a consumer of new and removed messages a moment after it stored them.
    async def is_counted() -> bool:
        return bool((await client.consumer_info(name, "c"))["num_pending"] == pending)

    await eventually(is_counted)


async def test_pending_counts_what_the_filter_matches(client: Client, name: str) -> None:
    await client.stream(name)
    for subject in "abcab":
        await client.stored(f"{name}.{subject}")

    one = await client.consumer(name, "one", filter_subject=f"{name}.a")
    two = await client.consumer(name, "two", filter_subjects=[f"{name}.a", f"{name}.c"])

    assert (one["num_pending"], two["num_pending"]) == (2, 3)


async def test_a_filter_outside_of_the_stream_is_accepted(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.consumer(name, "c", filter_subject="elsewhere.>")

    assert answer["num_pending"] == 0


SHOWN: dict[str, Json] = {
    "description": {"description": "what for"},
    "ack none": {"ack_policy": "none"},
    "ack all": {"ack_policy": "all"},
    "ack_wait": {"ack_wait": 2 * SECOND},
    "max_deliver": {"max_deliver": 4},
    "backoff": {"backoff": [SECOND, 2 * SECOND], "max_deliver": 3},
    "filter_subject": {"filter_subject": "x.>"},
    "filter_subjects": {"filter_subjects": ["x.a", "x.b"]},
    "sample_freq": {"sample_freq": "30%"},
    "max_waiting": {"max_waiting": 3},
    "max_ack_pending": {"max_ack_pending": 5},
    "headers_only": {"headers_only": True},
    "max_batch": {"max_batch": 5},
    "max_expires": {"max_expires": 3 * SECOND},
    "max_bytes": {"max_bytes": 3000},
    "inactive_threshold": {"inactive_threshold": 60 * SECOND},
    "mem_storage": {"mem_storage": True},
    "push": {"deliver_subject": "to.here", "deliver_group": "g"},
    "flow control": {
        "deliver_subject": "to.here",
        "flow_control": True,
        "idle_heartbeat": SECOND,
    },
    "replay original": {"replay_policy": "original"},
}


@pytest.mark.parametrize("fields", SHOWN.values(), ids=SHOWN.keys())
async def test_the_config_shows_what_was_set(client: Client, name: str, fields: Json) -> None:
    await client.stream(name)

    await client.consumer(name, "c", **fields)

    config = (await client.consumer_info(name, "c"))["config"]
    assert {key: config[key] for key in fields} == fields


async def test_backoff_sets_the_ack_wait(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.consumer(name, "c", backoff=[2 * SECOND, SECOND], max_deliver=5)

    assert answer["config"]["ack_wait"] == 2 * SECOND


async def test_a_consumer_of_ack_none_has_no_ack_pending_limit(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.consumer(name, "c", ack_policy="none")

    assert "max_ack_pending" not in answer["config"]
    assert "ack_wait" not in answer["config"]


async def test_the_streams_consumer_limits_are_defaults(client: Client, name: str) -> None:
    await client.stream(
        name, consumer_limits={"max_ack_pending": 7, "inactive_threshold": 90 * SECOND}
    )

    answer = await client.consumer(name, "c")

    assert answer["config"]["max_ack_pending"] == 7
    assert answer["config"]["inactive_threshold"] == 90 * SECOND


REFUSED: dict[str, tuple[Json, ApiError]] = {
    "other durable name": (
        {"durable_name": "d"},
        ApiError(10017, 400, "consumer name in subject does not match durable name in request"),
    ),
    "both filters": (
        {"filter_subject": "a", "filter_subjects": ["b"]},
        ApiError(
            10136, 400, "consumer cannot have both FilterSubject and FilterSubjects specified"
        ),
    ),
    "an empty filter": (
        {"filter_subjects": ["a", ""]},
        ApiError(10139, 400, "consumer filter in FilterSubjects cannot be empty"),
    ),
    "overlapping filters": (
        {"filter_subjects": ["a.*", "a.b"]},
        ApiError(10138, 400, "consumer subject filters cannot overlap"),
    ),
    "backoff longer than max_deliver": (
        {"backoff": [SECOND, SECOND], "max_deliver": 1},
        ApiError(10116, 400, "max deliver is required to be > length of backoff values"),
    ),
    "a wildcard deliver subject": (
        {"deliver_subject": "to.*"},
        ApiError(10079, 400, "consumer deliver subject has wildcards"),
    ),
    "an invalid deliver subject": (
        {"deliver_subject": "to..x"},
        ApiError(10112, 400, "invalid push consumer deliver subject"),
    ),
    "push with max_waiting": (
        {"deliver_subject": "to.x", "max_waiting": 5},
        ApiError(10080, 400, "consumer in push mode can not set max waiting"),
    ),
    "pull with a rate limit": (
        {"rate_limit_bps": 5000},
        ApiError(10086, 400, "consumer in pull mode can not have rate limit set"),
    ),
    "pull with heartbeats": (
        {"idle_heartbeat": SECOND},
        ApiError(10088, 400, "consumer idle heartbeat requires a push based consumer"),
    ),
    "pull with flow control": (
        {"flow_control": True},
        ApiError(10089, 400, "consumer flow control requires a push based consumer"),
    ),
    "flow control without heartbeats": (
        {"deliver_subject": "to.x", "flow_control": True},
        ApiError(10108, 400, "consumer with flow control also needs heartbeats"),
    ),
    "heartbeats under 100 ms": (
        {"deliver_subject": "to.x", "idle_heartbeat": 5 * MS},
        ApiError(10083, 400, "consumer idle heartbeat needs to be >= 100ms"),
    ),
    "push, ack none, max_ack_pending": (
        {"deliver_subject": "to.x", "ack_policy": "none", "max_ack_pending": 3},
        ApiError(10082, 400, "consumer requires ack policy for max ack pending"),
    ),
    "three replicas": (
        {"num_replicas": 3},
        ApiError(10074, 500, "replicas > 1 not supported in non-clustered mode"),
    ),
    "a negative ack wait": (
        {"ack_wait": -1},
        ApiError(10183, 400, "consumer ack wait needs to be positive"),
    ),
    "a sample of many": (
        {"sample_freq": "many"},
        ApiError(
            10095,
            400,
            "failed to parse consumer sampling configuration:"
            ' strconv.Atoi: parsing "many": invalid syntax',
        ),
    ),
    "a max_expires under 1 ms": (
        {"max_expires": 5},
        ApiError(10115, 400, "consumer max request expires needs to be >= 1ms"),
    ),
    "a description over 4096": (
        {"description": "x" * 4097},
        ApiError(10107, 400, "consumer description is too long, maximum allowed is 4096"),
    ),
}


@pytest.mark.parametrize(("fields", "error"), REFUSED.values(), ids=REFUSED.keys())
async def test_create_refuses(client: Client, name: str, fields: Json, error: ApiError) -> None:
    await client.stream(name)

    assert await client.consumer_error(name, "c", **fields) == error


@pytest.mark.parametrize(
    "policy",
    [
        {"deliver_policy": "by_start_sequence"},
        {"deliver_policy": "by_start_time"},
        {"deliver_policy": "all", "opt_start_seq": 3},
        {"deliver_policy": "last_per_subject"},
    ],
)
async def test_a_deliver_policy_needs_its_fields_and_no_others(
    client: Client, name: str, policy: Json
) -> None:
    await client.stream(name)

    error = await client.consumer_error(name, "c", **policy)

    assert (error.err_code, error.code) == (10094, 400)


async def test_a_deliver_subject_of_the_stream_is_a_cycle(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.consumer_error(name, "c", deliver_subject=f"{name}.x")

    assert error == ApiError(10081, 400, "consumer deliver subject forms a cycle")


async def test_the_filter_in_the_request_subject_must_be_the_configs(
    client: Client, name: str
) -> None:
    await client.stream(name)

    body = consumer_body(name, "c", {"filter_subject": f"{name}.b"})
    error = await client.error(f"CONSUMER.CREATE.{name}.c.{name}.a", body)

    assert error.err_code == 10131


async def test_an_unknown_field_is_refused(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.consumer_error(name, "c", colour="red")

    assert error == ApiError(10025, 400, 'invalid JSON: json: unknown field "colour"')


async def test_an_unknown_stream_is_refused(client: Client, name: str) -> None:
    error = await client.consumer_error(name, "c")

    assert error == ApiError(10059, 404, "stream not found")


# --- create again, update


async def test_creating_it_again_with_the_same_config_succeeds(client: Client, name: str) -> None:
    await client.stream(name)
    first = await client.consumer(name, "c")

    again = await client.consumer(name, "c")

    assert again["created"] == first["created"]


async def test_creating_it_with_another_config_updates_it(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "c")

    await client.consumer(name, "c", max_ack_pending=5, description="new")

    config = (await client.consumer_info(name, "c"))["config"]
    assert (config["max_ack_pending"], config["description"]) == (5, "new")


async def test_an_update_of_a_work_queue_consumer_names_what_cannot_change(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="workqueue")
    await client.consumer(name, "c")

    policy = await client.consumer_error(name, "c", deliver_policy="new")
    acks = await client.consumer_error(name, "c", ack_policy="all")

    assert policy == ApiError(10012, 500, "deliver policy can not be updated")
    assert acks == ApiError(10012, 500, "ack policy can not be updated")


async def test_action_create_refuses_another_config(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "c")

    body = {**consumer_body(name, "c", {"max_ack_pending": 5}), "action": "create"}
    error = await client.error(f"CONSUMER.CREATE.{name}.c", body)

    assert error == ApiError(10148, 400, "consumer already exists")


async def test_action_create_accepts_the_same_config(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "c")

    await client.ok(
        f"CONSUMER.CREATE.{name}.c", {**consumer_body(name, "c", {}), "action": "create"}
    )


async def test_action_update_needs_an_existing_consumer(client: Client, name: str) -> None:
    await client.stream(name)

    body = {**consumer_body(name, "c", {}), "action": "update"}
    error = await client.error(f"CONSUMER.CREATE.{name}.c", body)

    assert error == ApiError(10149, 400, "consumer does not exist")


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({}, {"deliver_policy": "new"}, "deliver policy can not be updated"),
        ({}, {"ack_policy": "none"}, "ack policy can not be updated"),
        ({}, {"replay_policy": "original"}, "replay policy can not be updated"),
        ({}, {"max_waiting": 3}, "max waiting can not be updated"),
        (
            {"deliver_policy": "by_start_sequence", "opt_start_seq": 1},
            {"deliver_policy": "by_start_sequence", "opt_start_seq": 2},
            "start sequence can not be updated",
        ),
    ],
)
async def test_update_cannot_change(
    client: Client, name: str, before: Json, after: Json, text: str
) -> None:
    await client.stream(name)
    await client.consumer(name, "c", **before)

    error = await client.consumer_error(name, "c", **after)

    assert error == ApiError(10012, 500, text)


async def test_an_updated_filter_recounts_what_is_pending(client: Client, name: str) -> None:
    await client.stream(name)
    for subject in "aabaa":
        await client.stored(f"{name}.{subject}")
    await client.consumer(name, "c", filter_subject=f"{name}.a")

    await client.consumer(name, "c", filter_subject=f"{name}.b")

    assert (await client.consumer_info(name, "c"))["num_pending"] == 1


# --- info, names, list, delete


async def test_info_follows_delivery_and_acks(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 5)
    await client.consumer(name, "c")
    got = await client.fetch(name, "c", 3)
    await client.ack(got[0])
    await client.ack(got[2])

    info = await client.consumer_info(name, "c")

    assert info["type"] == "io.nats.jetstream.api.v1.consumer_info_response"
    assert info["delivered"].pop("last_active")
    assert info["ack_floor"].pop("last_active")
    assert info["delivered"] == {"consumer_seq": 3, "stream_seq": 3}
    assert info["ack_floor"] == {"consumer_seq": 1, "stream_seq": 1}
    assert (info["num_ack_pending"], info["num_pending"]) == (1, 2)


async def test_info_counts_waiting_pulls(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "c")
    inbox = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    await client.settle()

    assert (await client.consumer_info(name, "c"))["num_waiting"] == 1
    await inbox.unsubscribe()


async def test_info_of_an_unknown_consumer(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.error(f"CONSUMER.INFO.{name}.c")

    assert error == ApiError(10014, 404, "consumer not found")


async def test_names_and_list_are_sorted(client: Client, name: str) -> None:
    await client.stream(name)
    for consumer in "cab":
        await client.consumer(name, consumer)

    names = await client.ok(f"CONSUMER.NAMES.{name}")
    listed = await client.ok(f"CONSUMER.LIST.{name}", {"offset": 1})

    assert names["consumers"] == ["a", "b", "c"]
    assert (names["total"], names["offset"], names["limit"]) == (3, 0, 1024)
    assert [entry["name"] for entry in listed["consumers"]] == ["b", "c"]
    assert (listed["total"], listed["offset"], listed["limit"]) == (3, 1, 256)


async def test_names_of_a_stream_without_consumers(client: Client, name: str) -> None:
    await client.stream(name)

    assert (await client.ok(f"CONSUMER.NAMES.{name}"))["consumers"] == []


async def test_delete_removes_the_consumer(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "c")

    answer = await client.ok(f"CONSUMER.DELETE.{name}.c")

    assert answer["type"] == "io.nats.jetstream.api.v1.consumer_delete_response"
    assert answer["success"] is True
    assert (await client.error(f"CONSUMER.DELETE.{name}.c")).err_code == 10014


async def test_a_deleted_consumer_starts_anew(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)
    await client.consumer(name, "c")
    await client.fetch(name, "c", 2)
    await client.ok(f"CONSUMER.DELETE.{name}.c")

    await client.consumer(name, "c")

    assert [m.num_delivered for m in await client.fetch(name, "c", 2)] == [1, 1]


async def add_consumers(client: Client, name: str, count: int) -> None:
    """Make so many at once; none may be refused."""
    inbox = await client.subscribe()
    for number in range(count):
        body = consumer_body(name, f"c{number}", {"mem_storage": True})
        await client.publish(
            f"$JS.API.CONSUMER.CREATE.{name}.c{number}",
            json.dumps(body).encode(),
            None,
            inbox.subject,
        )
    answers = await inbox.take(count, timeout_s=30)
    assert not [answer for answer in answers if b'"error"' in answer.payload]


async def test_a_stream_has_1000_consumers_at_most_unless_told_otherwise(
    client: Client, name: str
) -> None:
    await client.stream(name, storage="memory")
    await add_consumers(client, name, 1000)

    error = await client.consumer_error(name, "one-too-many")

    assert error == ApiError(10026, 400, "maximum consumers limit reached")


async def test_a_stream_with_a_higher_cap_of_its_own_has_more_consumers(
    client: Client, name: str
) -> None:
    await client.stream(name, storage="memory", max_consumers=1001)
    await add_consumers(client, name, 1001)

    error = await client.consumer_error(name, "one-too-many")

    assert error == ApiError(10026, 400, "maximum consumers limit reached")
