"""Stored messages back to records, fast for the common form. Pure.

Most messages are: lines of the server's (``Nats-…``), source, origin, and headers that went one to
one. One expression cuts the parts of the record out of such a block, in the very form that
`parts_of` gives them. The key is cut out of the subject where it is its own token, as most are;
others are looked up by the subject, which a mapping has read once. Everything else, as a key that
is in a header, goes through `Mapping.record`, which reads all forms.
"""

import re
from typing import Final

from millstream_coordinator.partitioning.key import KEY_HEADER

from ..model import Record
from ..records.headers import SOURCE_HEADER, lines_of
from ..records.mapping import Mapping
from .parts import Parts

_CACHED_SUBJECTS_MAX: Final = 65_536

_NOTHING: Final = re.compile(rb"(?!)")

_Found = tuple[bytes, bytes, bool]
"""What a subject tells: the partition as text, the key, and whether that is null."""


class Decoder:
    """Records of one route; keeps a bounded cache of the subjects it has read."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        topic = re.escape(mapping.route.topic).encode()
        self._plain = re.compile(
            rb"NATS/1\.0\r\n(?:Nats-.*\r\n)*+"
            + SOURCE_HEADER.encode()
            + rb": "
            + topic
            + rb" (\d{1,10}) ((0|[1-9]\d{0,18}) (?:0|-?[1-9]\d{0,18}) [cl](?: (nk?|k))?)\r\n"
            rb"Millstream-Origin: .*\r\n"
            rb"((?:(?!(?i:nats-|millstream-))[!-9;-~]+: (?! ).*(?<! )\r\n)*+)\r\n"
        ).fullmatch
        own = mapping.template.plain_subject
        self._subjects = (own or _NOTHING).fullmatch
        self._null_token = mapping.route.null_token.encode()
        self._keys: dict[bytes, _Found] = {}
        self._is_of_key_alone = mapping.template.is_of_key_alone

    def common(self, subject: bytes, block: bytes, payload: bytes) -> tuple[int, int, Parts] | None:
        """Partition, offset and parts of the record.

        None: the message is not of the common form, or its subject holds no plain key and was not
        met before.
        """
        match = self._plain(block)
        if match is None:
            return None
        partition, head, offset, flags, lines = match.groups()
        if (found := self._keys.get(subject)) is not None:
            text, key, has_null_key = found
        elif (own := self._subjects(subject)) is not None:
            text, key = own.groups()
            has_null_key = False
            if key == self._null_token:
                return None
        else:
            return None
        if text != partition:
            return None
        if flags is None:
            if has_null_key:
                return None
        elif (b"k" in flags) is not has_null_key or (b"n" in flags and payload):
            return None
        if lines:
            return int(partition), int(offset), (head, key, payload, lines)
        return int(partition), int(offset), (head, key, payload)

    def record(self, subject: str, headers: list[tuple[str, str]], payload: bytes) -> Record:
        """The record of any form; ValueError (HeaderError, KeyTokenError): it is damaged."""
        record = self._mapping.record(subject, headers, payload)
        if self._is_of_key_alone and not any(name == KEY_HEADER for name, _ in headers):
            if len(self._keys) >= _CACHED_SUBJECTS_MAX:
                self._keys.clear()
            partition, key = record.kafka_partition, record.key
            self._keys[subject.encode()] = b"%d" % partition, key or b"", key is None
        return record

    @staticmethod
    def lines(block: bytes) -> list[tuple[str, str]]:
        """The header lines of a block, [] of none."""
        return lines_of(block)
