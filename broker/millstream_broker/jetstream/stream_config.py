"""What makes a stream's configuration right: defaults, checks on create, checks on update.

The texts are nats-server's; ``create`` and ``update`` raise ApiError with the code a client
branches on. A feature that is not there is refused in ``_refuse_unbuilt`` instead of being
taken and ignored.
"""

from dataclasses import replace
from typing import Final

from ..errors import TransformError
from ..subjects import subject as subjects
from ..subjects.transform import Transform
from .codes import ApiError
from .model import (
    API_LEVEL,
    SERVER_VERSION,
    Discard,
    Limits,
    PersistMode,
    RePublish,
    Retention,
    StorageType,
    StreamConfig,
    StreamSource,
    SubjectTransform,
)

NAME_BYTES_MAX: Final = 255
DESCRIPTION_BYTES_MAX: Final = 4096
METADATA_BYTES_MAX: Final = 128 * 1024
DUPLICATE_WINDOW_NS: Final = 120_000_000_000
_SHORTEST_NS: Final = 100_000_000
_SECOND_NS: Final = 1_000_000_000
_RESERVED: Final = "_nats."


def is_name(name: str) -> bool:
    """Whether streams and consumers may be called this."""
    return bool(name) and not any(char in " .*>\t\r\n\f" for char in name)


def invalid(text: str) -> ApiError:
    """Make the error for a configuration that is wrong in itself."""
    return ApiError(10052, err=text)


def create(config: StreamConfig, limits: Limits) -> StreamConfig:
    """Fill in defaults and check what does not depend on other streams. Raises ApiError."""
    _refuse_unbuilt(config)
    config = _with_defaults(config)
    _check_names(config)
    _check_replicas(config)
    _check_durations(config, limits)
    _check_policies(config)
    _check_subjects(config)
    _check_transform(config)
    _check_republish(config)
    _check_sources(config)
    return config


def update(old: StreamConfig, config: StreamConfig, limits: Limits) -> StreamConfig:
    """Check a new configuration against the one in force. Raises ApiError."""
    new = create(replace(config, sealed=False), limits)
    if config.sealed:
        new = replace(
            new,
            sealed=True,
            max_age_ns=0,
            discard=Discard.NEW,
            deny_delete=True,
            deny_purge=True,
            allow_rollup_hdrs=False,
        )
    for is_wrong, text in (
        (old.storage != new.storage, "can not change storage type"),
        (
            old.retention != new.retention
            and Retention.WORKQUEUE in (old.retention, new.retention),
            "can not change retention policy to/from workqueue",
        ),
        (old.sealed and not config.sealed, "can not unseal a sealed stream"),
        (old.deny_delete and not new.deny_delete, "can not cancel deny message deletes"),
        (old.deny_purge and not new.deny_purge, "can not cancel deny purge"),
        (old.persist_mode != new.persist_mode, "can not change persist mode"),
    ):
        if is_wrong:
            raise invalid(f"stream configuration update {text}")
    if old.allow_msg_ttl and not new.allow_msg_ttl:
        raise invalid("message TTL status can not be disabled")
    return new


def with_metadata(config: StreamConfig) -> StreamConfig:
    """Put the server's own keys in: the API level the configuration asks for (stored)."""
    kept = {key: value for key, value in config.metadata.items() if not key.startswith(_RESERVED)}
    return replace(config, metadata={**kept, "_nats.req.level": str(required_level(config))})


def shown_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Put in what responses add to the stored metadata: this server's version and level."""
    shown = {**metadata, "_nats.ver": SERVER_VERSION, "_nats.level": str(API_LEVEL)}
    return dict(sorted(shown.items()))


def required_level(config: StreamConfig) -> int:
    """Say which API level a server needs to honour the configuration."""
    if config.allow_batched:
        return 4
    if (
        config.allow_atomic
        or config.allow_msg_counter
        or config.allow_msg_schedules
        or config.persist_mode is PersistMode.ASYNC
    ):
        return 2
    return 1 if config.allow_msg_ttl or config.subject_delete_marker_ttl_ns else 0


