"""Streams: create, update, info, names, list, purge, delete, their limits, and every refusal."""

from datetime import datetime

import pytest

from tests.conformance.client import MS, SECOND, ApiError, Client, Json, eventually

# --- create


async def test_a_created_stream_shows_the_defaults(client: Client, name: str) -> None:
    answer = await client.stream(name)

    config = answer["config"]
    metadata = config.pop("metadata")
    assert config == {
        "name": name,
        "subjects": [f"{name}.>"],
        "retention": "limits",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "discard": "old",
        "storage": "file",
        "num_replicas": 1,
        "duplicate_window": 120 * SECOND,
        "compression": "none",
        "allow_direct": False,
        "mirror_direct": False,
        "sealed": False,
        "deny_delete": False,
        "deny_purge": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "consumer_limits": {},
    }
    assert metadata["_nats.level"] == "5"
    assert metadata["_nats.req.level"] == "0"


async def test_a_created_stream_is_empty(client: Client, name: str) -> None:
    answer = await client.stream(name)

    assert answer["type"] == "io.nats.jetstream.api.v1.stream_create_response"
    assert answer["did_create"] is True
    assert answer["state"] == {
        "messages": 0,
        "bytes": 0,
        "first_seq": 0,
        "first_ts": "0001-01-01T00:00:00Z",
        "last_seq": 0,
        "last_ts": "0001-01-01T00:00:00Z",
        "consumer_count": 0,
    }
    assert _is_time(answer["created"])
    assert _is_time(answer["ts"])


async def test_a_stream_without_subjects_listens_on_its_name(client: Client, name: str) -> None:
    answer = await client.stream(name, subjects=None)

    assert answer["config"]["subjects"] == [name]


async def test_creating_it_again_with_the_same_config_succeeds(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)

    again = await client.stream(name)

    assert again["did_create"] is True
    assert again["state"]["messages"] == 2


async def test_creating_it_again_with_another_config_fails(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.error(f"STREAM.CREATE.{name}", _body(name, max_msgs=5))

    assert error == ApiError(
        10058, 400, "stream name already in use with a different configuration"
    )


CONFIGS: dict[str, Json] = {
    "description": {"description": "what it is for"},
    "max_consumers": {"max_consumers": 3},
    "max_msgs": {"max_msgs": 3},
    "max_bytes": {"max_bytes": 5000},
    "max_age": {"max_age": 10 * SECOND},
    "max_msgs_per_subject": {"max_msgs_per_subject": 2},
    "max_msg_size": {"max_msg_size": 100},
    "discard": {"discard": "new"},
    "discard_new_per_subject": {
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": 1,
    },
    "storage": {"storage": "memory"},
    "retention interest": {"retention": "interest"},
    "retention workqueue": {"retention": "workqueue"},
    "no_ack": {"no_ack": True},
    "duplicate_window": {"duplicate_window": 5 * SECOND},
    "compression": {"compression": "s2"},
    "first_seq": {"first_seq": 100},
    "allow_direct": {"allow_direct": True},
    "deny_delete": {"deny_delete": True},
    "deny_purge": {"deny_purge": True},
    "allow_rollup_hdrs": {"allow_rollup_hdrs": True},
    "allow_msg_ttl": {"allow_msg_ttl": True},
    "allow_atomic": {"allow_atomic": True},
    "consumer_limits": {"consumer_limits": {"inactive_threshold": SECOND, "max_ack_pending": 7}},
    "subject_transform": {"subject_transform": {"src": "*.a", "dest": "b.{{wildcard(1)}}"}},
    "placement": {"placement": {"cluster": "east", "tags": ["ssd"]}},
    "metadata": {"metadata": {"owner": "team"}},
}


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS.keys())
async def test_the_config_shows_what_was_set(client: Client, name: str, fields: Json) -> None:
    created = await client.stream(name, **fields)
    info = await client.ok(f"STREAM.INFO.{name}")

    for config in (created["config"], info["config"]):
        for key, value in fields.items():
            shown = config[key]
            assert shown == value or (key == "metadata" and value.items() <= shown.items())


