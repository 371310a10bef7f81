"""Subject patterns, compiled once and asked many times.

A store asks the same few patterns (the filters of its consumers) about very many subjects, so a
pattern becomes a regular expression here: about 0.2 µs per question, where splitting both sides
into tokens takes five times as long. The rules are those of ``subjects``: ``*`` is one token, ``>``
at the end is one or more, and both only as whole tokens; tests hold the two against each other.
"""

import re
from collections.abc import Callable, Sequence


def compile_patterns(patterns: Sequence[str]) -> Callable[[str], object]:
    """One question for all patterns: truthy when a (valid) subject matches any of them."""
    if not patterns:
        return re.compile(r"(?!)").match
    return re.compile("|".join(map(_expression, patterns)), re.DOTALL).fullmatch


def _expression(pattern: str) -> str:
    *head, last = pattern.split(".")
    parts = ["[^.]+" if token == "*" else re.escape(token) for token in head]
    if last == ">":
        parts.append(".+")
    else:
        parts.append("[^.]+" if last == "*" else re.escape(last))
    return r"\.".join(parts)