def _refuse_unbuilt(config: StreamConfig) -> None:
    """Refuse what this server does not do, rather than take it and not do it."""
    for is_set, feature in (
        (config.mirror is not None, "mirrors"),
        (config.allow_msg_counter, "message counters"),
        (config.allow_msg_schedules, "message schedules"),
        (config.allow_batched, "batch publishing (fast ingest)"),
        (config.mirror_direct, "direct gets from mirrors"),
        (any(s.external for s in config.sources), "sources in other accounts or domains"),
        (any(s.consumer for s in config.sources), "sources with their own consumer"),
    ):
        if is_set:
            if feature == "direct gets from mirrors" and config.mirror is None:
                raise invalid("stream has no mirror but does have mirror direct")
            raise invalid(f"this server does not support {feature}")


def _with_defaults(config: StreamConfig) -> StreamConfig:
    def unlimited(value: int) -> int:
        return value if value > 0 else -1

    window = config.duplicate_window_ns
    if window == 0 and not config.sources:
        window = DUPLICATE_WINDOW_NS
        if 0 < config.max_age_ns < window:
            window = config.max_age_ns
    has_markers = config.subject_delete_marker_ttl_ns > 0
    republish = config.republish
    if republish is not None and not republish.src:
        republish = replace(republish, src=">")
    return replace(
        config,
        republish=republish,
        max_consumers=unlimited(config.max_consumers),
        max_msgs=unlimited(config.max_msgs),
        max_bytes=unlimited(config.max_bytes),
        max_msgs_per_subject=unlimited(config.max_msgs_per_subject),
        max_msg_size=unlimited(config.max_msg_size),
        num_replicas=config.num_replicas or 1,
        subjects=config.subjects or (() if config.sources else (config.name,)),
        duplicate_window_ns=window,
        allow_msg_ttl=config.allow_msg_ttl or has_markers,
        allow_rollup_hdrs=config.allow_rollup_hdrs or has_markers,
    )


def _check_names(config: StreamConfig) -> None:
    if not is_name(config.name):
        raise invalid("stream name is required and can not contain '.', '*', '>'")
    if len(config.name.encode()) > NAME_BYTES_MAX:
        raise invalid(f"stream name is too long, maximum allowed is {NAME_BYTES_MAX}")
    if "/" in config.name or "\\" in config.name:
        raise ApiError(10128)
    if len(config.description.encode()) > DESCRIPTION_BYTES_MAX:
        raise invalid(f"stream description is too long, maximum allowed is {DESCRIPTION_BYTES_MAX}")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in config.metadata.items())
    if size > METADATA_BYTES_MAX:
        raise invalid(f"stream metadata exceeds maximum size of {METADATA_BYTES_MAX} bytes")


def _check_replicas(config: StreamConfig) -> None:
    if config.num_replicas > 5:
        raise invalid("maximum replicas is 5")
    if config.num_replicas < 0:
        raise ApiError(10133)
    if config.num_replicas > 1:
        raise ApiError(10074)


def _check_durations(config: StreamConfig, limits: Limits) -> None:
    if config.max_age_ns < 0:
        raise invalid("max age can not be negative")
    if 0 < config.max_age_ns < _SHORTEST_NS:
        raise invalid("max age needs to be >= 100ms")
    window = config.duplicate_window_ns
    if window < 0:
        raise invalid("duplicates window can not be negative")
    if 0 < config.max_age_ns < window:
        raise invalid("duplicates window can not be larger then max age")
    if 0 < window < _SHORTEST_NS:
        raise invalid("duplicates window needs to be >= 100ms")
    if 0 <= limits.duplicate_window_ns < window:
        raise invalid("duplicates window can not be larger then server limit")
    if config.subject_delete_marker_ttl_ns < 0:
        raise invalid("subject delete marker TTL must not be negative")
    if 0 < config.subject_delete_marker_ttl_ns < _SECOND_NS:
        raise invalid("subject delete marker TTL must be at least 1 second")
    if config.subject_delete_marker_ttl_ns % _SECOND_NS:
        raise invalid("subject delete marker TTL must be a multiple of a second")