async def test_a_marker_ttl_turns_on_ttls_and_rollups(client: Client, name: str) -> None:
    answer = await client.stream(name, subject_delete_marker_ttl=SECOND)

    config = answer["config"]
    assert config["subject_delete_marker_ttl"] == SECOND
    assert config["allow_msg_ttl"] is True
    assert config["allow_rollup_hdrs"] is True


async def test_the_duplicate_window_is_not_longer_than_max_age(client: Client, name: str) -> None:
    answer = await client.stream(name, max_age=3 * SECOND)

    assert answer["config"]["duplicate_window"] == 3 * SECOND


async def test_limits_of_zero_mean_unlimited(client: Client, name: str) -> None:
    answer = await client.stream(
        name, max_msgs=0, max_bytes=0, max_consumers=0, max_msgs_per_subject=0, max_msg_size=0
    )

    config = answer["config"]
    assert config["max_msgs"] == config["max_bytes"] == config["max_msgs_per_subject"] == -1
    assert config["max_msg_size"] == config["max_consumers"] == -1


REFUSED: dict[str, tuple[Json, int, int]] = {
    "subjects that overlap each other": ({"subjects": ["o.*", "o.x"]}, 10052, 500),
    "an invalid subject": ({"subjects": ["a..b"]}, 10052, 500),
    "everything without no_ack": ({"subjects": [">"]}, 10052, 500),
    "the API's own subjects": ({"subjects": ["$JS.API.>"]}, 10052, 500),
    "six replicas": ({"num_replicas": 6}, 10052, 500),
    "negative replicas": ({"num_replicas": -1}, 10133, 400),
    "a negative max_age": ({"max_age": -1}, 10052, 500),
    "a max_age under 100 ms": ({"max_age": 5 * MS}, 10052, 500),
    "a duplicate window longer than max_age": (
        {"max_age": SECOND, "duplicate_window": 2 * SECOND},
        10052,
        500,
    ),
    "a duplicate window under 100 ms": ({"duplicate_window": MS}, 10052, 500),
    "discard new per subject alone": ({"discard_new_per_subject": True}, 10052, 500),
    "discard new per subject without a limit": (
        {"discard_new_per_subject": True, "discard": "new"},
        10052,
        500,
    ),
    "sealed at birth": ({"sealed": True}, 10052, 500),
    "mirror_direct without a mirror": ({"mirror_direct": True}, 10052, 500),
    "rollups with deny_purge": ({"allow_rollup_hdrs": True, "deny_purge": True}, 10052, 500),
    "a description over 4096": ({"description": "x" * 4097}, 10052, 500),
    "a marker ttl under a second": ({"subject_delete_marker_ttl": 500 * MS}, 10052, 500),
}


@pytest.mark.parametrize(("fields", "err_code", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_create_refuses(
    client: Client, name: str, fields: Json, err_code: int, code: int
) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(name, **fields))

    assert (error.err_code, error.code) == (err_code, code)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"subjects": ["o.*", "o.x"]}, 'subject "o.*" overlaps with "o.x"'),
        ({"num_replicas": 6}, "maximum replicas is 5"),
    ],
)
async def test_the_refusal_says(client: Client, name: str, fields: Json, text: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(name, **fields))

    assert text in error.description


async def test_three_replicas_need_a_cluster(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(name, num_replicas=3))

    assert error == ApiError(10074, 500, "replicas > 1 not supported in non-clustered mode")


async def test_subjects_of_another_stream_are_refused(client: Client, name: str) -> None:
    await client.stream(name, subjects=[f"{name}.a.*"])

    error = await client.error(f"STREAM.CREATE.{name}X", _body(f"{name}X", subjects=[f"{name}.>"]))

    assert error == ApiError(10065, 400, "subjects overlap with an existing stream")


async def test_the_name_must_be_the_one_in_the_subject(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(f"{name}X"))

    assert error == ApiError(10056, 400, "stream name in subject does not match request")


@pytest.mark.parametrize("letter", ["/", "\\"])
async def test_a_name_with_a_path_separator_is_refused(
    client: Client, name: str, letter: str
) -> None:
    bad = f"{name}{letter}x"
    error = await client.error(f"STREAM.CREATE.{bad}", {"name": bad, "subjects": [name]})

    assert error == ApiError(10128, 400, "Stream name can not contain path separators")


