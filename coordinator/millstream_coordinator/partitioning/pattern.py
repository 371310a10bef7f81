"""Patterns of NATS subjects: which covers another, which may match the same, what a stream stores.

``*`` stands for any one token, ``>`` at the end for one or more.
"""

import re
from collections.abc import Iterable, Sequence


def covers(wide: str, narrow: str) -> bool:
    """Whether ``wide`` matches every subject that ``narrow``, a subject or pattern, matches."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for place, token in enumerate(wide_tokens):
        if token == ">":
            return len(narrow_tokens) > place
        if place >= len(narrow_tokens) or narrow_tokens[place] == ">":
            return False
        if token not in ("*", narrow_tokens[place]):
            return False
    return len(wide_tokens) == len(narrow_tokens)


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    return tokens_overlap(one.split("."), other.split("."))


def tokens_overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    """`overlap` of patterns that are in tokens already."""
    for mine, theirs in zip(one, other, strict=False):
        if ">" in (mine, theirs):
            return True
        if mine != theirs and "*" not in (mine, theirs):
            return False
    return len(one) == len(other)


def stored_subjects(subjects: Iterable[str], transform_destination: str | None = None) -> list[str]:
    """Patterns of the subjects a stream stores, from its config's ``subjects`` and transform.

    A transform leaves what its source does not match as it was, so both forms are listed.
    """
    patterns = list(subjects)
    if transform_destination:
        spaceless = re.sub(r"\{\{.*?\}\}", "*", transform_destination)
        tokens = ["*" if re.fullmatch(r"\$\d+", token) else token for token in spaceless.split(".")]
        patterns.append(".".join(tokens))
    return patterns
