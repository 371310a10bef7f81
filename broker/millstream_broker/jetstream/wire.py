"""Between JSON and the model: a table per object, strict reading, errors in Go's words.

A table maps wire fields to how they are read and written. Reading goes through the document in
its own order, as Go does, so that the first wrong field is the one named; a field no table
knows is refused in strict mode. Writing leaves out zero values except those nats-server always
shows.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Final, TypeVar

import msgspec

from . import model, strictjson
from .strictjson import JsonError

ZERO_TIME: Final = "0001-01-01T00:00:00Z"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))"
)

T = TypeVar("T")


def format_time(ns: int | None) -> str:
    """RFC 3339 in UTC with as many digits as needed; None is Go's zero time."""
    if ns is None:
        return ZERO_TIME
    seconds, rest = divmod(ns, 1_000_000_000)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    if len(text) < 19:  # years before 1000 come without leading zeros on some platforms
        text = text.rjust(19, "0")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"


def parse_time(text: str) -> int | None:
    """Nanoseconds since 1970 of an RFC 3339 time; None for Go's zero time. Raises JsonError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise JsonError(
            f'parsing time "{text}" as "2006-01-02T15:04:05Z07:00": cannot parse "{text}" as "2006"'
        )
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise JsonError(f'parsing time "{text}": day out of range') from None
    if moment.year == 1:
        return None
    if match[8]:
        offset = timedelta(hours=int(match[9]), minutes=int(match[10]))
        moment = moment - offset if match[8] == "+" else moment + offset
    whole = (moment - _EPOCH) // timedelta(seconds=1)
    return whole * 1_000_000_000 + int((match[7] or "0")[:9].ljust(9, "0"))


class Kind(Enum):
    """How a field's value is read; the value is Go's name of the type, for its error texts."""

    STR = "string"
    INT = "int"
    INT32 = "int32"
    INT64 = "int64"
    UINT64 = "uint64"
    BOOL = "bool"
    DURATION = "time.Duration"
    DURATIONS = "[]time.Duration"
    TIME = "time.Time"
    STRS = "[]string"
    MAP = "map[string]string"
    ENUM = "enum"
    OBJECT = "object"
    OBJECTS = "[]object"


@dataclass(frozen=True, slots=True)
class Field:
    """One wire field: where it goes in the model, how, and whether it is written when zero."""

    name: str
    kind: Kind
    always: bool = False
    enum: type[StrEnum] | None = None
    table: "Table | None" = None

    @property
    def attribute(self) -> str:
        """The model's name of the field."""
        timed = (Kind.DURATION, Kind.DURATIONS, Kind.TIME)
        return f"{self.name}_ns" if self.kind in timed else self.name


class Table:
    """The fields of one object and the class they make."""

    def __init__(self, go_name: str, made: type[Any], *fields: Field) -> None:
        self.go_name = go_name
        self.made = made
        self.fields = {field.name: field for field in fields}

    def read(self, document: Any, path: str, *, strict: bool) -> Any:
        """Make the value; null makes the zero value. Raises JsonError."""
        if document is None:
            return self.made()
        if not isinstance(document, dict):
            raise JsonError(_mismatch(document, path, f"server.{self.go_name}"))
        values = {}
        for name, raw in document.items():
            field = self.fields.get(name) or self.fields.get(name.lower())
            if field is None:
                if strict:
                    raise JsonError(f'json: unknown field "{name}"')
                continue
            if raw is not None:
                values[field.attribute] = _read(field, raw, f"{path}.{name}", strict=strict)
        return self.made(**values)

    def write(self, value: Any) -> dict[str, Any]:
        """Give the JSON object, zero values left out where nats-server leaves them out."""
        document = {}
        for field in self.fields.values():
            raw = getattr(value, field.attribute)
            if field.always or (raw is not None and raw != 0 and raw != "" and raw != ()):
                if isinstance(raw, Mapping) and not raw:
                    continue
                if not field.always and field.enum is not None and raw == next(iter(field.enum)):
                    continue
                document[field.name] = _write(field, raw)
        return document


_INT_RANGES: Final = {
    Kind.INT: (-(1 << 63), 1 << 63),
    Kind.INT64: (-(1 << 63), 1 << 63),
    Kind.DURATION: (-(1 << 63), 1 << 63),
    Kind.INT32: (-(1 << 31), 1 << 31),
    Kind.UINT64: (0, 1 << 64),
}


