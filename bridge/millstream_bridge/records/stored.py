"""What a stored message tells of its record, kept small: enough to know another record by. Pure."""

from typing import NamedTuple

from ..model import KafkaHeader, Record
from .chunks import digest_of, reference_in
from .headers import LARGE_HEADER, NOT_HERE, NatsHeaders, SourceHeader
from .mapping import Mapping, OtherSubjectError


class Content(NamedTuple):
    """Key, headers, and a hash of the value; None is Kafka's null."""

    key: bytes | None
    headers: tuple[KafkaHeader, ...]
    digest: str | None


class Stored(NamedTuple):
    """A record at a sequence. ``content`` is None where it is not known, as of a parked record."""

    seq: int
    source: SourceHeader
    content: Content | None

    def differences(self, record: Record) -> list[str]:
        """In what a record of the same partition and offset is another; words for people."""
        same = {
            "timestamp": self.source.timestamp_ms == record.timestamp_ms
            and self.source.timestamp_type == record.timestamp_type
        }
        if self.content is not None:
            same["key"] = self.content.key == record.key
            same["value"] = self.content.digest == _digest(record.value)
            same["headers"] = self.content.headers == record.headers
        return [name for name, is_same in same.items() if not is_same]


def stored_of(
    mapping: Mapping, seq: int, subject: str, headers: NatsHeaders, payload: bytes
) -> Stored | None:
    """The record of the mapping's route that a message is, None if it is none.

    OtherSubjectError: the route's template would have made another subject.
    """
    source = mapping.source_in(headers)
    if source is None:
        return None
    if NOT_HERE in source.flags:
        return Stored(seq, source, None)
    try:
        reference = reference_in(headers)
        if reference is not None and mapping.template.reads_value:
            return Stored(seq, source, None)
        rest = [header for header in headers if header[0] != LARGE_HEADER]
        record = mapping.record(subject, rest, payload, source)
    except OtherSubjectError:
        raise
    except ValueError:  # damaged: `verify` tells
        return Stored(seq, source, None)
    digest = _digest(record.value) if reference is None else reference.digest
    return Stored(seq, source, Content(record.key, record.headers, digest))


def _digest(value: bytes | None) -> str | None:
    return None if value is None else digest_of(value)
