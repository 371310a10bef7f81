"""Publishing to streams: acknowledgements, deduplication, expectations, TTLs, rollups, discards."""

import itertools
import json

import pytest

from tests.conformance.client import MS, SECOND, ApiError, Client, Headers, Json, encode, eventually

# --- acknowledgements


async def test_the_acknowledgement_names_stream_and_sequence(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.request(f"{name}.a", b"x")

    assert answer.payload == b'{"stream":"%s","seq":1}' % name.encode()
    assert answer.header_block is None


async def test_the_error_acknowledgement_has_sequence_0(client: Client, name: str) -> None:
    await client.stream(name)

    answer = await client.request(f"{name}.a", b"x", {"Nats-Expected-Stream": "OTHER"})

    assert json.loads(answer.payload) == {
        "error": {"code": 400, "err_code": 10060, "description": "expected stream does not match"},
        "stream": name,
        "seq": 0,
    }


async def test_nothing_is_acknowledged_without_a_reply(client: Client, name: str) -> None:
    await client.stream(name)
    inbox = await client.subscribe()
    await client.publish(f"{name}.a", b"x")
    await client.settle()

    await eventually_holds(client, name, 1)
    assert await inbox.quiet(0.05)


async def test_a_stream_with_no_ack_does_not_answer(client: Client, name: str) -> None:
    await client.stream(name, no_ack=True)
    inbox = await client.subscribe()
    await client.publish(f"{name}.a", b"x", reply=inbox.subject)

    await eventually_holds(client, name, 1)
    assert await inbox.quiet(0.05)


async def test_acknowledgements_of_a_pipeline_come_in_order(client: Client, name: str) -> None:
    await client.stream(name)
    inbox = await client.subscribe()
    await client.raw.send(
        b"".join(encode(f"{name}.a", b"%d" % n, reply=inbox.subject) for n in range(500))
    )

    acks = await inbox.take(500)

    assert [json.loads(ack.payload)["seq"] for ack in acks] == list(range(1, 501))


async def test_what_is_stored_is_what_was_sent(client: Client, name: str) -> None:
    await client.stream(name)
    payload = bytes(range(256))
    await client.stored(f"{name}.a", payload, [("B", "2"), ("A", "1"), ("B", "3")])
    await client.consumer(name, "c")

    [got] = await client.fetch(name, "c", 1)

    assert got.subject == f"{name}.a"
    assert got.payload == payload
    assert got.header_block == b"NATS/1.0\r\nB: 2\r\nA: 1\r\nB: 3\r\n\r\n"


async def test_subscribers_see_what_a_stream_stores(client: Client, name: str) -> None:
    await client.stream(name)
    listener = await client.subscribe(f"{name}.*")

    await client.stored(f"{name}.a", b"x")

    assert (await listener.next()).payload == b"x"


async def test_a_message_over_max_msg_size_is_refused(client: Client, name: str) -> None:
    await client.stream(name, max_msg_size=10)

    assert await client.stored(f"{name}.a", b"x" * 10) == 1
    error = await client.refused(f"{name}.a", b"x" * 11)

    assert error == ApiError(10054, 400, "message size exceeds maximum allowed")


async def test_headers_count_in_the_message_size(client: Client, name: str) -> None:
    await client.stream(name, max_msg_size=20)

    assert (await client.refused(f"{name}.a", b"x" * 10, {"A": "1"})).err_code == 10054


async def test_headers_over_64k_are_refused(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.refused(f"{name}.a", b"", {"A": "x" * 66_000})

    assert error == ApiError(10097, 400, "header size exceeds maximum allowed of 64k")


# --- deduplication


async def test_a_repeated_message_id_is_acknowledged_as_a_duplicate(
    client: Client, name: str
) -> None:
    await client.stream(name)
    headers = {"Nats-Msg-Id": "one"}
    await client.stored(f"{name}.a", b"x", headers)
    await client.stored(f"{name}.a", b"y", {"Nats-Msg-Id": "two"})

    answer = await client.request(f"{name}.a", b"z", headers)

    assert answer.payload == b'{"stream":"%s","seq":1,"duplicate": true}' % name.encode()
    assert (await client.state(name))["messages"] == 2


async def test_a_message_id_is_known_for_the_whole_stream(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"x", {"Nats-Msg-Id": "one"})

    answer = await client.store(f"{name}.b", b"x", {"Nats-Msg-Id": "one"})

    assert answer["duplicate"] is True


async def test_a_message_id_is_forgotten_after_the_window(client: Client, name: str) -> None:
    await client.stream(name, duplicate_window=100 * MS)
    headers = {"Nats-Msg-Id": "one"}
    await client.stored(f"{name}.a", b"x", headers)

    async def is_new() -> bool:
        return "duplicate" not in await client.store(f"{name}.a", b"x", headers)

    await eventually(is_new)


async def test_a_refused_message_leaves_its_id_unused(client: Client, name: str) -> None:
    await client.stream(name)
    bad = {"Nats-Msg-Id": "one", "Nats-Expected-Last-Sequence": "7"}
    await client.refused(f"{name}.a", b"x", bad)

    answer = await client.store(f"{name}.a", b"x", {"Nats-Msg-Id": "one"})

    assert answer == {"stream": name, "seq": 1}


async def test_the_id_of_a_deleted_message_stays_known(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"x", {"Nats-Msg-Id": "one"})
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 1})

    assert (await client.store(f"{name}.a", b"x", {"Nats-Msg-Id": "one"}))["duplicate"] is True