def _mismatch(raw: Any, path: str, wanted: str) -> str:
    """Go's text for a value of another type; a path without a dot is the document itself."""
    names = {bool: "bool", str: "string", dict: "object", list: "array"}
    found = names.get(type(raw), "number")
    where = f"Go struct field {path}" if "." in path else "Go value"
    return f"json: cannot unmarshal {found} into {where} of type {wanted}"


def _read_int(raw: Any, path: str, kind: Kind) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise JsonError(_mismatch(raw, path, kind.value))
    low, high = _INT_RANGES[kind]
    if not isinstance(raw, int) or not low <= raw < high:
        raise JsonError(
            f"json: cannot unmarshal number {msgspec.json.encode(raw).decode()} "
            f"into Go struct field {path} of type {kind.value}"
        )
    return raw


def _read_texts(raw: Any, path: str) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise JsonError(_mismatch(raw, path, Kind.STRS.value))
    for index, entry in enumerate(raw):
        if not isinstance(entry, str):
            found = _mismatch(entry, path, "").split(" into ")[0]
            raise JsonError(f"{found} into {path}.{index} of type string")
    return tuple(raw)


def _read_enum(field: Field, raw: Any) -> StrEnum:
    assert field.enum is not None
    try:
        return field.enum(raw)
    except ValueError:
        shown = msgspec.json.encode(raw).decode()
        if field.enum is model.Action:
            raise JsonError(f"unknown consumer action: {shown}") from None
        quoted = shown.replace("\\", "\\\\").replace('"', '\\"')
        raise JsonError(f'can not unmarshal "{quoted}"') from None


def _read_map(raw: Any, path: str) -> Mapping[str, str]:
    if not isinstance(raw, dict):
        raise JsonError(_mismatch(raw, path, Kind.MAP.value))
    for entry in raw.values():
        if not isinstance(entry, str):
            raise JsonError(_mismatch(entry, path, "string"))
    return raw


def _read(field: Field, raw: Any, path: str, *, strict: bool) -> Any:
    kind = field.kind
    if kind in _INT_RANGES:
        return _read_int(raw, path, kind)
    if kind is Kind.ENUM:
        return _read_enum(field, raw)
    if kind is Kind.STRS:
        return _read_texts(raw, path)
    if kind is Kind.MAP:
        return _read_map(raw, path)
    if kind is Kind.OBJECT:
        assert field.table is not None
        return field.table.read(raw, path, strict=strict)
    if kind in (Kind.OBJECTS, Kind.DURATIONS):
        if not isinstance(raw, list):
            raise JsonError(_mismatch(raw, path, kind.value))
        if kind is Kind.DURATIONS:
            return tuple(_read_int(entry, path, Kind.DURATION) for entry in raw)
        assert field.table is not None
        return tuple(field.table.read(entry, path, strict=strict) for entry in raw)
    if kind is Kind.BOOL:
        if not isinstance(raw, bool):
            raise JsonError(_mismatch(raw, path, kind.value))
        return raw
    if not isinstance(raw, str):
        raise JsonError(_mismatch(raw, path, kind.value))
    return parse_time(raw) if kind is Kind.TIME else raw


def _write(field: Field, raw: Any) -> Any:
    match field.kind:
        case Kind.TIME:
            return format_time(raw)
        case Kind.OBJECT:
            assert field.table is not None
            return field.table.write(raw)
        case Kind.OBJECTS:
            assert field.table is not None
            return [field.table.write(entry) for entry in raw]
        case Kind.STRS | Kind.DURATIONS:
            return list(raw)
        case Kind.MAP:
            return dict(sorted(raw.items()))
        case _:
            return raw


def _str(name: str, *, always: bool = False) -> Field:
    return Field(name, Kind.STR, always)


def _int(name: str, kind: Kind = Kind.INT, *, always: bool = False) -> Field:
    return Field(name, kind, always)


def _bool(name: str, *, always: bool = False) -> Field:
    return Field(name, Kind.BOOL, always)


def _enum(name: str, enum: type[StrEnum], *, always: bool = True) -> Field:
    return Field(name, Kind.ENUM, always, enum)


