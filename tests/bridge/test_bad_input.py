"""What cannot be done is said in one line that names what and where, and nothing is skipped."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from millstream_bridge import (
    BackBridge,
    Bridge,
    ConfigurationError,
    RecordError,
    Route,
    Unreachable,
    assess,
    barrier,
    verify,
)
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.stream import Stream, find_problem
from millstream_bridge.kafka import source
from millstream_bridge.moving.chain import ChainPublisher
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, offsets, stored_messages, stored_records, until
from tests.helpers.kafka import Kafka
from tests.helpers.record_batch import produce_bytes, record_batch
from tests.helpers.require import need
from tests.helpers.servers import Server, real_server

NOWHERE = "127.0.0.1:1"


async def make_stream(url: str, **config: Any) -> None:
    connection = await Connection.open(url, name="operator")
    try:
        body = {"name": "FLIGHTS", "subjects": ["flights.>"], **config}
        answer = await connection.request(
            "$JS.API.STREAM.CREATE.FLIGHTS", json.dumps(body).encode()
        )
        assert b"error" not in answer.payload, answer.payload
    finally:
        await connection.close()


async def test_a_record_over_the_size_limit_stops_after_all_before_it_are_stored(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    small = {"partition": 0, "value": b"small"}
    mock.produce(topic, [small, small, {"partition": 0, "value": b"x" * 1_048_500}, small])

    for _ in range(2):  # a second run meets the same record, and stores nothing twice
        with pytest.raises(
            RecordError, match=f"topic {topic} partition 0 offset 2: .*1048576.*; large = "
        ):
            await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    assert offsets(await stored_records(nats_server.url, a_route(topic))) == {0: [0, 1]}


async def test_a_shared_route_stops_at_the_same_record(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    small = {"partition": 0, "value": b"small"}
    mock.produce(topic, [small, {"partition": 0, "value": b"x" * 1_048_500}, small])
    route = a_route(topic, shared=True)

    with pytest.raises(RecordError, match="partition 0 offset 1"):
        await move_all(mock.bootstrap, nats_server.url, route)

    assert offsets(await stored_records(nats_server.url, route)) == {0: [0]}


async def test_headers_over_the_servers_limit_name_the_record(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v", "headers": [("big", b"\xff" * 60_000)]}])

    with pytest.raises(RecordError, match=r"offset 0: its headers take \d+ bytes.*; on_poison = "):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))


async def test_a_stream_that_is_full_names_the_record_it_refused(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    await make_stream(nats_server.url, max_msgs=3, discard="new")
    mock.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(9)])

    with pytest.raises(RecordError, match="offset 3: the server refuses it"):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    assert offsets(await stored_records(nats_server.url, a_route(topic))) == {0: [0, 1, 2]}


async def test_records_that_kafka_dropped_before_they_were_moved_are_missed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """The mock keeps 5 MiB a partition, as a retention would."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"first"}])
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    mock.produce(topic, [{"partition": 0, "value": b"x" * 100_000} for _ in range(80)])

    with pytest.raises(RecordError, match=r"partition 0 offset 1: Kafka no .*\(on_gap = "):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))


async def test_a_route_may_go_on_behind_what_kafka_dropped_and_counts_it(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"first"}])
    route = a_route(topic, on_gap="continue")
    await move_all(mock.bootstrap, nats_server.url, route)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 100_000} for _ in range(80)])

    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    await bridge.run(stop_at_end=True)

    [stored] = offsets(await stored_records(nats_server.url, route)).values()
    low = stored[1]
    assert low > 1
    assert stored == [0, *range(low, 81)]
    assert bridge.progress.missed == low - 1


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(record_batch([b"damaged", b"too"], spoil=True), id="spoilt"),
        pytest.param(record_batch([b"not", b"packed"], codec=1), id="badly-compressed"),
        pytest.param(record_batch([b"not", b"packed"], codec=7), id="unknown-codec"),
    ],
)
async def test_a_corrupt_batch_stops_after_all_before_it_are_stored(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    bad: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "MOCK_CLUSTER", "what no cluster is called")
    mock.create_topic(topic, 1)
    for batch in (record_batch([b"first", b"second"]), bad, record_batch([b"behind"])):
        produce_bytes(mock.bootstrap, topic, 0, batch)

    for _ in range(2):
        with pytest.raises(RecordError, match=f"topic {topic} partition 0 offset 2: the batch"):
            await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    assert offsets(await stored_records(nats_server.url, a_route(topic))) == {0: [0, 1]}


