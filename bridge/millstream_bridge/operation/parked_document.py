"""A parked record as a JSON document that people read, edit and give back. Pure.

Bytes are ``{"text": …}`` where they are UTF-8, else ``{"base64": …}``; null is null.
"""

import base64
import binascii
import json
from typing import Any

from ..errors import ConfigurationError
from ..model import Record, Route
from ..moving.parked import Parked

SCHEMA = "millstream.bridge.parked/1"
_HEADER_FIELDS = 2
_EDITABLE = ("key", "value", "headers", "timestamp_ms")


def summary(route: Route, parked: Parked) -> dict[str, Any]:
    """What a listing shows."""
    return {
        "route": route.name,
        "topic": route.topic,
        "kafka_partition": parked.kafka_partition,
        "offset": parked.offset,
        "reason": parked.reason,
        "parked_at": parked.parked_at.isoformat(),
        "bytes": parked.bytes,
        "is_repaired": parked.is_repaired,
    }


def document(route: Route, parked: Parked, record: Record) -> dict[str, Any]:
    """The whole record."""
    return {
        "schema": SCHEMA,
        **summary(route, parked),
        "timestamp_ms": record.timestamp_ms,
        "timestamp_type": record.timestamp_type.value,
        "key": _shown(record.key),
        "value": _shown(record.value),
        "headers": [[name, _shown(content)] for name, content in record.headers],
    }


def edited(record: Record, text: str, where: str) -> Record:
    """The record with what an edited document says of key, value, headers and timestamp.

    ConfigurationError says what in ``where`` cannot be read.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict) or not set(found) & set(_EDITABLE):
        raise ConfigurationError(f"{where} has none of {', '.join(_EDITABLE)}")
    for name, own in (("kafka_partition", record.kafka_partition), ("offset", record.offset)):
        if found.get(name, own) != own:
            raise ConfigurationError(f"{where} is of {name} {found[name]}, not {own}")
    timestamp_ms = found.get("timestamp_ms", record.timestamp_ms)
    if not isinstance(timestamp_ms, int):
        raise ConfigurationError(f"{where}: timestamp_ms is no whole number")
    if "headers" in found:
        headers = found["headers"]
        if not isinstance(headers, list) or not all(map(_is_header, headers)):
            raise ConfigurationError(f"{where}: headers is no list of [name, content]")
        read = [(name, _read(content, f"{where}: header {name}")) for name, content in headers]
        record = record._replace(headers=tuple(read))
    if "key" in found:
        record = record._replace(key=_read(found["key"], f"{where}: key"))
    if "value" in found:
        record = record._replace(value=_read(found["value"], f"{where}: value"))
    return record._replace(timestamp_ms=timestamp_ms)


def _is_header(item: object) -> bool:
    return isinstance(item, list) and len(item) == _HEADER_FIELDS and isinstance(item[0], str)


def _shown(data: bytes | None) -> dict[str, str] | None:
    if data is None:
        return None
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _read(shown: Any, where: str) -> bytes | None:
    match shown:
        case None:
            return None
        case {"text": str(text), **rest} if not rest:
            return text.encode("utf-8")
        case {"base64": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise ConfigurationError(f"{where} is no base64") from error
    raise ConfigurationError(f'{where} is neither null nor {{"text": …}} nor {{"base64": …}}')
