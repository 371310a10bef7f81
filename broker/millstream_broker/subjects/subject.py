"""Subjects and patterns: what is valid, what matches what.

A subject is tokens joined by dots. ``*`` alone stands for one token, ``>`` alone and last for one
or more; anything else is literal text, also ``foo*``. A *pattern* may hold wildcards, a *subject*
that is matched never does: a published ``foo.*`` is delivered as that text and its ``*`` is an
ordinary token.
"""

_FORBIDDEN = frozenset(" \t\n\f\r")


def is_valid(pattern: str) -> bool:
    """Whether SUB or a stream may use it: no empty token, no white space, ``>`` only at the end."""
    if not pattern or not _FORBIDDEN.isdisjoint(pattern):
        return False
    tokens = pattern.split(".")
    return "" not in tokens and ">" not in tokens[:-1]


def is_literal(subject: str) -> bool:
    """Whether no token is a wildcard. Says nothing of validity."""
    if "*" not in subject and ">" not in subject:
        return True
    tokens = subject.split(".")
    return "*" not in tokens and ">" not in tokens


def is_publishable(subject: str) -> bool:
    """What a pedantic client may publish to: literal, and no token is empty."""
    return "" not in subject.split(".") and is_literal(subject)


def matches(pattern: str, subject: str) -> bool:
    """Whether ``subject`` reaches ``pattern``; a subject with an empty token reaches none."""
    wanted, given = pattern.split("."), subject.split(".")
    if "" in given:
        return False
    if wanted[-1] == ">":
        if len(given) < len(wanted):
            return False
        del wanted[-1]
    elif len(given) != len(wanted):
        return False
    return all(w in ("*", g) for w, g in zip(wanted, given, strict=False))


def collides(a: str, b: str) -> bool:
    """Whether some literal subject matches both patterns."""
    left, right = a.split("."), b.split(".")
    for x, y in zip(left, right, strict=False):
        if x == ">" or y == ">":
            return True
        if x not in ("*", y) and y != "*":
            return False
    return len(left) == len(right)


def is_subset(pattern: str, of: str) -> bool:
    """Whether every literal subject that matches ``pattern`` matches ``of`` too."""
    inner, outer = pattern.split("."), of.split(".")
    for position, token in enumerate(outer):
        if position == len(inner):
            return False
        if token == ">":
            return True
        if inner[position] == ">" or token not in ("*", inner[position]):
            return False
    return len(inner) == len(outer)