def _check_policies(config: StreamConfig) -> None:
    if config.discard_new_per_subject:
        if config.discard is not Discard.NEW:
            raise invalid("discard new per subject requires discard new policy to be set")
        if config.max_msgs_per_subject <= 0:
            raise invalid("discard new per subject requires max msgs per subject > 0")
    if config.sealed:
        raise invalid("stream configuration for create can not be sealed")
    if config.deny_purge and config.allow_rollup_hdrs:
        raise invalid("roll-ups require the purge permission")
    if config.persist_mode is PersistMode.ASYNC:
        if config.storage is not StorageType.FILE:
            raise invalid("async persist mode is only supported on file storage")
        if config.allow_atomic:
            raise invalid("async persist mode is not supported with atomic batch publish")


def _check_subjects(config: StreamConfig) -> None:
    for position, pattern in enumerate(config.subjects):
        if not subjects.is_valid(pattern):
            raise invalid("invalid subject")
        for earlier in config.subjects[:position]:
            if subjects.collides(earlier, pattern):
                raise invalid(f'subject "{earlier}" overlaps with "{pattern}"')
        if config.no_ack:
            continue
        if pattern == ">":
            raise invalid("capturing all subjects requires no-ack to be true")
        for reserved in ("$JS.>", "$JSC.>", "$NRG.>"):
            if subjects.collides(pattern, reserved) and not subjects.is_subset(
                pattern, "$JS.EVENT.>"
            ):
                raise invalid("subjects that overlap with jetstream api require no-ack to be true")
        if subjects.collides(pattern, "$SYS.>") and not subjects.is_subset(
            pattern, "$SYS.ACCOUNT.>"
        ):
            raise invalid("subjects that overlap with system api require no-ack to be true")


def _check_transform(config: StreamConfig) -> None:
    transform = config.subject_transform
    if transform is None:
        return
    if transform.src and not subjects.is_valid(transform.src):
        raise ApiError(10155, err=f"invalid subject {transform.src}")
    check_destination(transform, 10156)


def _no_chance(_below: int) -> int:
    """Stand in for chance while a rule is only checked."""
    return 0


def check_destination(transform: SubjectTransform, err_code: int) -> None:
    """Raise ApiError with ``err_code`` when the destination can't be made from the source."""
    try:
        Transform(transform.src, transform.dest, random=_no_chance)
    except TransformError as error:
        raise ApiError(err_code, err=str(error)) from error


def _check_republish(config: StreamConfig) -> None:
    republish: RePublish | None = config.republish
    if republish is None:
        return
    for pattern in config.subjects:
        if subjects.collides(republish.dest, pattern):
            raise invalid("stream configuration for republish destination forms a cycle")
    try:
        Transform(republish.src, republish.dest, random=_no_chance)
    except TransformError as error:
        raise invalid(
            "stream configuration for republish with transform from "
            f"'{republish.src}' to '{republish.dest}' not valid"
        ) from error


def source_key(source: StreamSource) -> tuple[object, ...]:
    """What makes two sources the same one."""
    transforms = tuple((entry.src, entry.dest) for entry in source.subject_transforms)
    return (source.name, source.filter_subject, transforms)


def _check_sources(config: StreamConfig) -> None:
    seen = set()
    for source in config.sources:
        if not is_name(source.name):
            raise ApiError(10141)
        if source_key(source) in seen:
            raise ApiError(10140)
        seen.add(source_key(source))
        if source.filter_subject and source.subject_transforms:
            raise ApiError(10144)
        if source.filter_subject and not subjects.is_valid(source.filter_subject):
            raise ApiError(10145, err=f"invalid subject {source.filter_subject}")
        for position, transform in enumerate(source.subject_transforms):
            if transform.src and not subjects.is_valid(transform.src):
                raise ApiError(10145, err=f"invalid subject {transform.src}")
            if transform.dest:
                check_destination(transform, 10146)
            for other in source.subject_transforms[:position]:
                if subjects.collides(transform.src or ">", other.src or ">"):
                    raise ApiError(10147)
