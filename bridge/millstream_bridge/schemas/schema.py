"""A schema as a registry has it, and how it lies in the bucket. Pure.

The bucket ``MILLSTREAM_SCHEMAS`` has, as JSON:

* ``id.<id>``: the schema that values refer to by their first five bytes; of the default context
* ``subject.<subject>.<version>``: the same, under the name and number it was registered with
* ``config`` and ``config.<subject>``: the compatibility asked for, in general and of a subject

A subject's name is escaped to one key token: what is not a letter, digit, ``_`` or ``-`` becomes
``=`` and two hexadecimal digits of its UTF-8 bytes.
"""

import re
from typing import Final

import msgspec

BUCKET: Final = "MILLSTREAM_SCHEMAS"
AVRO, PROTOBUF, JSON = "AVRO", "PROTOBUF", "JSON"


class Reference(msgspec.Struct, frozen=True):
    """Another schema that a schema is made with, under ``name``."""

    name: str
    subject: str
    version: int


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a subject; ``text`` as the registry has it."""

    id: int
    subject: str
    version: int
    type: str = AVRO
    text: str
    references: tuple[Reference, ...] = ()


def id_key(schema_id: int) -> str:
    """Where a schema is by its id."""
    return f"id.{schema_id}"


def version_key(subject: str, version: int) -> str:
    """Where a schema is by its subject and version."""
    return f"subject.{token(subject)}.{version}"


def config_key(subject: str | None) -> str:
    """Where the compatibility is, of a subject or (None) in general."""
    return "config" if subject is None else f"config.{token(subject)}"


def is_of_default_context(subject: str) -> bool:
    """Whether the subject's ids are those that values carry without more."""
    return not subject.startswith(":.") or subject.startswith(":.:")


def token(subject: str) -> str:
    """A subject's name as one token of a key."""
    return re.sub(
        rb"[^A-Za-z0-9_-]", lambda found: b"=%02X" % found[0][0], subject.encode("utf-8")
    ).decode("ascii")
