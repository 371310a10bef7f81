"""The client protocol as byte transcripts: what is typed, and exactly what comes back."""

from contextlib import AsyncExitStack

import pytest

from tests.conformance.client import Client, encode, eventually
from tests.helpers.raw import QUIET, RawClient
from tests.helpers.servers import Server

CONNECT_QUIET = b'CONNECT {"verbose":false}\r\n'


async def test_the_server_speaks_first_and_info_ends_with_a_space(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        assert client.info_line.startswith(b"INFO {")
        assert client.info_line.endswith(b"} \r\n")


@pytest.mark.parametrize(
    ("field", "json_type"),
    [
        ("server_id", str),
        ("server_name", str),
        ("version", str),
        ("git_commit", str),
        ("go", str),
        ("host", str),
        ("client_ip", str),
        ("client_id", int),
    ],
)
async def test_info_has_the_field(server: Server, field: str, json_type: type) -> None:
    async with RawClient.open(server.port) as client:
        assert isinstance(client.info[field], json_type)


async def test_info_tells_protocol_limits_and_features(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        info = client.info

    assert info["proto"] == 1
    assert info["port"] == server.port
    assert info["headers"] is True
    assert info["jetstream"] is True
    assert info["max_payload"] == 1024 * 1024
    assert info["api_lvl"] == 5


async def test_info_version_is_semantic_and_new_enough_for_clients(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        major, minor, *_ = client.info["version"].split(".")

    assert (int(major), int(minor)) >= (2, 15)


async def test_info_leaves_out_what_is_not_asked_for(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        assert not {"auth_required", "tls_required", "nonce", "cluster", "ldm"} & set(client.info)


async def test_each_connection_has_a_client_id_of_its_own(server: Server) -> None:
    async with RawClient.open(server.port) as one, RawClient.open(server.port) as two:
        assert one.info["client_id"] < two.info["client_id"]


async def test_a_second_info_comes_after_the_first_pong_of_protocol_1(server: Server) -> None:
    async with RawClient.open(server.port, {**QUIET, "protocol": 1}) as client:
        await client.flush()
        await client.flush()

        assert len(client.infos) == 2
        assert client.infos[1]["connect_info"] is True
        assert client.infos[1]["client_id"] == client.infos[0]["client_id"]


async def test_protocol_0_gets_one_info_only(server: Server) -> None:
    async with RawClient.open(server.port, {**QUIET, "protocol": 0}) as client:
        await client.flush()
        await client.flush()

        assert len(client.infos) == 1


async def test_publishing_over_telnet_without_connect_is_confirmed_and_delivered(
    server: Server,
) -> None:
    async with RawClient.open(server.port) as door, RawClient.open(server.port) as visitor:
        await door.send(b"SUB FRONT.DOOR 1\r\n")
        await door.expect(b"+OK\r\n")

        await visitor.send(b"PUB FRONT.DOOR 11\r\nKnock Knock\r\n")

        await visitor.expect(b"+OK\r\n")
        await door.expect(b"MSG FRONT.DOOR 1 11\r\nKnock Knock\r\n")


async def test_verbose_confirms_connect_sub_pub_and_unsub_but_not_ping(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"CONNECT {}\r\n")
        await client.expect(b"+OK\r\n")
        await client.send(b"SUB a.b 7\r\n")
        await client.expect(b"+OK\r\n")
        await client.send(b"PUB a.b 2\r\nhi\r\n")
        await client.expect(b"+OK\r\nMSG a.b 7 2\r\nhi\r\n")
        await client.send(b"UNSUB 7\r\n")
        await client.expect(b"+OK\r\n")
        await client.send(b"PING\r\n")
        await client.expect(b"PONG\r\n")


async def test_not_verbose_confirms_nothing(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b 7\r\nUNSUB 7\r\nPUB a.b 2\r\nhi\r\n")

        assert await client.flush() == b""


async def test_verbose_confirms_hpub(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b'CONNECT {"headers":true}\r\n')
        await client.expect(b"+OK\r\n")
        await client.send(b"HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n")
        await client.expect(b"+OK\r\n")


async def test_ping_is_answered_before_connect(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"PING\r\n")
        await client.expect(b"PONG\r\n")


async def test_a_pong_nobody_asked_for_is_ignored(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"PONG\r\nPING\r\n")
        await client.expect(b"PONG\r\n")


async def test_an_ok_from_the_client_is_ignored(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"+OK\r\nPING\r\n")
        await client.expect(b"PONG\r\n")


async def test_operations_are_case_insensitive(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b'connect {"verbose":false}\r\nsub a.b 1\r\nPuB a.b 2\r\nhi\r\npinG\r\n')
        await client.expect(b"MSG a.b 1 2\r\nhi\r\nPONG\r\n")


async def test_arguments_may_be_parted_by_tabs_and_many_spaces(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB\ta.b  1\r\nPUB   a.b\t 2\r\nhi\r\nPING\r\n")
        await client.expect(b"MSG a.b 1 2\r\nhi\r\nPONG\r\n")


async def test_a_control_line_may_end_with_a_bare_line_feed(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b 1\nPUB a.b 2\nhi\r\nPING\n")
        await client.expect(b"MSG a.b 1 2\r\nhi\r\nPONG\r\n")


async def test_an_operation_may_arrive_byte_by_byte(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        for byte in CONNECT_QUIET + b"SUB a.b 1\r\nPUB a.b 2\r\nhi\r\nPING\r\n":
            await client.send(bytes([byte]))
        await client.expect(b"MSG a.b 1 2\r\nhi\r\nPONG\r\n")


async def test_a_message_carries_the_reply_subject(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b 1\r\nPUB a.b answers.here 2\r\nhi\r\n")
        await client.expect(b"MSG a.b 1 answers.here 2\r\nhi\r\n")


async def test_an_empty_payload_is_a_message(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b 1\r\nPUB a.b 0\r\n\r\n")
        await client.expect(b"MSG a.b 1 0\r\n\r\n")


async def test_the_payload_may_hold_any_bytes(server: Server) -> None:
    payload = bytes(range(256)) + b"\r\nPUB a.b 1\r\n"
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b 1\r\n" + encode("a.b", payload))
        await client.expect(b"MSG a.b 1 %d\r\n" % len(payload) + payload + b"\r\n")


async def test_sid_is_any_token(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b my-sid\r\nPUB a.b 2\r\nhi\r\n")
        await client.expect(b"MSG a.b my-sid 2\r\nhi\r\n")


async def test_a_sid_in_use_keeps_its_first_subject(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB one 1\r\nSUB two 1\r\n")
        await client.send(b"PUB two 1\r\n2\r\nPUB one 1\r\n1\r\nPING\r\n")
        await client.expect(b"MSG one 1 1\r\n1\r\nPONG\r\n")


async def test_two_subscriptions_of_one_connection_each_get_a_copy(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(CONNECT_QUIET + b"SUB a.b 1\r\nSUB a.* 2\r\nPUB a.b 2\r\nhi\r\n")
        got = await client.flush()

    assert sorted(got.split(b"MSG ")[1:]) == [b"a.b 1 2\r\nhi\r\n", b"a.b 2 2\r\nhi\r\n"]


async def test_echo_false_keeps_own_messages_away_from_own_subscriptions(server: Server) -> None:
    async with (
        RawClient.open(server.port, {**QUIET, "echo": False}) as silent,
        RawClient.open(server.port, QUIET) as other,
    ):
        for client in (silent, other):
            await client.send(b"SUB echo.test 1\r\n")
            assert await client.flush() == b""
        await silent.send(b"PUB echo.test 2\r\nhi\r\n")

        assert await silent.flush() == b""
        await other.expect(b"MSG echo.test 1 2\r\nhi\r\n")


async def test_messages_of_one_publisher_stay_in_order(server: Server) -> None:
    async with (
        RawClient.open(server.port, QUIET) as subscriber,
        RawClient.open(server.port, QUIET) as publisher,
    ):
        await subscriber.send(b"SUB order.> 1\r\n")
        await subscriber.flush()
        numbers = range(2000)
        await publisher.send(b"".join(encode(f"order.{n % 7}", b"%04d" % n) for n in numbers))

        await subscriber.expect(
            b"".join(b"MSG order.%d 1 4\r\n%04d\r\n" % (n % 7, n) for n in numbers)
        )


# --- UNSUB


async def test_unsub_ends_a_subscription(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB a.b 1\r\nUNSUB 1\r\nPUB a.b 2\r\nhi\r\n")
        assert await client.flush() == b""


async def test_unsub_with_a_maximum_ends_it_after_so_many_messages(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB a.b 1\r\nUNSUB 1 2\r\n" + encode("a.b", b"x") * 5)
        assert await client.flush() == b"MSG a.b 1 1\r\nx\r\n" * 2


async def test_the_maximum_counts_what_was_delivered_before(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB a.b 1\r\n" + encode("a.b", b"x") * 2)
        assert await client.flush() == b"MSG a.b 1 1\r\nx\r\n" * 2

        await client.send(b"UNSUB 1 3\r\n" + encode("a.b", b"y") * 5)
        assert await client.flush() == b"MSG a.b 1 1\r\ny\r\n"


async def test_a_maximum_already_reached_ends_it_at_once(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB a.b 1\r\n" + encode("a.b", b"x") * 2 + b"UNSUB 1 1\r\n")
        await client.flush()

        await client.send(encode("a.b", b"y"))
        assert await client.flush() == b""


async def test_unsub_of_an_unknown_sid_is_ignored(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"UNSUB 99\r\n")
        assert await client.flush() == b""


async def test_a_sid_can_be_used_again_after_its_maximum(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB a.b 1\r\nUNSUB 1 1\r\n" + encode("a.b", b"x") * 2)
        await client.flush()

        await client.send(b"SUB c.d 1\r\n" + encode("c.d", b"y"))
        assert await client.flush() == b"MSG c.d 1 1\r\ny\r\n"


# --- queue groups


async def test_one_member_of_a_queue_group_gets_each_message(server: Server) -> None:
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(RawClient.open(server.port, QUIET)) for _ in range(3)
        ]
        for member in members:
            await member.send(b"SUB jobs.one crew 1\r\n")
            await member.flush()
        publisher = await stack.enter_async_context(RawClient.open(server.port, QUIET))
        await publisher.send(encode("jobs.one", b"x") * 300)
        await publisher.flush()
        counts = [(await member.flush()).count(b"MSG jobs.one") for member in members]

    assert sum(counts) == 300
    assert min(counts) > 0


async def test_each_queue_group_and_each_plain_subscription_gets_a_copy(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB j.x red 1\r\nSUB j.x blue 2\r\nSUB j.x 3\r\nSUB j.* red 4\r\n")
        await client.send(encode("j.x", b"x"))
        sids = sorted(
            line.split()[2] for line in (await client.flush()).split(b"\r\n") if b"MSG" in line
        )

    assert len(sids) == 3
    assert {b"2", b"3"} <= set(sids)


async def test_a_queue_member_that_left_gets_nothing(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB jobs.two crew 1\r\nSUB jobs.two crew 2\r\nUNSUB 1\r\n")
        await client.send(encode("jobs.two", b"x") * 20)

        assert await client.flush() == b"MSG jobs.two 2 1\r\nx\r\n" * 20


# --- headers


async def test_hpub_arrives_as_hmsg_with_the_same_header_bytes(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        block = b"NATS/1.0\r\nA: 1\r\nA: 2\r\nb:no space\r\n\r\n"
        await client.send(b"SUB h.x 1\r\nHPUB h.x %d %d\r\n" % (len(block), len(block) + 2))
        await client.send(block + b"hi\r\n")

        await client.expect(
            b"HMSG h.x 1 %d %d\r\n" % (len(block), len(block) + 2) + block + b"hi\r\n"
        )


async def test_hmsg_carries_the_reply_subject(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB h.x 1\r\nHPUB h.x back 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")
        await client.expect(b"HMSG h.x 1 back 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")


async def test_the_header_block_is_not_looked_into(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB h.x 1\r\nHPUB h.x 4 6\r\n????hi\r\n")
        await client.expect(b"HMSG h.x 1 4 6\r\n????hi\r\n")


async def test_headers_are_taken_off_for_who_has_not_asked_for_them(server: Server) -> None:
    async with (
        RawClient.open(server.port, {"verbose": False}) as plain,
        RawClient.open(server.port, QUIET) as sender,
    ):
        await plain.send(b"SUB h.strip 1\r\n")
        await plain.flush()
        await sender.send(encode("h.strip", b"hi", {"A": "1"}))

        await plain.expect(b"MSG h.strip 1 2\r\nhi\r\n")


# --- no responders


async def test_a_request_nobody_listens_to_is_answered_at_once(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB my.inbox 4\r\nPUB nobody.home my.inbox 2\r\nhi\r\n")
        await client.expect(
            b"HMSG my.inbox 4 43 43\r\nNATS/1.0 503\r\nNats-Subject: nobody.home\r\n\r\n\r\n"
        )


async def test_no_responders_arrive_in_spite_of_echo_false(server: Server) -> None:
    async with RawClient.open(server.port, {**QUIET, "echo": False}) as client:
        await client.send(b"SUB my.inbox.* 4\r\nPUB nobody my.inbox.1 0\r\n\r\n")
        await client.expect(
            b"HMSG my.inbox.1 4 38 38\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\n\r\n\r\n"
        )


async def test_no_responders_only_go_to_who_asked_for_them(server: Server) -> None:
    async with RawClient.open(server.port, {"verbose": False, "headers": True}) as client:
        await client.send(b"SUB my.inbox 4\r\nPUB nobody.home my.inbox 0\r\n\r\n")
        assert await client.flush() == b""


async def test_no_responders_are_not_sent_where_somebody_listens(server: Server) -> None:
    async with (
        RawClient.open(server.port, QUIET) as client,
        RawClient.open(server.port, QUIET) as service,
    ):
        await service.send(b"SUB some.service 1\r\n")
        await service.flush()
        await client.send(b"SUB my.inbox 4\r\nPUB some.service my.inbox 0\r\n\r\n")
        assert await client.flush() == b""


async def test_no_responders_need_a_subscription_on_the_reply(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"PUB nobody.home my.inbox 0\r\n\r\n")
        assert await client.flush() == b""


# --- limits and errors that leave the connection open


async def test_a_payload_of_exactly_max_payload_passes(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        payload = b"x" * client.info["max_payload"]
        await client.send(b"SUB big 1\r\n" + encode("big", payload))
        await client.expect(b"MSG big 1 1048576\r\n" + payload + b"\r\n")


async def test_an_invalid_subject_to_sub_leaves_the_connection_open(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB a..b 1\r\n")
        await client.expect(b"-ERR 'Invalid Subject'\r\n")
        await client.flush()


@pytest.mark.parametrize("subject", ["a..b", ".a", "a.", "a.>.b", "."])
async def test_sub_refuses_the_subject(server: Server, subject: str) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB %s 1\r\n" % subject.encode())
        assert await client.flush() == b"-ERR 'Invalid Subject'\r\n"


@pytest.mark.parametrize("subject", ["foo*", "f>", "*a.b", "$x.{y}", "grüße", "a.b*c.>"])
async def test_sub_takes_the_subject(server: Server, subject: str) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB %s 1\r\n" % subject.encode())
        assert await client.flush() == b""


async def test_pedantic_reports_a_wildcard_in_pub_and_still_delivers(server: Server) -> None:
    async with RawClient.open(server.port, {**QUIET, "pedantic": True}) as client:
        await client.send(b"SUB a.> 1\r\nPUB a.* 2\r\nhi\r\n")
        assert await client.flush() == (b"-ERR 'Invalid Publish Subject'\r\nMSG a.* 1 2\r\nhi\r\n")


async def test_wildcards_in_pub_are_plain_text_otherwise(server: Server) -> None:
    async with RawClient.open(server.port, {**QUIET, "pedantic": False}) as client:
        await client.send(b"SUB a.* 1\r\nSUB a.b 2\r\nPUB a.* 2\r\nhi\r\n")
        assert await client.flush() == b"MSG a.* 1 2\r\nhi\r\n"


async def test_empty_tokens_in_pub_match_nothing(server: Server) -> None:
    async with RawClient.open(server.port, {**QUIET, "pedantic": False}) as client:
        await client.send(b"SUB a.> 1\r\nSUB > 2\r\nPUB a..b 2\r\nhi\r\n")
        assert await client.flush() == b""


@pytest.mark.parametrize("reply", ["$JS.ACK.S.C.1.1.1.1.0", "_R_.abc", "_GR_.abc"])
async def test_a_reserved_reply_subject_is_a_permissions_violation(
    server: Server, reply: str
) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(encode("a.b", b"hi", reply=reply))
        assert await client.flush() == (
            f"-ERR 'Permissions Violation for Publish with Reply of \"{reply}\"'\r\n".encode()
        )


# --- what closes the connection


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (b"HELLO\r\n", b"-ERR 'Unknown Protocol Operation'\r\n"),
        (b"\r\n", b"-ERR 'Unknown Protocol Operation'\r\n"),
        (b"PUB a 2\r\nhix\r\n", b"-ERR 'Unknown Protocol Operation'\r\n"),
        (b"MSG a 1 2\r\nhi\r\n", b"-ERR 'Unknown Protocol Operation'\r\n"),
        (b"UNSUB\r\n", b"-ERR 'Unknown Protocol Operation'\r\n"),
        (b"RS+ x\r\n", b"-ERR 'Unknown Protocol Operation'\r\n"),
        (b"PUB a 1048577\r\n", b"-ERR 'Maximum Payload Violation'\r\n"),
        (b"SUB " + b"a" * 4200 + b" 1\r\n", b"-ERR 'maximum control line exceeded'\r\n"),
        (b'CONNECT {"protocol":2}\r\n', b"-ERR 'invalid client protocol'\r\n"),
        (
            b'CONNECT {"verbose":false,"no_responders":true}\r\n',
            b"-ERR 'no responders requires headers support'\r\n",
        ),
        (
            b'CONNECT {"verbose":false,"account":"A"}\r\n',
            b"-ERR 'Authorization Violation'\r\n",
        ),
    ],
    ids=[
        "unknown operation",
        "empty line",
        "payload longer than said",
        "MSG from a client",
        "UNSUB without a sid",
        "route operation",
        "payload over the limit",
        "control line over the limit",
        "unknown protocol",
        "no responders without headers",
        "account in CONNECT",
    ],
)
async def test_the_connection_closes_after_the_error(
    server: Server, typed: bytes, answer: bytes
) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"PING\r\n" + typed)
        assert await client.until_closed() == b"PONG\r\n" + answer


@pytest.mark.parametrize(
    "typed",
    [
        b"PUB a\r\n",
        b"PUB a b c d 3\r\n",
        b"PUB a -1\r\n",
        b"PUB a x\r\n",
        b"SUB a\r\n",
        b"SUB a b c d\r\n",
        b"UNSUB 1 2 3\r\n",
        b"HPUB a 12 12\r\n",
        b"CONNECT {\r\n",
        b"-ERR 'no'\r\n",
    ],
    ids=lambda typed: typed.decode().strip(),
)
async def test_the_connection_closes_without_a_word(server: Server, typed: bytes) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"PING\r\n" + typed)
        assert await client.until_closed() == b"PONG\r\n"


@pytest.mark.parametrize("sizes", [b"14 12", b"-1 12", b"x 12", b"12"])
async def test_hpub_with_wrong_sizes_closes_without_a_word(server: Server, sizes: bytes) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"PING\r\nHPUB a " + sizes + b"\r\n")
        assert await client.until_closed() == b"PONG\r\n"


async def test_headers_count_as_payload(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"PING\r\nHPUB a 12 1048577\r\n")
        assert await client.until_closed() == b"PONG\r\n-ERR 'Maximum Payload Violation'\r\n"


async def test_one_clients_error_does_not_disturb_another(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as good:
        await good.send(b"SUB calm.x 1\r\n")
        await good.flush()
        async with RawClient.open(server.port) as bad:
            await bad.send(b"PUB calm.x 2\r\nhi\r\nNONSENSE\r\n")
            assert await bad.until_closed() == b"+OK\r\n-ERR 'Unknown Protocol Operation'\r\n"

        await good.expect(b"MSG calm.x 1 2\r\nhi\r\n")
        assert await good.flush() == b""


async def test_a_closed_connection_loses_its_interest(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        async with RawClient.open(server.port, QUIET) as service:
            await service.send(b"SUB short.lived 1\r\n")
            await service.flush()
        await client.send(b"SUB my.inbox 1\r\n")

        async def is_alone() -> bool:
            await client.send(encode("short.lived", b"", reply="my.inbox"))
            return (await client.flush()).startswith(b"HMSG my.inbox 1")

        await eventually(is_alone)


async def test_a_control_line_just_under_the_limit_passes(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(b"SUB " + b"a" * 4090 + b" 1\r\n")
        assert await client.flush() == b""


async def test_a_request_and_its_reply(server: Server) -> None:
    async with Client.open(server.port) as service, Client.open(server.port) as asker:
        calls = await service.subscribe("help.please")
        await service.settle()
        answers = await asker.subscribe()
        await asker.publish("help.please", b"?", reply=answers.subject)
        call = await calls.next()
        assert call.reply == answers.subject
        await service.publish(call.reply, b"!")

        assert (await answers.next()).payload == b"!"


async def test_a_second_connect_changes_the_options(server: Server) -> None:
    async with RawClient.open(server.port) as client:
        await client.send(b"CONNECT {}\r\n")
        await client.expect(b"+OK\r\n")
        await client.send(CONNECT_QUIET + b"SUB a 1\r\nPING\r\n")
        await client.expect(b"PONG\r\n")