async def test_duplicates_inside_one_pipeline_are_found(client: Client, name: str) -> None:
    await client.stream(name)
    inbox = await client.subscribe()
    ids = ["a", "b", "a", "c", "b"]
    await client.raw.send(
        b"".join(encode(f"{name}.x", b"", {"Nats-Msg-Id": i}, inbox.subject) for i in ids)
    )

    acks = [json.loads(ack.payload) for ack in await inbox.take(5)]

    assert [(ack["seq"], ack.get("duplicate", False)) for ack in acks] == [
        (1, False),
        (2, False),
        (1, True),
        (3, False),
        (2, True),
    ]


# --- expectations

EXPECTED_STREAM = "Nats-Expected-Stream"
LAST = "Nats-Expected-Last-Sequence"
LAST_ID = "Nats-Expected-Last-Msg-Id"
LAST_SUBJECT = "Nats-Expected-Last-Subject-Sequence"
LAST_SUBJECT_FILTER = "Nats-Expected-Last-Subject-Sequence-Subject"


async def test_the_expected_stream_is_checked(client: Client, name: str) -> None:
    await client.stream(name)

    assert await client.stored(f"{name}.a", b"", {EXPECTED_STREAM: name}) == 1
    error = await client.refused(f"{name}.a", b"", {EXPECTED_STREAM: "X"})

    assert error == ApiError(10060, 400, "expected stream does not match")


async def test_the_expected_last_sequence_is_checked(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)

    error = await client.refused(f"{name}.a", b"", {LAST: "1"})
    seq = await client.stored(f"{name}.a", b"", {LAST: "2"})

    assert error == ApiError(10071, 400, "wrong last sequence: 2")
    assert seq == 3


async def test_an_expected_last_sequence_of_0_means_an_empty_stream(
    client: Client, name: str
) -> None:
    await client.stream(name)

    assert await client.stored(f"{name}.a", b"", {LAST: "0"}) == 1
    assert (await client.refused(f"{name}.a", b"", {LAST: "0"})).err_code == 10071


async def test_the_expected_last_sequence_of_the_subject_is_checked(
    client: Client, name: str
) -> None:
    await client.stream(name)
    for subject in "abb":
        await client.stored(f"{name}.{subject}")

    error = await client.refused(f"{name}.a", b"", {LAST_SUBJECT: "3"})
    seq = await client.stored(f"{name}.a", b"", {LAST_SUBJECT: "1"})

    assert error == ApiError(10071, 400, "wrong last sequence: 1")
    assert seq == 4


