"""Names written on the server, made and read."""

import pytest
from hypothesis import given, strategies as st

from millstream_coordinator import naming
from millstream_coordinator.errors import BadName
from millstream_coordinator.naming import ConsumerName

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


@given(NAMES, st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_consumers_name_reads_back(group: str, partition: int, epoch: int) -> None:
    name = naming.consumer(group, partition, epoch)

    assert naming.parse_consumer(group, name) == ConsumerName(partition, epoch)


@pytest.mark.parametrize(
    "name", ["other-p1-e2", "g-p1-e2-p3-e4", "g-p01-e2", "g-p1-e", "g-p-e2", "g", "gg-p1-e2"]
)
def test_what_is_no_consumer_of_the_group_is_not_read(name: str) -> None:
    assert naming.parse_consumer("g", name) is None


def test_a_group_whose_name_looks_like_a_consumer_is_told_apart() -> None:
    assert naming.parse_consumer("g", "g-p1-e2-p3-e4") is None
    assert naming.parse_consumer("g-p1-e2", "g-p1-e2-p3-e4") == ConsumerName(3, 4)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "ä", "*", "x" * 65])
def test_a_name_outside_its_alphabet_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        naming.check_name("group", name)


def test_keys_and_subjects_have_their_documented_form() -> None:
    assert naming.bucket("g") == "MILLSTREAM_g"
    assert naming.member_key("a") == "members.a"
    assert naming.partition_key(3) == "part.3"
    assert naming.done_key("a") == "done.a"
    assert naming.heartbeat("g", "a") == "millstream.group.g.heartbeat.a"
    assert naming.probe("g", "a") == "millstream.group.g.probe.a"
