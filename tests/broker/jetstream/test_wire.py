import json

import pytest
from hypothesis import given, strategies as st

from millstream_broker.jetstream import wire
from millstream_broker.jetstream.model import Retention, StreamConfig
from millstream_broker.jetstream.strictjson import JsonError


@given(st.integers(-(10**18), 4 * 10**18))
def test_a_time_written_is_read_back(ns: int) -> None:
    assert wire.parse_time(wire.format_time(ns)) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
    ],
)
def test_a_time_with_fraction_or_zone_is_read(text: str, ns: int) -> None:
    assert wire.parse_time(text) == ns


def test_gos_zero_time_is_none_both_ways() -> None:
    assert wire.parse_time("0001-01-01T00:00:00Z") is None
    assert wire.format_time(None) == "0001-01-01T00:00:00Z"


def test_a_wrong_time_is_refused_in_gos_words() -> None:
    with pytest.raises(JsonError, match='parsing time "foo" as "2006-01-02T15:04:05Z07:00"'):
        wire.parse_time("foo")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(JsonError, match=r'^json: unknown field "bogus"$'):
        wire.read_stream_request(b'{"name":"B","bogus":1}')


def test_an_unknown_field_inside_an_object_is_refused() -> None:
    with pytest.raises(JsonError, match=r'^json: unknown field "x"$'):
        wire.read_stream_request(b'{"name":"B","consumer_limits":{"x":1}}')


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            '{"max_msgs":"foo"}',
            (
                "json: cannot unmarshal string into Go struct field StreamConfigRequest.max_msgs"
                " of type int64"
            ),
        ),
        (
            '{"max_age":1.5}',
            (
                "json: cannot unmarshal number 1.5 into Go struct field StreamConfigRequest.max_age"
                " of type time.Duration"
            ),
        ),
        (
            '{"subjects":"x"}',
            (
                "json: cannot unmarshal string into Go struct field StreamConfigRequest.subjects"
                " of type []string"
            ),
        ),
        (
            '{"subjects":[1]}',
            "json: cannot unmarshal number into StreamConfigRequest.subjects.0 of type string",
        ),
        (
            "[]",
            "json: cannot unmarshal array into Go value of type server.StreamConfigRequest",
        ),
        ('{"retention":"foo"}', 'can not unmarshal "\\"foo\\""'),
    ],
)
def test_a_value_of_another_type_is_refused_in_gos_words(document: str, text: str) -> None:
    with pytest.raises(JsonError) as caught:
        wire.read_stream_request(document.encode())

    assert str(caught.value) == text


def test_field_names_match_in_any_case() -> None:
    request = wire.read_stream_request(b'{"Name":"B","MAX_MSGS":3}')

    assert (request.config.name, request.config.max_msgs) == ("B", 3)


def test_null_leaves_the_default() -> None:
    assert wire.read_stream_request(b'{"max_msgs":null}').config == StreamConfig()


@given(
    st.builds(
        StreamConfig,
        name=st.text(min_size=1),
        subjects=st.lists(st.text(min_size=1), max_size=3).map(tuple),
        retention=st.sampled_from(Retention),
        max_age_ns=st.integers(0, 2**62),
        no_ack=st.booleans(),
        metadata=st.dictionaries(st.text(), st.text(), max_size=3),
    )
)
def test_a_configuration_written_is_read_back(config: StreamConfig) -> None:
    document = json.loads(json.dumps(wire.STREAM_CONFIG.write(config)))

    assert wire.STREAM_CONFIG.read(document, "", strict=True) == config