async def test_an_expected_subject_sequence_of_0_means_a_new_subject(
    client: Client, name: str
) -> None:
    await client.stream(name)
    await client.stored(f"{name}.b")

    assert await client.stored(f"{name}.a", b"", {LAST_SUBJECT: "0"}) == 2
    error = await client.refused(f"{name}.a", b"", {LAST_SUBJECT: "0"})

    assert error == ApiError(10071, 400, "wrong last sequence: 2")


async def test_the_last_sequence_of_another_subject_can_be_expected(
    client: Client, name: str
) -> None:
    await client.stream(name)
    for subject in ("k.a", "k.b", "other"):
        await client.stored(f"{name}.{subject}")

    def expecting(seq: int) -> Headers:
        return {LAST_SUBJECT: str(seq), LAST_SUBJECT_FILTER: f"{name}.k.*"}

    error = await client.refused(f"{name}.k.c", b"", expecting(1))
    seq = await client.stored(f"{name}.k.c", b"", expecting(2))

    assert error == ApiError(10071, 400, "wrong last sequence: 2")
    assert seq == 4


async def test_the_subject_to_compare_needs_a_sequence(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.refused(f"{name}.a", b"", {LAST_SUBJECT_FILTER: f"{name}.a"})

    assert error.err_code == 10193


async def test_the_expected_last_message_id_is_checked(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"", {"Nats-Msg-Id": "one"})

    error = await client.refused(f"{name}.a", b"", {LAST_ID: "zero"})
    seq = await client.stored(f"{name}.a", b"", {LAST_ID: "one"})

    assert error == ApiError(10070, 400, "wrong last msg ID: one")
    assert seq == 2


async def test_a_message_without_an_id_ends_the_chain(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"", {"Nats-Msg-Id": "one"})
    await client.stored(f"{name}.a", b"")

    error = await client.refused(f"{name}.a", b"", {LAST_ID: "one"})

    assert error == ApiError(10070, 400, "wrong last msg ID: ")


async def test_a_chain_of_message_ids_breaks_at_a_foreign_publish(
    client: Client, name: str
) -> None:
    """Each link expects the one before: what follows a stranger is refused, nothing is skipped."""
    await client.stream(name)
    inbox = await client.subscribe()
    chain = [
        encode(
            f"{name}.a",
            b"%d" % n,
            {"Nats-Msg-Id": str(n)} | ({LAST_ID: str(n - 1)} if n else {}),
            inbox.subject,
        )
        for n in range(10)
    ]
    chain.insert(5, encode(f"{name}.a", b"foreign", None, inbox.subject))
    await client.raw.send(b"".join(chain))

    acks = [json.loads(ack.payload) for ack in await inbox.take(11)]

    assert [ack["seq"] for ack in acks[:6]] == [1, 2, 3, 4, 5, 6]
    assert {ack["error"]["err_code"] for ack in acks[6:]} == {10070}
    assert await client.payloads_of(name) == [b"0", b"1", b"2", b"3", b"4", b"foreign"]


async def test_a_repeated_link_of_the_chain_is_a_duplicate(client: Client, name: str) -> None:
    """A publisher that resumes sends the link it is unsure of again; the chain must not break."""
    await client.stream(name)
    await client.stored(f"{name}.a", b"", {"Nats-Msg-Id": "1"})
    link: Headers = {"Nats-Msg-Id": "2", LAST_ID: "1"}
    await client.stored(f"{name}.a", b"", link)

    again = await client.store(f"{name}.a", b"", link)

    assert again == {"stream": name, "seq": 2, "duplicate": True}


async def test_expectations_are_checked_before_duplicates(client: Client, name: str) -> None:
    await client.stream(name)
    headers: Headers = {"Nats-Msg-Id": "1", LAST: "0"}
    await client.stored(f"{name}.a", b"", headers)

    assert (await client.refused(f"{name}.a", b"", headers)).err_code == 10071


async def test_a_pipeline_of_expected_sequences_stops_at_a_gap(client: Client, name: str) -> None:
    await client.stream(name)
    inbox = await client.subscribe()
    numbers = [0, 1, 5, 2, 3]
    await client.raw.send(
        b"".join(encode(f"{name}.a", b"", {LAST: str(n)}, inbox.subject) for n in numbers)
    )

    acks = [json.loads(ack.payload) for ack in await inbox.take(5)]

    assert [ack["seq"] for ack in acks] == [1, 2, 0, 3, 4]


# --- time to live


@pytest.mark.parametrize("ttl", ["1", "1s", "1000ms", "1m", "never", "3600"])
async def test_the_ttl_is_taken(client: Client, name: str, ttl: str) -> None:
    await client.stream(name, allow_msg_ttl=True)

    assert await client.stored(f"{name}.a", b"", {"Nats-TTL": ttl}) == 1


@pytest.mark.parametrize("ttl", ["0", "-1", "0.5s", "soon", "500ms", "1x"])
async def test_the_ttl_is_refused(client: Client, name: str, ttl: str) -> None:
    await client.stream(name, allow_msg_ttl=True)

    error = await client.refused(f"{name}.a", b"", {"Nats-TTL": ttl})

    assert error == ApiError(10165, 400, "invalid per-message TTL")


async def test_a_ttl_needs_a_stream_that_allows_it(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.refused(f"{name}.a", b"", {"Nats-TTL": "1"})

    assert error == ApiError(10166, 400, "per-message TTL is disabled")


async def test_a_message_goes_when_its_ttl_is_over(client: Client, name: str) -> None:
    await client.stream(name, allow_msg_ttl=True)
    await client.stored(f"{name}.a", b"stays")
    await client.stored(f"{name}.a", b"goes", {"Nats-TTL": "1"})

    await eventually_holds(client, name, 1)
    assert await client.payloads_of(name) == [b"stays"]


async def test_a_message_that_never_expires_outlives_max_age(client: Client, name: str) -> None:
    await client.stream(name, allow_msg_ttl=True, max_age=300 * MS)
    await client.stored(f"{name}.a", b"stays", {"Nats-TTL": "never"})
    await client.stored(f"{name}.b", b"goes")

    await eventually_holds(client, name, 1)
    assert await client.payloads_of(name) == [b"stays"]


@pytest.mark.parametrize("storage", ["file", "memory"])
@pytest.mark.parametrize("cause", ["max_age", "ttl"])
async def test_a_marker_stands_where_the_last_message_of_a_subject_expired(
    client: Client, name: str, cause: str, storage: str
) -> None:
    await client.stream(
        name,
        storage=storage,
        subject_delete_marker_ttl=SECOND,
        max_age=300 * MS if cause == "max_age" else 0,
        duplicate_window=100 * MS,
    )
    await client.stored(f"{name}.a", b"x", {"Nats-TTL": "1"} if cause == "ttl" else None)
    await client.consumer(name, "c", deliver_policy="by_start_sequence", opt_start_seq=2)

    [marker] = await client.fetch(name, "c", 1)

    assert (marker.subject, marker.payload) == (f"{name}.a", b"")
    assert marker.headers == [
        ("Nats-Marker-Reason", "MaxAge"),
        ("Nats-TTL", "1s"),
        ("Nats-Rollup", "sub"),
    ]


async def test_no_marker_while_the_subject_still_has_messages(client: Client, name: str) -> None:
    await client.stream(name, subject_delete_marker_ttl=SECOND)
    await client.stored(f"{name}.a", b"goes", {"Nats-TTL": "1"})
    await client.stored(f"{name}.a", b"stays", {"Nats-TTL": "never"})

    await eventually_holds(client, name, 1)
    assert (await client.state(name))["last_seq"] == 2


@pytest.mark.parametrize(
    ("request_name", "body"), [("STREAM.PURGE", {}), ("STREAM.MSG.DELETE", {"seq": 1})]
)
async def test_a_client_that_removes_the_last_message_leaves_no_marker(
    client: Client, name: str, request_name: str, body: Json
) -> None:
    await client.stream(name, subject_delete_marker_ttl=SECOND)
    await client.fill(name, 1)

    await client.ok(f"{request_name}.{name}", body or None)

    state = await client.state(name)
    assert (state["messages"], state["last_seq"]) == (0, 1)


async def test_a_marker_goes_by_its_own_ttl(client: Client, name: str) -> None:
    await client.stream(name, subject_delete_marker_ttl=SECOND)
    await client.stored(f"{name}.a", b"", {"Nats-TTL": "1"})
    await eventually_reaches(client, name, 2)

    await eventually_holds(client, name, 0)
    assert (await client.state(name))["last_seq"] == 2


# --- rollups and discards


async def test_a_rollup_of_the_subject_leaves_the_other_subjects(client: Client, name: str) -> None:
    await client.stream(name, allow_rollup_hdrs=True)
    for subject in "aabb":
        await client.stored(f"{name}.{subject}", subject.encode())

    await client.stored(f"{name}.a", b"sum", {"Nats-Rollup": "sub"})

    assert await client.payloads_of(name) == [b"b", b"b", b"sum"]


async def test_a_rollup_of_everything_leaves_one_message(client: Client, name: str) -> None:
    await client.stream(name, allow_rollup_hdrs=True)
    for subject in "aabb":
        await client.stored(f"{name}.{subject}")

    await client.stored(f"{name}.c", b"sum", {"Nats-Rollup": "all"})

    assert await client.payloads_of(name) == [b"sum"]


@pytest.mark.parametrize(("allowed", "value"), [(False, "sub"), (True, "some")])
async def test_a_rollup_is_refused(client: Client, name: str, allowed: bool, value: str) -> None:
    await client.stream(name, allow_rollup_hdrs=allowed)

    error = await client.refused(f"{name}.a", b"", {"Nats-Rollup": value})

    assert (error.err_code, error.code) == (10111, 500)


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_discard_new_refuses_when_full(client: Client, name: str, storage: str) -> None:
    await client.stream(name, storage=storage, discard="new", max_msgs=2)
    await client.fill(name, 2)

    error = await client.refused(f"{name}.a")

    assert error == ApiError(10077, 503, "maximum messages exceeded")
    assert (await client.state(name))["last_seq"] == 2


async def test_discard_new_refuses_too_many_bytes(client: Client, name: str) -> None:
    await client.stream(name, discard="new", max_bytes=200)
    await client.stored(f"{name}.a", b"x" * 100)

    error = await client.refused(f"{name}.a", b"x" * 100)

    assert error == ApiError(10077, 503, "maximum bytes exceeded")


@pytest.mark.parametrize(("storage", "per_message"), [("file", 30), ("memory", 16)])
async def test_discard_new_takes_exactly_max_bytes(
    client: Client, name: str, storage: str, per_message: int
) -> None:
    size = per_message + len(f"{name}.a") + 10
    await client.stream(name, storage=storage, discard="new", max_bytes=3 * size)

    for _ in range(3):
        await client.stored(f"{name}.a", b"x" * 10)

    assert (await client.state(name))["bytes"] == 3 * size
    assert (await client.refused(f"{name}.a", b"")).description == "maximum bytes exceeded"


async def test_discard_new_takes_messages_again_after_a_delete(client: Client, name: str) -> None:
    await client.stream(name, discard="new", max_msgs=1)
    await client.fill(name, 1)
    await client.refused(f"{name}.a")
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 1})

    assert await client.stored(f"{name}.a") == 2


