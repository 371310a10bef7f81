"""A route's own rules: what contradicts itself is refused before anything is touched."""

from typing import Any

import pytest

from millstream_bridge import ConfigurationError, Route
from tests.bridge.moves import a_route

DENSE = {"mode": "dense", "stream": "FLIGHTS-{partition}"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mode": "sparse"}, "grouped, dense"),
        ({"on_poison": "drop"}, "stop, park, skip"),
        ({"storage": "disk"}, "file, memory"),
        ({"mode": "dense"}, "needs {partition} once"),
        ({"stream": "F-{partition}"}, "only a dense route"),
        ({**DENSE, "shared": True}, "shared"),
        ({**DENSE, "large": "chunks"}, "large"),
        ({"replicas": 0}, "replicas 0"),
        ({"replicas": 6}, "replicas 6"),
        ({"max_msgs_per_subject": 0}, "not above 0"),
        ({"max_bytes": 1 << 30}, "max_bytes"),
        ({"max_bytes": 1 << 30, "shared": True}, "max_bytes"),
        ({"max_age_s": 3600}, "position would expire"),
        ({"tombstone_ttl_s": 3600}, "position would expire"),
    ],
)
def test_a_route_that_contradicts_itself_is_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint.replace("{", r"\{")) as refused:
        a_route("flights", **changes)

    assert "flights" in str(refused.value)


def test_a_shared_route_may_let_its_messages_expire() -> None:
    route: Route = a_route("flights", shared=True, max_age_s=3600)

    assert route.max_age_s == 3600
