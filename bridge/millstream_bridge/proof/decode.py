"""Stored messages back to records, fast for the common form. Pure.

Most messages are: lines of the server's (``Nats-…``), source, origin, and headers that went one to
one. One expression takes such a block apart; the key is looked up by the subject, which a mapping
has read once. Everything else goes through `Mapping.record`, which reads all forms.
"""

import re
from typing import Final

from ..model import KafkaHeader, Record, TimestampType
from ..records.headers import SOURCE_HEADER, parse_block
from ..records.mapping import Mapping

_CACHED_SUBJECTS_MAX: Final = 65_536
_TYPES: Final = {kind.value.encode(): kind for kind in TimestampType}
_OWN: Final = re.compile(rb"(?i)(?:^|\n)(?:nats|millstream)-")


class Decoder:
    """Records of one route; keeps a bounded cache of the subjects it has read."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        topic = re.escape(mapping.route.topic).encode()
        self._plain = re.compile(
            rb"NATS/1\.0\r\n(?:Nats-[!-9;-~]+:[^\r\n]*\r\n)*+"
            + SOURCE_HEADER.encode()
            + rb": "
            + topic
            + rb" (\d{1,10}) (\d{1,19}) (-?\d{1,19}) ([cl])(?: ([nk]{1,2}))?\r\n"
            rb"Millstream-Origin: [^\r\n]*\r\n((?:[^\r\n]+\r\n)*+)\r\n"
        )
        self._keys: dict[str, tuple[bytes, int, bytes | None]] = {}
        self._is_of_key_alone = mapping.template.is_of_key_alone

    def common(self, subject: str, block: bytes, payload: bytes) -> Record | None:
        """The record, if the message is of the common form and its subject was met before."""
        match = self._plain.fullmatch(block)
        found = self._keys.get(subject)
        if match is None or found is None:
            return None
        partition_text, offset, timestamp_ms, kind, flags, rest = match.groups()
        text, partition, key = found
        if text != partition_text or (rest and _OWN.search(rest)):
            return None
        value: bytes | None = payload
        if flags is None:
            if key is None:
                return None
        else:
            if (b"k" in flags) is not (key is None):
                return None
            if b"n" in flags:
                if payload:
                    return None
                value = None
        return Record(
            partition,
            int(offset),
            int(timestamp_ms),
            _TYPES[kind],
            key,
            value,
            _headers(rest) if rest else (),
        )

    def record(self, subject: str, headers: list[tuple[str, str]], payload: bytes) -> Record:
        """The record of any form; ValueError (HeaderError, KeyTokenError): it is damaged."""
        record = self._mapping.record(subject, headers, payload)
        if self._is_of_key_alone:
            if len(self._keys) >= _CACHED_SUBJECTS_MAX:
                self._keys.clear()
            text = b"%d" % record.kafka_partition
            self._keys[subject] = (text, record.kafka_partition, record.key)
        return record

    @staticmethod
    def lines(block: bytes) -> list[tuple[str, str]]:
        """The header lines of a block, [] of none."""
        return parse_block(block)[1] if block else []


def _headers(rest: bytes) -> tuple[KafkaHeader, ...]:
    headers = []
    for line in rest.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers.append((name.decode("latin-1"), value.strip(b" ")))
    return tuple(headers)