async def test_a_stream_knows_which_topic_of_the_name_it_was_made_for(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    connection = await Connection.open(nats_server.url, name="test")
    mapping = Mapping(a_route(topic))
    try:
        mapping.topic_id = "first"
        await Stream(connection, mapping).ensure()
        await Stream(connection, mapping).ensure()
        mapping.topic_id = None  # Kafka does not say
        await Stream(connection, mapping).ensure()
        mapping.topic_id = "second"
        with pytest.raises(ConfigurationError, match="made anew: its id is second, stream FLIGHTS"):
            await Stream(connection, mapping).ensure()
    finally:
        await connection.close()


async def test_a_topic_made_anew_is_not_taken_for_the_old_one(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.create_topic(f"{topic}-new", 1)
    mock.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(5)])

    class Renamed(Mapping):
        """Writes another topic's name: what a topic deleted and made again looks like."""

        def __init__(self, route: Route) -> None:
            super().__init__(route)
            self._source_prefix = f"Millstream-Source: {topic}-new "

    await move_all(
        mock.bootstrap,
        nats_server.url,
        a_route(topic),
        make_publisher=lambda c, m: ChainPublisher(c, Renamed(m.route)),
    )

    with pytest.raises(RecordError, match="offset 5: stream FLIGHTS is ahead of Kafka"):
        await move_all(mock.bootstrap, nats_server.url, a_route(f"{topic}-new"))


