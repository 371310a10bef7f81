"""What members of a group must agree on, and how a difference is told.

The bucket's ``cfg`` is written by the first member and compared by every other one. Some of it is
the group's own state (how many partitions there are now, a resize under way): nobody brings that
along. A member without a handler (a coordinator that only leads) knows neither filter nor key nor
policies, and takes what it finds; where such a member wrote ``cfg``, the first one with a handler
completes it. A key rule that is a function of the program has no text, and is not compared.
"""

from collections.abc import Callable
from dataclasses import replace

from ..model import ConfigRecord

_ALWAYS = ("partitions", "stream")
_OPTIONAL = ("key", "levels")
_HANDLERS = ("filter", *_OPTIONAL, "on_failure", "max_attempts", "prefer_label")
_TEXTS: dict[str, Callable[[ConfigRecord], str]] = {
    "partitions": lambda it: f"{it.partitions} partitions",
    "stream": lambda it: f"stream {it.stream!r}" if it.stream is not None else "no stream",
    "filter": lambda it: f"filter {it.filter!r}",
    "key": lambda it: f"key {it.key!r}",
    "levels": lambda it: "levels " + ", ".join(map(str, it.levels)),
    "on_failure": lambda it: f"on_failure {it.on_failure.value!r}",
    "max_attempts": lambda it: f"max_attempts {it.max_attempts}",
    "prefer_label": lambda it: f"prefer_label {it.prefer_label!r}",
}


def agree(found: ConfigRecord, wanted: ConfigRecord) -> ConfigRecord:
    """Return ``found``, completed by what ``wanted`` knows and it does not."""
    if not _has_handler(wanted):
        return found
    names = _HANDLERS if not _has_handler(found) else _OPTIONAL
    known = {name: getattr(wanted, name) for name in names}
    if _has_handler(found):
        known = {name: it for name, it in known.items() if it and not getattr(found, name)}
    return replace(found, **known)


def differences(found: ConfigRecord, wanted: ConfigRecord) -> tuple[str, str] | None:
    """Return what the group has and what the member wants where that differs; None: nothing."""
    names = list(_ALWAYS)
    if _has_handler(wanted) and _has_handler(found):
        names += _HANDLERS
    differing = [
        name
        for name in names
        if getattr(found, name) != getattr(wanted, name)
        and not (name in _OPTIONAL and not (getattr(found, name) and getattr(wanted, name)))
    ]
    if not differing:
        return None
    return tuple(", ".join(_TEXTS[name](it) for name in differing) for it in (found, wanted))  # type: ignore[return-value]


def _has_handler(config: ConfigRecord) -> bool:
    return config.filter is not None or config.stream is None
