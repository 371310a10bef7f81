"""Subject templates: what they make of records, what they refuse, what lints say of them."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.errors import ConfigurationError, RecordError
from millstream_bridge.model import Record, Route, TimestampType
from millstream_bridge.records import lints
from millstream_bridge.records.lints import lint
from millstream_bridge.records.mapping import Mapping
from millstream_bridge.records.overlaps import Overlaps
from millstream_bridge.records.template import SUBJECT_BYTES_MAX, SubjectError, Template
from millstream_coordinator.partitioning.key import to_token
from millstream_coordinator.partitioning.pattern import covers, overlap
from tests.bridge.moves import a_route
from tests.bridge.test_mapping import records, through_the_wire

HEADERS = (("region", b"EU"), ("region", b"US"), ("empty", b""), ("none", None))
VALUE = b'{"customer": {"id": 42, "name": "A. B"}, "paid": true, "list": [1], "null": null}'


def a_record(key: bytes | None = b"EU.42:7", value: bytes | None = VALUE) -> Record:
    return Record(3, 7, 1, TimestampType.CREATE, key, value, HEADERS)


def subject(template: str, record: Record | None = None) -> str:
    return Template(template, "eu.orders", "%null").subject(record or a_record())


@given(
    st.sampled_from(["o.{partition}.{key}", "o.{partition}.x.{key|default(%empty)}.y"]),
    st.lists(records),
)
def test_a_subject_does_not_depend_on_the_records_before(template: str, many: list[Record]) -> None:
    used = Template(template, "eu.orders", "%null")
    moved = [it._replace(kafka_partition=it.kafka_partition + 1) for it in many]

    assert [*map(used.subject, many + moved)] == [subject(template, it) for it in many + moved]


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("{topic}.{partition}", "eu.orders.3"),
        ("{topic|escape}.{partition}", "eu%2Eorders.3"),
        ("o.{partition}.{key}", "o.3.EU%2E42:7"),
        ("o.{partition}.{key|escape}", "o.3.EU%2E42:7"),
        ("o.{partition}.{key|lower}", "o.3.eu%2E42:7"),
        ("o.{partition}.{key.part[0]}.{key.part[1]}", "o.3.EU.42:7"),
        ("o.{partition}.{key.part[1,:]}", "o.3.7"),
        ("o.{partition}.{key.part[9]|default(none)}", "o.3.none"),
        ("o.{partition}.{header[region]}", "o.3.US"),
        ("o.{partition}.{header[region]|lower}.x", "o.3.us.x"),
        ("o.{partition}.{header[empty]}", "o.3.%empty"),
        ("o.{partition}.{header[none]|default(A.B)|lower}", "o.3.a%2Eb"),
        ("o.{partition}.{value.customer.id}", "o.3.42"),
        ("o.{partition}.{value.customer.name}", "o.3.A%2E%20B"),
        ("o.{partition}.{value.paid}", "o.3.true"),
        ("o.{partition}.{value.null|default(-)}", "o.3.-"),
    ],
)
def test_a_template_makes_its_subject(template: str, made: str) -> None:
    assert subject(template) == made


def test_a_hash_is_eight_digits_and_tells_values_apart() -> None:
    one = subject("o.{partition}.{key|hash8}")
    other = subject("o.{partition}.{key|hash8}", a_record(b"another"))

    assert one != other
    assert len(one.split(".")[2]) == 8
    assert one == subject("o.{partition}.{key|hash8}")


def test_the_null_key_is_the_null_token_or_the_default() -> None:
    record = a_record(None)

    assert subject("o.{partition}.{key}", record) == "o.3.%null"
    assert subject("o.{partition}.{key|hash8}", record) == "o.3.%null"
    assert subject("o.{partition}.{key|default(none)}", record) == "o.3.none"


@pytest.mark.parametrize(
    ("template", "record", "lacks"),
    [
        ("o.{partition}.{key.part[2]}", a_record(), r"\{key.part\[2\]\}"),
        ("o.{partition}.{key.part[0]}", a_record(None), r"key.part"),
        ("o.{partition}.{header[x]}", a_record(), r"\{header\[x\]\}"),
        ("o.{partition}.{header[none]}", a_record(), "header"),
        ("o.{partition}.{value.customer}", a_record(), r"\{value.customer\}"),
        ("o.{partition}.{value.customer.id.x}", a_record(), "value"),
        ("o.{partition}.{value.list}", a_record(), "value"),
        ("o.{partition}.{value.x}", a_record(value=b"[1]"), "value"),
        ("o.{partition}.{value.x}", a_record(value=b"no JSON"), "no JSON"),
        ("o.{partition}.{value.x}", a_record(value=b'{"x": "\xff"}'), "no JSON"),
        ("o.{partition}.{value.x}", a_record(value=b'{"x": "\\ud800"}'), "no JSON"),
        ("o.{partition}.{value.x}", a_record(value=b"[" * 5_000 + b"]" * 5_000), "no JSON"),
        ("o.{partition}.{value.x}", a_record(value=None), "value"),
    ],
)
def test_a_record_that_lacks_what_is_wanted_has_no_subject(
    template: str, record: Record, lacks: str
) -> None:
    with pytest.raises(SubjectError, match=lacks):
        subject(template, record)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("o.{header[x]}.{partition}", "before"),
        ("o.{key.part[0]}.{partition}", "before"),
        ("o.{partition|lower}", "no filters"),
        ("o.{partition}.{key|upper}", "'upper'"),
        ("o.{partition}.{key|default()}", "default"),
        ("o.{partition}.{header[]}", "header"),
        ("o.{partition}.{value}", "value"),
        ("o.{partition}.{key.part}", "key.part"),
        ("o.{partition}.{key", "token"),
        ("o.{partition}." + ".".join(["{key|lower}"] * 11), "over 3900"),
        ("o.{partition}." + "x" * SUBJECT_BYTES_MAX, "over 3900"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Template(template, "orders", "%null")


values = st.one_of(
    st.none(),
    st.binary(max_size=30),
    st.text(max_size=300).map(lambda text: f'{{"a": "{text.encode().hex()}", "b": 1}}'.encode()),
)
TEMPLATES = [
    "o.{partition}.{key|lower}",
    "o.{partition}.{key|hash8}.{key}",
    "{topic}.{partition}.{key|default(none)}.x",
    "o.{partition}.{key.part[0,a]|default(-)}.{header[x]|default(-)}",
    "o.{partition}.{header[x]|default(none)|hash8}.{key}",
]


@given(records, st.sampled_from(TEMPLATES))
def test_any_record_comes_back_whatever_its_template(record: Record, template: str) -> None:
    mapping = Mapping(a_route("o", subject=template))

    made, read = through_the_wire(mapping, record)

    assert read == record
    assert covers(mapping.partition_filter(record.kafka_partition), made)
    assert not {"*", ">", ""} & set(made.split("."))
    assert made.isascii()
    assert made.isprintable()
    assert len(made) <= mapping.template.longest_bytes


@given(records, st.sampled_from(["%null", "none", "N123"]))
def test_a_key_in_a_subject_is_its_token(record: Record, null_token: str) -> None:
    token = to_token(record.key, null_token=null_token)

    made = [
        Template(text, "o", null_token).subject(record)
        for text in ("o.{partition}.{key}", "{partition}.a.b.{key|escape}.c")
    ]

    partition = record.kafka_partition
    assert made == [f"o.{partition}.{token}", f"{partition}.a.b.{token}.c"]


@given(records, values)
def test_fields_of_a_value_make_a_legal_subject_or_none(record: Record, value: bytes) -> None:
    mapping = Mapping(a_route("o", subject="o.{partition}.{value.a}.{value.b|default(-)}"))
    record = record._replace(value=value)
    try:
        made, read = through_the_wire(mapping, record)
    except RecordError:
        return

    assert read == record
    assert covers(mapping.partition_filter(record.kafka_partition), made)


def findings(*routes: Route) -> list[str]:
    return [f"{found.severity}: {found.what}" for found in lint(routes)]


def test_a_plain_route_has_nothing_suspicious() -> None:
    assert (
        findings(
            a_route("flights"), a_route("cars", stream="CARS", subject="cars.{partition}.{key}")
        )
        == []
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"subject": "f.{partition}.{header[x]}.{key}"},
            "warning: a record that has nothing for {header[x]}",
        ),
        ({"subject": "f.{partition}.{value.x|default(-)}.{key}"}, "warning: every value is parsed"),
        ({"subject": "f.{partition}"}, "warning: the whole key is not in the subject"),
        (
            {"subject": "f.{partition}.{key|lower}", "max_msgs_per_subject": 1},
            "error: max_msgs_per_subject 1",
        ),
        ({"subject": "f.{partition}.{key}" + 16 * ".x"}, "warning: subjects of more than 16"),
    ],
)
def test_a_suspicious_route_is_named(changes: dict[str, object], says: str) -> None:
    assert any(found.startswith(says) for found in findings(a_route("flights", **changes)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stream": "OTHER"}, "one subject space"),
        ({}, "one subject space"),
        ({"stream": "OTHER", "subject": "flights.cars.{partition}.{key}"}, "both listen to"),
        ({"subject": "cars.{partition}.{key}"}, "both must be shared"),
        ({"stream": "CARS", "subject": "c.{partition}.{key}", "name": "flights"}, "route name"),
    ],
)
def test_two_routes_in_each_others_way_are_named(changes: dict[str, object], says: str) -> None:
    errors = findings(a_route("flights"), a_route("cars", **changes))

    assert len(errors) == 1
    assert errors[0].startswith("error:")
    assert says in errors[0]


def test_of_many_routes_only_those_that_could_meet_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[set[str]] = []

    def note(one: Mapping, other: Mapping) -> list[lints.Lint]:
        compared.append({one.route.topic, other.route.topic})
        return []

    monkeypatch.setattr(lints, "_together", note)
    apart = [
        a_route(f"all.t{n}", stream=f"S{n}", subject=f"all.t{n}.{{partition}}.{{key}}")
        for n in range(50)
    ]
    inside = a_route("in", stream="IN", subject="all.t7.1.{partition}.{key}")

    lint([*apart, inside])

    assert compared == [{"all.t7", "in"}]


ABOVE = "all.{partition}.{topic}.{key}"


@pytest.mark.parametrize(
    ("changes", "odd", "errors"),
    [
        ({}, {}, 0),
        ({}, {"shared": False}, 100),
        ({"shared": False}, {}, 199),
        ({"name": "one"}, {}, 199),
        ({"stream": "S#", "subject": "all.{partition}.{key}"}, {}, 199),
        ({"stream": "S#", "subject": "all.{topic}.{partition}.{key}"}, {"subject": ABOVE}, 100),
    ],
    ids=["none", "one is not shared", "none is shared", "one name", "one subject space", "above"],
)
def test_of_many_routes_in_each_others_way_not_every_pair_is_named(
    changes: dict[str, Any], odd: dict[str, Any], errors: int
) -> None:
    """A thousand have half a million, for which one that was not shared was refused after 12 s."""
    routes = []
    for n in range(200):
        more = {"shared": True, "subject": "all.{topic}.{partition}.{key}", **changes}
        more |= {"stream": more.get("stream", "ALL").replace("#", str(n))}
        routes.append(a_route(f"t{n}", **{**more, **(odd if n == 100 else {})}))

    assert len(findings(*routes)) == errors


def test_of_two_routes_on_one_stream_the_one_that_is_not_shared_is_named() -> None:
    more = {"stream": "ALL", "subject": "{topic}.{partition}.{key}"}

    [found] = findings(a_route("flights", shared=True, **more), a_route("cars", **more))

    assert found.endswith("so both must be shared routes (not shared: cars)")


subject_patterns = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4).flatmap(
    lambda tokens: st.sampled_from([".".join(tokens), ".".join([*tokens, ">"]), ">"])
)


@given(st.lists(subject_patterns, max_size=8), subject_patterns)
def test_patterns_that_overlap_are_found_as_if_each_was_looked_at(
    patterns: list[str], wanted: str
) -> None:
    kept = Overlaps[int]()
    for n, pattern in enumerate(patterns):
        kept.add(pattern, n % 2, n)

    found = kept.other(wanted, 1)

    there = {n for n, it in enumerate(patterns) if n % 2 == 0 and overlap(it, wanted)}
    assert found in there if there else found is None


def test_dense_streams_listen_to_their_partitions_only() -> None:
    dense = a_route("flights", mode="dense", stream="FLIGHTS-{partition}")
    inside = a_route("cars", stream="CARS", subject="flights.cars.{partition}.{key}")

    assert findings(dense, inside) == []


def test_one_topic_twice_into_one_stream_is_an_error() -> None:
    assert "two routes move this topic" in findings(a_route("flights"), a_route("flights"))[0]