async def test_discard_new_per_subject_refuses_what_the_subject_has(
    client: Client, name: str
) -> None:
    await client.stream(name, discard="new", discard_new_per_subject=True, max_msgs_per_subject=1)
    await client.stored(f"{name}.a")

    error = await client.refused(f"{name}.a")

    assert error == ApiError(10077, 503, "maximum messages per subject exceeded")
    assert await client.stored(f"{name}.b") == 2


async def test_a_stream_source_header_is_the_servers_alone(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.refused(f"{name}.a", b"", {"Nats-Stream-Source": "X 1 > > x y"})

    assert error == ApiError(10227, 400, "message stream source header is not allowed")


FAULTS: dict[str, tuple[dict[str, str], bytes, int]] = {
    "size": ({}, b"x" * 400, 10054),
    "batch": ({"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"}, b"", 10174),
    "stream": ({EXPECTED_STREAM: "OTHER"}, b"", 10060),
    "ttl off": ({"Nats-TTL": "5"}, b"", 10166),
    "subject sequence": ({LAST_SUBJECT: "88"}, b"", 10071),
    "source": ({"Nats-Stream-Source": "X 1 > > x y"}, b"", 10227),
    "message id": ({LAST_ID: "zero"}, b"", 10070),
    "rollup": ({"Nats-Rollup": "none"}, b"", 10111),
    "ttl": ({"Nats-TTL": "-5"}, b"", 10165),
    "full": ({}, b"", 10077),
}
"""In the order in which the server looks for them: headers, payload, error."""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pair
        for pair in itertools.combinations(FAULTS, 2)
        if set(pair) != {"ttl off", "ttl"}  # one header, two faults that exclude each other
    ],
)
async def test_of_two_faults_the_first_in_the_servers_order_is_told(
    client: Client, name: str, first: str, second: str
) -> None:
    await client.stream(
        name,
        storage="memory",
        max_msg_size=300,
        allow_msg_ttl="ttl off" not in (first, second),
        **({"discard": "new", "max_msgs": 1} if second == "full" else {}),
    )
    await client.stored(f"{name}.a")
    headers = FAULTS[first][0] | FAULTS[second][0]

    error = await client.refused(f"{name}.a", FAULTS[first][1], headers or None)

    assert error.err_code == FAULTS[first][2]


