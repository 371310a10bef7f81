"""Patterns of subjects beside each other, and those a stream's configuration says it stores."""

import pytest

from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.partitioning.pattern import covers, overlap, stored_subjects


@pytest.mark.parametrize(
    ("wide", "narrow", "is_covered", "overlaps"),
    [
        ("a.b", "a.b", True, True),
        ("a.*", "a.b", True, True),
        ("a.>", "a.b.c", True, True),
        ("a.>", "a.b.>", True, True),
        ("a.>", "a.>", True, True),
        ("a.>", "a", False, False),
        ("a.*", "a.>", False, True),
        ("a.*", "a.b.c", False, False),
        ("a.*.c", "a.b.*", False, True),
        ("a.b", "a.*", False, True),
        ("a.b", "a.b.c", False, False),
        ("a.b.c", "a.b", False, False),
        (">", "a.*", True, True),
        ("b.>", "a.>", False, False),
        ("a.*.c", "a.*.c", True, True),
        (">", "*.>", True, True),
    ],
)
def test_patterns_cover_and_overlap(
    wide: str, narrow: str, is_covered: bool, overlaps: bool
) -> None:
    assert covers(wide, narrow) is is_covered
    assert overlap(wide, narrow) is overlap(narrow, wide) is overlaps


def test_a_transforms_destination_counts_as_stored_subjects() -> None:
    stored = stored_subjects(["flights.*"], "flights.{{partition(10, 1)}}.{{wildcard(1)}}")

    assert stored == ["flights.*", "flights.*.*"]
    KeyRule.parse("flights.*.{key}").check(stored, 10)


def test_a_transforms_short_form_is_a_wildcard_too() -> None:
    assert stored_subjects([], "a.$1.{{ Partition(4) }}.>") == ["a.*.*.>"]