async def test_the_same_topic_under_another_template_is_refused(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    with pytest.raises(ConfigurationError, match="under other subjects"):
        await move_all(
            mock.bootstrap, nats_server.url, a_route(topic, subject="flights.x.{partition}.{key}")
        )


async def test_a_stream_that_holds_another_topic_under_the_same_subjects_is_refused(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    for name in (topic, f"{topic}-new"):
        mock.create_topic(name, 1)
        mock.produce(name, [{"partition": 0, "value": b"v"}])
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    with pytest.raises(ConfigurationError, match=f"FLIGHTS holds topic {topic} under flights"):
        await move_all(mock.bootstrap, nats_server.url, a_route(f"{topic}-new"))

    assert offsets(await stored_records(nats_server.url, a_route(topic))) == {0: [0]}


async def test_other_content_of_a_stream_is_told_and_stays(
    nats_server: Server, mock: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v"}] * 3)
    await make_stream(nats_server.url)
    connection = await Connection.open(nats_server.url, name="somebody")
    await connection.request("flights.0.theirs", b"theirs")
    await connection.close()
    caplog.set_level(logging.WARNING, "millstream_bridge")

    for _ in range(2):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    told = [it for it in caplog.messages if "not of topic" in it]
    assert len(told) == 1
    assert f"FLIGHTS holds messages under flights.*.* that are not of topic {topic}" in told[0]
    stored = await stored_messages(nats_server.url, a_route(topic))
    assert [seq for seq, _ in stored] == [2, 3, 4]


@pytest.mark.parametrize(
    "more",
    [{}, {"shared": True}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}],
    ids=["chain", "shared", "dense"],
)
async def test_a_stream_that_is_gone_ends_the_run_and_is_not_begun_anew_unasked(
    nats_server: Server, mock: Kafka, topic: str, more: dict[str, Any]
) -> None:
    """As after a server's restart, if the stream was in its memory."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    route = a_route(topic, **more)
    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    running = asyncio.create_task(bridge.run())
    await until(lambda: bridge.progress.positions == {0: 1} or running.done())
    connection = await Connection.open(nats_server.url, name="operator")
    name = Mapping(route).stream_name(0)
    await connection.request(f"$JS.API.STREAM.DELETE.{name}")
    await connection.close()
    mock.produce(topic, [{"partition": 0, "value": b"w"}])

    told = f"stream {name} is not there any more: the next"
    async with asyncio.timeout(60):
        with pytest.raises(ConfigurationError, match=told):
            await running
    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert report.records == 2


async def test_an_unknown_topic_is_named(nats_server: Server, mock: Kafka) -> None:
    with pytest.raises(ConfigurationError, match="topic nosuch at 127"):
        await move_all(mock.bootstrap, nats_server.url, a_route("nosuch"))


async def test_kafka_out_of_reach_is_told_with_the_reason(real_nats_server: Server) -> None:
    """All at once: each asks for as long as it does."""
    url, route = real_nats_server.url, a_route("flights")
    back = BackBridge(kafka=NOWHERE, nats=url, route=route)

    told = await asyncio.gather(
        move_all(NOWHERE, url, route), assess(kafka=NOWHERE), back.run(), return_exceptions=True
    )

    for error in told:
        assert isinstance(error, Unreachable)
        assert str(error).startswith(f"Kafka at {NOWHERE} is unreachable: ")
        assert str(error).endswith("Connection refused")


async def test_a_kafka_that_is_spoken_to_in_the_wrong_way_is_told(
    real_nats_server: Server, mock: Kafka, topic: str
) -> None:
    """The mock has neither TLS nor users."""
    mock.create_topic(topic, 1)
    user = {"sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": "hush-hush"}
    wrong = {"security.protocol": "SASL_PLAINTEXT", **user}

    with pytest.raises(Unreachable, match="SASL") as told:
        await move_all(mock.bootstrap, real_nats_server.url, a_route(topic), kafka_options=wrong)

    assert "hush-hush" not in str(told.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("auto.offset.reset", "latest"),
        ("enable.partition.eof", "false"),
        ("isolation.level", "read_uncommitted"),
        ("check.crcs", "false"),
    ],
)
async def test_a_kafka_option_that_would_lose_something_is_refused(
    nats_server: Server, mock: Kafka, topic: str, option: str, value: str
) -> None:
    mock.create_topic(topic, 1)
    route = a_route(topic)

    with pytest.raises(ConfigurationError, match=f"Kafka option {option}: the bridge needs"):
        await move_all(mock.bootstrap, nats_server.url, route, kafka_options={option: value})


async def test_a_kafka_option_that_says_what_holds_anyway_is_taken(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    options = {"enable.auto.commit": "False", "auto.offset.reset": "error", "client.rack": "a"}

    moved = await move_all(mock.bootstrap, nats_server.url, a_route(topic), kafka_options=options)

    assert moved.records == 1


async def test_nats_out_of_reach_is_told(mock: Kafka, topic: str) -> None:
    mock.create_topic(topic, 1)

    with pytest.raises(Unreachable, match="NATS at 127"):
        await move_all(mock.bootstrap, NOWHERE, a_route(topic))
    for call in (verify, barrier):
        with pytest.raises(Unreachable, match="NATS at 127"):
            await call(kafka=mock.bootstrap, nats=NOWHERE, route=a_route(topic))


@pytest.mark.real_server
async def test_a_server_without_jetstream_is_told(mock: Kafka, topic: str, tmp_path: Path) -> None:
    need("nats")
    mock.create_topic(topic, 1)
    async with real_server(tmp_path / "plain", jetstream=False) as plain:
        with pytest.raises(Unreachable, match="JetStream at"):
            await move_all(mock.bootstrap, plain.url, a_route(topic))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nats://", "nats://host:port", "ftp://x"])
async def test_a_url_that_is_none_is_refused(mock: Kafka, topic: str, url: str) -> None:
    mock.create_topic(topic, 1)

    with pytest.raises(ConfigurationError, match="URL"):
        await move_all(mock.bootstrap, url, a_route(topic))


SOUND: dict[str, Any] = {"subjects": ["flights.>"], "allow_atomic": True, "allow_rollup_hdrs": True}


@pytest.mark.parametrize(
    ("change", "is_shared", "complaint"),
    [
        ({"subjects": ["other.>"]}, False, "does not listen to"),
        ({"retention": "workqueue"}, False, "retention is not limits"),
        ({"max_msgs": 100}, False, "drops its oldest"),
        ({"max_bytes": 100}, True, "drops its oldest"),
        ({"max_age": 10**9}, False, "has max_age"),
        ({"max_age": 10**9}, True, "without allow_msg_ttl"),
        ({"subject_transform": {"src": ">", "dest": "x.>"}}, False, "rewrites subjects"),
        ({"mirror": {"name": "O"}}, False, "is a mirror"),
        ({"sealed": True}, False, "is sealed"),
        ({"no_ack": True}, False, "no_ack"),
        ({"persist_mode": "async"}, False, "before it writes"),
        ({"allow_atomic": False}, True, "lacks allow_atomic"),
        ({"allow_rollup_hdrs": False}, True, "lacks allow_rollup_hdrs"),
    ],
)
def test_a_stream_that_would_lose_something_is_refused(
    change: dict[str, Any], is_shared: bool, complaint: str
) -> None:
    mapping = Mapping(a_route("flights", shared=is_shared))

    assert complaint in (find_problem({**SOUND, **change}, mapping) or "")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_msgs_per_subject": 1},
        {"max_bytes": 10, "discard": "new"},
        {"subjects": ["flights.*.*"]},
    ],
)
def test_a_sound_stream_is_taken(change: dict[str, Any]) -> None:
    mapping = Mapping(a_route("flights"))

    assert find_problem({**SOUND, **change}, mapping) is None


@pytest.mark.parametrize(
    "change",
    [
        {"topic": "no such topic"},
        {"topic": ""},
        {"stream": "A.B"},
        {"stream": ""},
        {"name": "a b"},
        {"subject": "flights"},
        {"null_token": "a.b"},
    ],
)
def test_a_route_that_cannot_work_is_refused(change: dict[str, Any]) -> None:
    settings = {"topic": "flights", "stream": "S", "subject": "flights.{partition}.{key}"}

    with pytest.raises(ConfigurationError):
        Mapping(Route(**{**settings, **change}))


async def test_a_stray_message_with_a_header_block_that_is_none_is_a_stray_message(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """A server stores whatever a client gives out for one."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": b"1"}])
    route = a_route(topic)
    await move_all(mock.bootstrap, nats_server.url, route)
    connection = await Connection.open(nats_server.url, name="somebody")
    await connection.publish_and_wait(
        lambda reply: b"HPUB flights.0.x %b 8 9\r\nXXXX\r\n\r\n1\r\n" % reply.encode()
    )
    await connection.close()
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": b"2"}])

    report = await move_all(mock.bootstrap, nats_server.url, route)
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    assert (report.records, proof.equal, proof.apart.foreign) == (1, True, 1)


async def test_a_record_without_what_the_subject_wants_says_how_there_could_be_one(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    route = a_route(topic, subject="flights.{partition}.{header[r]}")

    with pytest.raises(
        RecordError, match=r"nothing for \{header\[r\]\}.*\|default.*; on_poison = "
    ):
        await move_all(mock.bootstrap, nats_server.url, route)


async def test_what_is_not_there_names_the_command_that_shows_or_makes_it(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    with pytest.raises(ConfigurationError, match="`millstream bridge assess` shows the topics"):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    mock.create_topic(topic, 1)
    with pytest.raises(
        ConfigurationError, match=r"FLIGHTS: stream not found .*`millstream bridge run"
    ):
        await verify(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic))
    await make_stream(nats_server.url)
    with pytest.raises(ConfigurationError, match=r"\(10065\): `nats stream ls --subject"):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic, stream="OTHER"))