@pytest.mark.parametrize(
    ("headers", "err_code"),
    [
        ({"Nats-Incr": "+1"}, 10168),
        ({"Nats-Schedule": "@every 1h", "Nats-Schedule-Target": "x"}, 10188),
    ],
    ids=["counter", "schedule"],
)
async def test_a_header_the_stream_does_not_allow_is_refused(
    client: Client, name: str, headers: dict[str, str], err_code: int
) -> None:
    await client.stream(name)

    assert (await client.refused(f"{name}.a", b"", headers)).err_code == err_code


async def test_a_message_nobody_is_interested_in_needs_no_valid_ttl(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="interest", allow_msg_ttl=True)

    assert await client.stored(f"{name}.a", b"", {"Nats-TTL": "-5"}) == 1


async def test_a_duplicate_is_told_before_the_chain_is_looked_at(client: Client, name: str) -> None:
    await client.stream(name, allow_msg_ttl=True)
    await client.stored(f"{name}.a", b"", {"Nats-Msg-Id": "one"})
    headers = {"Nats-Msg-Id": "one", LAST_ID: "zero", "Nats-Rollup": "none", "Nats-TTL": "-5"}

    assert (await client.store(f"{name}.a", b"", headers))["duplicate"] is True


async def eventually_holds(client: Client, stream: str, count: int) -> None:
    async def holds() -> bool:
        return bool((await client.state(stream))["messages"] == count)

    await eventually(holds)


async def eventually_reaches(client: Client, stream: str, last_seq: int) -> None:
    async def reached() -> bool:
        return bool((await client.state(stream))["last_seq"] == last_seq)

    await eventually(reached)