async def test_an_unknown_field_is_refused(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(name, colour="red"))

    assert error == ApiError(10025, 400, 'invalid JSON: json: unknown field "colour"')


async def test_broken_json_is_refused_with_its_place(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", b'{"name": }')

    assert (error.err_code, error.code) == (10025, 400)
    assert error.description.startswith("invalid JSON: ")
    assert " at offset " in error.description


@pytest.mark.parametrize("field", ["retention", "discard", "storage", "compression"])
async def test_an_unknown_choice_is_refused(client: Client, name: str, field: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(name, **{field: "foo"}))

    assert (error.err_code, error.code) == (10025, 400)
    assert error.description.startswith("invalid JSON: ")


async def test_an_unknown_retention_is_quoted_twice(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", _body(name, retention="foo"))

    assert error.description == 'invalid JSON: can not unmarshal "\\"foo\\""'


# --- info


async def test_info_of_an_unknown_stream(client: Client, name: str) -> None:
    assert await client.error(f"STREAM.INFO.{name}") == ApiError(10059, 404, "stream not found")


async def test_info_shows_the_state(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"12345")
    await client.stored(f"{name}.b", b"", {"K": "v"})

    info = await client.ok(f"STREAM.INFO.{name}")
    state = info["state"]

    assert info["type"] == "io.nats.jetstream.api.v1.stream_info_response"
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (2, 1, 2)
    assert state["num_subjects"] == 2
    assert _is_time(state["first_ts"])
    assert _is_time(state["last_ts"])


@pytest.mark.parametrize(
    ("storage", "per_message", "per_headers"), [("file", 22 + 8, 4), ("memory", 16, 0)]
)
async def test_bytes_follow_the_storages_formula(
    client: Client, name: str, storage: str, per_message: int, per_headers: int
) -> None:
    await client.stream(name, storage=storage)
    subject, block = f"{name}.a", "NATS/1.0\r\nK: v\r\n\r\n"

    await client.stored(subject, b"12345")
    first = (await client.state(name))["bytes"]
    await client.stored(subject, b"12", {"K": "v"})
    second = (await client.state(name))["bytes"]

    assert first == len(subject) + 5 + per_message
    assert second - first == len(subject) + len(block) + 2 + per_message + per_headers


async def test_info_counts_subjects_on_request(client: Client, name: str) -> None:
    await client.stream(name)
    for subject in ("a", "b", "a", "c.d"):
        await client.stored(f"{name}.{subject}")

    everything = await client.ok(f"STREAM.INFO.{name}", {"subjects_filter": ">"})
    some = await client.ok(f"STREAM.INFO.{name}", {"subjects_filter": f"{name}.*"})

    assert everything["state"]["subjects"] == {f"{name}.a": 2, f"{name}.b": 1, f"{name}.c.d": 1}
    assert some["state"]["subjects"] == {f"{name}.a": 2, f"{name}.b": 1}
    assert (some["total"], some["offset"], some["limit"]) == (2, 0, 100_000)


async def test_info_of_subjects_that_are_not_there_has_no_page(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 1)

    answer = await client.ok(f"STREAM.INFO.{name}", {"subjects_filter": f"{name}.nothing"})

    assert "subjects" not in answer["state"]
    assert (answer["total"], answer["offset"], answer["limit"]) == (0, 0, 0)


async def test_info_lists_deleted_sequences_on_request(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 6)
    for seq in (1, 3, 4):
        await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": seq})

    state = await client.state(name, deleted_details=True)

    assert (state["first_seq"], state["messages"]) == (2, 3)
    assert state["num_deleted"] == 2
    assert state["deleted"] == [3, 4]


async def test_info_counts_consumers(client: Client, name: str) -> None:
    await client.stream(name)
    await client.consumer(name, "one")
    await client.consumer(name, "two")

    assert (await client.state(name))["consumer_count"] == 2


async def test_account_info_counts_streams(client: Client, name: str) -> None:
    before = await client.ok("INFO")
    await client.stream(name)
    after = await client.ok("INFO")

    assert after["type"] == "io.nats.jetstream.api.v1.account_info_response"
    assert after["streams"] == before["streams"] + 1
    assert after["api"]["level"] == 5
    assert after["limits"]["max_streams"] == -1


# --- names and list


async def test_names_of_the_streams_that_take_a_subject(client: Client, name: str) -> None:
    await client.stream(name, subjects=[f"{name}.a.*"])
    await client.stream(f"{name}B", subjects=[f"{name}.b.*"])

    one = await client.ok("STREAM.NAMES", {"subject": f"{name}.a.x"})
    both = await client.ok("STREAM.NAMES", {"subject": f"{name}.>"})

    assert one["streams"] == [name]
    assert sorted(both["streams"]) == [name, f"{name}B"]
    assert (both["total"], both["offset"], both["limit"]) == (2, 0, 1024)
    assert both["type"] == "io.nats.jetstream.api.v1.stream_names_response"


async def test_names_without_a_match_are_null(client: Client, name: str) -> None:
    answer = await client.ok("STREAM.NAMES", {"subject": f"{name}.nothing"})

    assert (answer["streams"], answer["total"]) == (None, 0)


async def test_list_shows_whole_streams(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 3)

    answer = await client.ok("STREAM.LIST", {"subject": f"{name}.x"})

    assert [entry["config"]["name"] for entry in answer["streams"]] == [name]
    assert answer["streams"][0]["state"]["messages"] == 3
    assert (answer["total"], answer["limit"]) == (1, 256)


async def test_list_without_a_match_is_empty(client: Client, name: str) -> None:
    answer = await client.ok("STREAM.LIST", {"subject": f"{name}.nothing"})

    assert answer["streams"] == []


async def test_names_are_sorted_and_start_at_the_offset(client: Client, name: str) -> None:
    for letter in "cab":
        await client.stream(f"{name}{letter}", subjects=[f"{name}.{letter}"])

    answer = await client.ok("STREAM.NAMES", {"subject": f"{name}.*", "offset": 1})

    assert answer["streams"] == [f"{name}b", f"{name}c"]
    assert (answer["total"], answer["offset"]) == (3, 1)


# --- update


async def test_update_replaces_the_whole_config(client: Client, name: str) -> None:
    await client.stream(name, max_msgs=10, description="old")

    answer = await client.ok(f"STREAM.UPDATE.{name}", _body(name, max_bytes=4000))

    assert answer["type"] == "io.nats.jetstream.api.v1.stream_update_response"
    assert answer["config"]["max_bytes"] == 4000
    assert answer["config"]["max_msgs"] == -1
    assert "description" not in answer["config"]


async def test_update_applies_a_lower_limit_at_once(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 5)

    await client.ok(f"STREAM.UPDATE.{name}", _body(name, max_msgs=2))

    state = await client.state(name)
    assert (state["messages"], state["first_seq"]) == (2, 4)


async def test_update_changes_the_subjects_listened_to(client: Client, name: str) -> None:
    await client.stream(name, subjects=[f"{name}.a"])

    await client.ok(f"STREAM.UPDATE.{name}", _body(name, subjects=[f"{name}.b"]))

    assert await client.stored(f"{name}.b") == 1
    answer = await client.request(f"{name}.a")
    assert answer.status == (503, "")


async def test_update_of_an_unknown_stream(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.UPDATE.{name}", _body(name))

    assert error == ApiError(10059, 404, "stream not found")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"storage": "file"}, {"storage": "memory"}),
        ({"retention": "limits"}, {"retention": "workqueue"}),
        ({"deny_delete": True}, {"deny_delete": False}),
        ({"deny_purge": True}, {"deny_purge": False}),
        ({"allow_msg_ttl": True}, {"allow_msg_ttl": False}),
    ],
    ids=["storage", "retention", "deny_delete", "deny_purge", "allow_msg_ttl"],
)
async def test_update_cannot_change(client: Client, name: str, before: Json, after: Json) -> None:
    await client.stream(name, **before)

    error = await client.error(f"STREAM.UPDATE.{name}", _body(name, **after))

    assert (error.err_code, error.code) == (10052, 500)