def _object(name: str, table: Table, *, always: bool = False) -> Field:
    return Field(name, Kind.OBJECT, always, None, table)


SUBJECT_TRANSFORM: Final = Table(
    "SubjectTransformConfig",
    model.SubjectTransform,
    _str("src", always=True),
    _str("dest", always=True),
)
REPUBLISH: Final = Table(
    "RePublish", model.RePublish, _str("src"), _str("dest", always=True), _bool("headers_only")
)
PLACEMENT: Final = Table(
    "Placement", model.Placement, _str("cluster"), Field("tags", Kind.STRS), _str("preferred")
)
EXTERNAL: Final = Table(
    "ExternalStream", model.ExternalStream, _str("api", always=True), _str("deliver", always=True)
)
CONSUMER_SOURCE: Final = Table(
    "StreamConsumerSource", model.StreamConsumerSource, _str("name"), _str("deliver_subject")
)
STREAM_SOURCE: Final = Table(
    "StreamSource",
    model.StreamSource,
    _str("name", always=True),
    _int("opt_start_seq", Kind.UINT64),
    Field("opt_start_time", Kind.TIME),
    _str("filter_subject"),
    Field("subject_transforms", Kind.OBJECTS, table=SUBJECT_TRANSFORM),
    _object("external", EXTERNAL),
    _object("consumer", CONSUMER_SOURCE),
)
CONSUMER_LIMITS: Final = Table(
    "StreamConsumerLimits",
    model.ConsumerLimits,
    Field("inactive_threshold", Kind.DURATION),
    _int("max_ack_pending"),
)
STREAM_CONFIG: Final = Table(
    "StreamConfig",
    model.StreamConfig,
    _str("name", always=True),
    _str("description"),
    Field("subjects", Kind.STRS),
    _enum("retention", model.Retention),
    _int("max_consumers", always=True),
    _int("max_msgs", Kind.INT64, always=True),
    _int("max_bytes", Kind.INT64, always=True),
    Field("max_age", Kind.DURATION, always=True),
    _int("max_msgs_per_subject", Kind.INT64, always=True),
    _int("max_msg_size", Kind.INT32, always=True),
    _enum("discard", model.Discard),
    _enum("storage", model.StorageType),
    _int("num_replicas", always=True),
    _bool("no_ack"),
    Field("duplicate_window", Kind.DURATION),
    _object("placement", PLACEMENT),
    _object("mirror", STREAM_SOURCE),
    Field("sources", Kind.OBJECTS, table=STREAM_SOURCE),
    _enum("compression", model.Compression),
    _int("first_seq", Kind.UINT64),
    _object("subject_transform", SUBJECT_TRANSFORM),
    _object("republish", REPUBLISH),
    _bool("allow_direct", always=True),
    _bool("mirror_direct", always=True),
    _bool("discard_new_per_subject"),
    _bool("sealed", always=True),
    _bool("deny_delete", always=True),
    _bool("deny_purge", always=True),
    _bool("allow_rollup_hdrs", always=True),
    _object("consumer_limits", CONSUMER_LIMITS, always=True),
    _bool("allow_msg_ttl", always=True),
    Field("subject_delete_marker_ttl", Kind.DURATION),
    _bool("allow_msg_counter"),
    _bool("allow_atomic"),
    _bool("allow_msg_schedules"),
    _enum("persist_mode", model.PersistMode, always=False),
    _bool("allow_batched"),
    Field("metadata", Kind.MAP),
)
CONSUMER_CONFIG: Final = Table(
    "ConsumerConfig",
    model.ConsumerConfig,
    _str("durable_name"),
    _str("name"),
    _str("description"),
    _enum("deliver_policy", model.DeliverPolicy),
    _int("opt_start_seq", Kind.UINT64),
    Field("opt_start_time", Kind.TIME),
    _enum("ack_policy", model.AckPolicy),
    Field("ack_wait", Kind.DURATION),
    _int("max_deliver"),
    Field("backoff", Kind.DURATIONS),
    _str("filter_subject"),
    Field("filter_subjects", Kind.STRS),
    _enum("replay_policy", model.ReplayPolicy),
    _int("rate_limit_bps", Kind.UINT64),
    _str("sample_freq"),
    _int("max_waiting"),
    _int("max_ack_pending"),
    _bool("flow_control"),
    _bool("headers_only"),
    _int("max_batch"),
    Field("max_expires", Kind.DURATION),
    _int("max_bytes"),
    _str("deliver_subject"),
    _str("deliver_group"),
    Field("idle_heartbeat", Kind.DURATION),
    Field("inactive_threshold", Kind.DURATION),
    _int("num_replicas", always=True),
    _bool("mem_storage"),
    _bool("direct"),
    _bool("sourcing"),
    Field("metadata", Kind.MAP),
    Field("pause_until", Kind.TIME),
    Field("priority_groups", Kind.STRS),
    _str("priority_policy"),
    Field("priority_timeout", Kind.DURATION),
)
CONSUMER_REQUEST: Final = Table(
    "CreateConsumerRequest",
    model.ConsumerRequest,
    _str("stream_name"),
    _object("config", CONSUMER_CONFIG),
    _enum("action", model.Action),
    _bool("pedantic"),
)
PAGE: Final = Table("JSApiStreamNamesRequest", model.PageRequest, _int("offset"), _str("subject"))
CONSUMER_PAGE: Final = Table("JSApiConsumersRequest", model.PageRequest, _int("offset"))
UNPIN: Final = Table("JSApiConsumerUnpinRequest", model.UnpinRequest, _str("group"))
STREAM_INFO: Final = Table(
    "JSApiStreamInfoRequest",
    model.StreamInfoRequest,
    _int("offset"),
    _bool("deleted_details"),
    _str("subjects_filter"),
)
PURGE: Final = Table(
    "JSApiStreamPurgeRequest",
    model.PurgeRequest,
    _str("filter"),
    _int("seq", Kind.UINT64),
    _int("keep", Kind.UINT64),
)
GET: Final = Table(
    "JSApiMsgGetRequest",
    model.GetRequest,
    _int("seq", Kind.UINT64),
    _str("last_by_subj"),
    _str("next_by_subj"),
    _int("batch"),
    _int("max_bytes"),
    Field("start_time", Kind.TIME),
    Field("multi_last", Kind.STRS),
    _int("up_to_seq", Kind.UINT64),
    Field("up_to_time", Kind.TIME),
    _bool("no_hdr"),
)
DELETE: Final = Table(
    "JSApiMsgDeleteRequest", model.DeleteRequest, _int("seq", Kind.UINT64), _bool("no_erase")
)
PAUSE: Final = Table(
    "JSApiConsumerPauseRequest", model.PauseRequest, Field("pause_until", Kind.TIME)
)
NAK: Final = Table("ConsumerNakOptions", model.NakRequest, Field("delay", Kind.DURATION))
PULL: Final = Table(
    "",
    model.PullRequest,
    _int("batch"),
    Field("expires", Kind.DURATION),
    _bool("no_wait"),
    _int("max_bytes"),
    Field("idle_heartbeat", Kind.DURATION),
    _str("group"),
)


