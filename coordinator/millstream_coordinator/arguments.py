"""Numbers and durations that users give, checked at once: each raises ValueError, one line."""

from datetime import timedelta

from .model import seconds


def check_number(argument: str, given: object, least: int) -> None:
    """A whole number, at least ``least``."""
    if not isinstance(given, int) or given < least:
        raise ValueError(f"{argument} must be at least {least}, not {given!r}")


def duration_s(argument: str, given: object) -> float:
    """A duration in seconds; a bare number is one that many users write."""
    if not isinstance(given, timedelta) or given < timedelta(0):
        raise ValueError(f"{argument} must be a timedelta of 0 or more, not {given!r}")
    return seconds(given)