async def test_a_sealed_stream_takes_nothing(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 1)

    answer = await client.ok(f"STREAM.UPDATE.{name}", _body(name, sealed=True))

    assert answer["config"]["sealed"] is True
    assert answer["config"]["deny_delete"] is True
    assert answer["config"]["deny_purge"] is True
    assert answer["config"]["discard"] == "new"
    error = await client.refused(f"{name}.a")
    assert error == ApiError(10109, 400, "invalid operation on sealed stream")


# --- purge and delete


async def test_purge_removes_everything(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 3)

    answer = await client.ok(f"STREAM.PURGE.{name}")

    assert answer["type"] == "io.nats.jetstream.api.v1.stream_purge_response"
    assert (answer["success"], answer["purged"]) == (True, 3)
    state = await client.state(name)
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (0, 4, 3)


@pytest.mark.parametrize(
    ("request_body", "purged", "left"),
    [
        ({"filter": "{name}.a"}, 3, [2, 4, 6]),
        ({"filter": "{name}.*"}, 6, []),
        ({"seq": 4}, 3, [4, 5, 6]),
        ({"keep": 2}, 4, [5, 6]),
        ({"filter": "{name}.a", "keep": 1}, 2, [2, 4, 5, 6]),
        ({"filter": "{name}.a", "seq": 4}, 2, [2, 4, 5, 6]),
        ({"filter": "{name}.nothing"}, 0, [1, 2, 3, 4, 5, 6]),
    ],
)
async def test_purge_by(
    client: Client, name: str, request_body: Json, purged: int, left: list[int]
) -> None:
    await client.stream(name)
    for subject in "ababab":
        await client.stored(f"{name}.{subject}")
    if "filter" in request_body:
        request_body = {**request_body, "filter": request_body["filter"].format(name=name)}

    answer = await client.ok(f"STREAM.PURGE.{name}", request_body)

    assert answer["purged"] == purged
    assert await _sequences(client, name) == left


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_purge_beyond_the_end_moves_the_sequence(
    client: Client, name: str, storage: str
) -> None:
    await client.stream(name, storage=storage)
    await client.fill(name, 2)

    await client.ok(f"STREAM.PURGE.{name}", {"seq": 10})

    state = await client.state(name)
    assert (state["first_seq"], state["last_seq"]) == (10, 9)
    assert await client.stored(f"{name}.a") == 10