def read_request(table: Table, document: bytes, *, strict: bool = True) -> Any:
    """Make the request a body asks for; an empty body asks with all fields zero.

    Raises JsonError with Go's text.
    """
    if not document:
        return table.made()
    return table.read(strictjson.decode(document), table.go_name, strict=strict)


def read_stream_request(document: bytes) -> model.StreamRequest:
    """STREAM.CREATE and STREAM.UPDATE: a configuration with ``pedantic`` beside its fields."""
    raw = strictjson.decode(document) if document else {}
    path = "StreamConfigRequest"
    if raw is not None and not isinstance(raw, dict):
        raise JsonError(_mismatch(raw, path, "server.StreamConfigRequest"))
    raw = dict(raw or {})
    pedantic = raw.pop("pedantic", None)
    if pedantic is not None and not isinstance(pedantic, bool):
        raise JsonError(_mismatch(pedantic, f"{path}.pedantic", "bool"))
    config = STREAM_CONFIG.read(raw, path, strict=True)
    return model.StreamRequest(config=config, pedantic=bool(pedantic))


def encode(document: Any) -> bytes:
    """JSON as it goes on the wire; bytes of a subject that are no UTF-8 as U+FFFD, as Go has it."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        raw = text.encode("utf-8", "surrogateescape")
        return raw.decode("utf-8", "replace").encode()