async def test_purge_takes_either_seq_or_keep(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.error(f"STREAM.PURGE.{name}", {"seq": 2, "keep": 1})

    assert error == ApiError(10003, 400, "bad request")


async def test_purge_is_refused_where_denied(client: Client, name: str) -> None:
    await client.stream(name, deny_purge=True)

    error = await client.error(f"STREAM.PURGE.{name}")

    assert (error.err_code, error.code) == (10110, 500)


async def test_purge_of_an_unknown_stream(client: Client, name: str) -> None:
    assert (await client.error(f"STREAM.PURGE.{name}")).err_code == 10059


async def test_delete_removes_the_stream_and_its_interest(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 1)

    answer = await client.ok(f"STREAM.DELETE.{name}")

    assert answer["type"] == "io.nats.jetstream.api.v1.stream_delete_response"
    assert answer["success"] is True
    assert (await client.error(f"STREAM.INFO.{name}")).err_code == 10059
    assert (await client.request(f"{name}.a")).status == (503, "")


async def test_delete_of_an_unknown_stream(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.DELETE.{name}")

    assert error == ApiError(10059, 404, "stream not found")


async def test_delete_takes_no_body(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.error(f"STREAM.DELETE.{name}", {"x": 1})

    assert error == ApiError(10038, 400, "expected an empty request payload")


async def test_a_stream_made_anew_starts_at_one(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 3)
    await client.ok(f"STREAM.DELETE.{name}")

    await client.stream(name)

    assert await client.stored(f"{name}.a") == 1


# --- limits


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_max_msgs_drops_the_oldest(client: Client, name: str, storage: str) -> None:
    await client.stream(name, storage=storage, max_msgs=3)
    await client.fill(name, 5)

    assert await _sequences(client, name) == [3, 4, 5]


async def test_max_bytes_drops_the_oldest(client: Client, name: str) -> None:
    await client.stream(name, max_bytes=400)
    for _ in range(10):
        await client.stored(f"{name}.a", b"x" * 60)

    state = await client.state(name)
    assert 0 < state["bytes"] <= 400
    assert state["last_seq"] == 10


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_max_msgs_per_subject_keeps_the_newest_of_each(
    client: Client, name: str, storage: str
) -> None:
    await client.stream(name, storage=storage, max_msgs_per_subject=1)
    for subject in "abacb":
        await client.stored(f"{name}.{subject}")

    assert await _sequences(client, name) == [3, 4, 5]


async def test_max_msgs_per_subject_drops_the_oldest_even_with_discard_new(
    client: Client, name: str
) -> None:
    await client.stream(name, max_msgs_per_subject=1, discard="new")
    await client.fill(name, 3)

    assert await _sequences(client, name) == [3]


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_max_age_drops_what_is_too_old_even_while_idle(
    client: Client, name: str, storage: str
) -> None:
    await client.stream(name, storage=storage, max_age=200 * MS)
    await client.fill(name, 2)

    async def is_empty() -> bool:
        return bool((await client.state(name))["messages"] == 0)

    await eventually(is_empty)
    assert (await client.state(name))["first_seq"] == 3


async def test_first_seq_is_the_first_sequence(client: Client, name: str) -> None:
    await client.stream(name, first_seq=1000)

    assert await client.stored(f"{name}.a") == 1000
    state = await client.state(name)
    assert (state["first_seq"], state["last_seq"], state["messages"]) == (1000, 1000, 1)


async def test_first_seq_shows_before_the_first_message(client: Client, name: str) -> None:
    await client.stream(name, first_seq=1000)

    state = await client.state(name)
    assert (state["first_seq"], state["last_seq"], state["messages"]) == (1000, 999, 0)


async def test_a_first_seq_of_1_shows_at_once(client: Client, name: str) -> None:
    await client.stream(name, first_seq=1)

    state = await client.state(name)
    assert (state["first_seq"], state["last_seq"]) == (1, 0)


async def test_a_stream_holds_its_consumers_limit(client: Client, name: str) -> None:
    await client.stream(name, max_consumers=1)
    await client.consumer(name, "one")

    error = await client.consumer_error(name, "two")

    assert error == ApiError(10026, 400, "maximum consumers limit reached")


# --- the API as a whole


@pytest.mark.parametrize(
    "subject", ["NOTHING", "STREAM.NOTHING.x", "STREAM.INFO", "STREAM.CREATE.a.b", "META.x"]
)
async def test_an_unknown_api_subject_is_not_answered(client: Client, subject: str) -> None:
    inbox = await client.subscribe()
    await client.publish(f"$JS.API.{subject}", b"", reply=inbox.subject)

    assert await inbox.quiet()


async def test_clustering_requests_need_a_cluster(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.error(f"STREAM.LEADER.STEPDOWN.{name}")

    assert error == ApiError(10010, 503, "JetStream clustering support required")


async def test_a_required_api_level_that_is_met_passes(client: Client, name: str) -> None:
    await client.stream(name)

    await client.ok(f"STREAM.INFO.{name}", headers={"Nats-Required-Api-Level": "5"})


@pytest.mark.parametrize("level", ["6", "x"])
async def test_a_required_api_level_that_is_not_met_is_refused(
    client: Client, name: str, level: str
) -> None:
    await client.stream(name)

    error = await client.error(f"STREAM.INFO.{name}", headers={"Nats-Required-Api-Level": level})

    assert error == ApiError(10185, 412, "JetStream minimum api level required")


def _body(name: str, **config: object) -> Json:
    return {"name": name, "subjects": [f"{name}.>"], **config}


async def _sequences(client: Client, stream: str) -> list[int]:
    state = await client.state(stream, deleted_details=True)
    gone = set(state.get("deleted", []))
    return [seq for seq in range(state["first_seq"], state["last_seq"] + 1) if seq not in gone]


def _is_time(text: str) -> bool:
    return datetime.fromisoformat(text).tzinfo is not None
