"""What makes a consumer's configuration right: defaults, checks on create, checks on update.

The order of the checks is nats-server's, since a request with two faults is answered with the
first.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from ..subjects import subject as subjects
from .codes import ApiError
from .model import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    Limits,
    Retention,
    StreamConfig,
)
from .stream_config import DESCRIPTION_BYTES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, is_name
from .ttl import duration_text

ACK_WAIT_NS: Final = 30_000_000_000
MAX_ACK_PENDING: Final = 1000
MAX_WAITING: Final = 512
INACTIVE_NS: Final = 5_000_000_000
_SHORTEST_HEARTBEAT_NS: Final = 100_000_000
_RESERVED: Final = "_nats."


def with_defaults(config: ConsumerConfig, stream: StreamConfig) -> ConsumerConfig:
    """Fill in what the client left open, as nats-server writes it back."""
    stream_limits = stream.consumer_limits
    max_ack_pending = config.max_ack_pending
    if config.ack_policy is not AckPolicy.NONE and max_ack_pending == 0:
        max_ack_pending = stream_limits.max_ack_pending or MAX_ACK_PENDING
    if max_ack_pending < 0:
        max_ack_pending = -1
    ack_wait_ns = config.ack_wait_ns
    if config.backoff_ns:
        ack_wait_ns = config.backoff_ns[0]
    elif ack_wait_ns == 0 and config.ack_policy in (AckPolicy.ALL, AckPolicy.EXPLICIT):
        ack_wait_ns = ACK_WAIT_NS
    inactive_ns = config.inactive_threshold_ns or stream_limits.inactive_threshold_ns
    if not config.is_durable and inactive_ns == 0:
        inactive_ns = INACTIVE_NS
    max_waiting = config.max_waiting
    if not config.is_push and max_waiting <= 0:
        max_waiting = MAX_WAITING
    filter_subject, filter_subjects = config.filter_subject, config.filter_subjects
    if len(filter_subjects) == 1 and not filter_subject and filter_subjects[0]:
        filter_subject, filter_subjects = filter_subjects[0], ()
    return replace(
        config,
        filter_subject=filter_subject,
        filter_subjects=filter_subjects,
        max_ack_pending=max_ack_pending,
        ack_wait_ns=ack_wait_ns,
        inactive_threshold_ns=inactive_ns,
        max_waiting=max_waiting,
        max_deliver=config.max_deliver if config.max_deliver > 0 else -1,
        max_batch=max(config.max_batch, 0),
        max_bytes=max(config.max_bytes, 0),
    )


def check(config: ConsumerConfig, stream: StreamConfig, limits: Limits) -> None:
    """Check a configuration with defaults against its stream. Raises ApiError."""
    _refuse_unbuilt(config)
    _check_sizes(config)
    _check_replicas(config)
    _check_waits(config)
    if config.is_push:
        _check_push(config, stream)
    else:
        _check_pull(config, stream)
    _check_filters(config)
    _check_start(config)
    _check_sampling(config)
    _check_ack_pending(config, stream, limits)


def check_retention(config: ConsumerConfig, stream: StreamConfig) -> None:
    """Check that a consumer of a work queue takes and acks everything. Raises ApiError."""
    if stream.retention is Retention.WORKQUEUE:
        if config.ack_policy is not AckPolicy.EXPLICIT:
            raise ApiError(10098)
        if config.deliver_policy is not DeliverPolicy.ALL:
            raise ApiError(10101)


def check_unique(config: ConsumerConfig, others: Iterable[ConsumerConfig]) -> None:
    """On a work queue every message has one consumer. Raises ApiError 10099 or 10100."""
    others = list(others)
    if not others:
        return
    if not config.filters:
        raise ApiError(10099)
    for other in others:
        for theirs in other.filters or (">",):
            if any(subjects.collides(ours, theirs) for ours in config.filters):
                raise ApiError(10100)


def check_update(old: ConsumerConfig, new: ConsumerConfig) -> None:
    """Refuse to change what can't be changed on a living consumer. Raises ApiError 10012."""
    for is_changed, what in (
        (old.deliver_policy != new.deliver_policy, "deliver policy"),
        (old.opt_start_seq != new.opt_start_seq, "start sequence"),
        (old.opt_start_time_ns != new.opt_start_time_ns, "start time"),
        (old.ack_policy != new.ack_policy, "ack policy"),
        (old.replay_policy != new.replay_policy, "replay policy"),
        (old.idle_heartbeat_ns != new.idle_heartbeat_ns, "heart beats"),
        (old.flow_control != new.flow_control, "flow control"),
        (old.mem_storage != new.mem_storage, "storage type"),
    ):
        if is_changed:
            raise ApiError(10012, err=f"{what} can not be updated")
    if old.is_push and not new.is_push:
        raise ApiError(10012, err="can not update push consumer to pull based")
    if new.is_push and not old.is_push:
        raise ApiError(10012, err="can not update pull consumer to push based")
    if old.max_waiting != new.max_waiting:
        raise ApiError(10012, err="max waiting can not be updated")


def with_metadata(config: ConsumerConfig) -> ConsumerConfig:
    """Put the server's own keys in: the API level the configuration asks for (stored)."""
    kept = {key: value for key, value in config.metadata.items() if not key.startswith(_RESERVED)}
    level = 1 if config.pause_until_ns is not None or config.priority_groups else 0
    return replace(config, metadata={**kept, "_nats.req.level": str(level)})


def _refuse_unbuilt(config: ConsumerConfig) -> None:
    """Refuse what this server does not do, rather than take it and not do it."""
    for is_set, feature in (
        (config.ack_policy is AckPolicy.FLOW_CONTROL, "the flow_control ack policy"),
        (bool(config.priority_groups), "priority groups"),
        (config.priority_policy not in ("", "none"), "priority policies"),
        (config.direct or config.sourcing, "consumers of other servers' mirrors and sources"),
    ):
        if is_set:
            raise ApiError(10012, err=f"this server does not support {feature}")


def _check_sizes(config: ConsumerConfig) -> None:
    for name in (config.name, config.durable_name):
        if len(name.encode()) > NAME_BYTES_MAX:
            raise ApiError(10102, max=NAME_BYTES_MAX)
        if name and not is_name(name):
            raise ApiError(10103)
        if "/" in name or "\\" in name:
            raise ApiError(10127)
    if len(config.description.encode()) > DESCRIPTION_BYTES_MAX:
        raise ApiError(10107, max=DESCRIPTION_BYTES_MAX)
    size = sum(len(key.encode()) + len(value.encode()) for key, value in config.metadata.items())
    if size > METADATA_BYTES_MAX:
        raise ApiError(10135, limit=f"{METADATA_BYTES_MAX} bytes")


def _check_replicas(config: ConsumerConfig) -> None:
    if config.num_replicas < 0:
        raise ApiError(10133)
    if config.num_replicas > 1:
        raise ApiError(10074)


def _check_waits(config: ConsumerConfig) -> None:
    if any(wait < 0 for wait in config.backoff_ns):
        raise ApiError(10184)
    if config.ack_wait_ns < 0:
        raise ApiError(10183)
    if config.backoff_ns and -1 < config.max_deliver < len(config.backoff_ns):
        raise ApiError(10116)


def _check_push(config: ConsumerConfig, stream: StreamConfig) -> None:
    subject = config.deliver_subject
    if not subjects.is_valid(subject):
        raise ApiError(10112)
    if not subjects.is_literal(subject):
        raise ApiError(10079)
    if any(subjects.matches(pattern, subject) for pattern in stream.subjects):
        raise ApiError(10081)
    if config.max_waiting:
        raise ApiError(10080)
    if config.max_ack_pending > 0 and config.ack_policy is AckPolicy.NONE:
        raise ApiError(10082)
    if 0 < config.idle_heartbeat_ns < _SHORTEST_HEARTBEAT_NS:
        raise ApiError(10083)
    if config.flow_control and not config.idle_heartbeat_ns:
        raise ApiError(10108)


def _check_pull(config: ConsumerConfig, stream: StreamConfig) -> None:
    if stream.retention is Retention.WORKQUEUE and config.ack_policy is AckPolicy.NONE:
        raise ApiError(10084)
    if config.rate_limit_bps:
        raise ApiError(10086)
    if config.max_waiting < 0:
        raise ApiError(10087)
    if config.idle_heartbeat_ns:
        raise ApiError(10088)
    if config.flow_control:
        raise ApiError(10089)
    if 0 < config.max_expires_ns < 1_000_000:
        raise ApiError(10115)


def _check_filters(config: ConsumerConfig) -> None:
    if config.filter_subject and config.filter_subjects:
        raise ApiError(10136)
    for position, pattern in enumerate(config.filter_subjects):
        if not pattern:
            raise ApiError(10139)
        for other in config.filter_subjects[:position]:
            if subjects.is_subset(pattern, other) or subjects.is_subset(other, pattern):
                raise ApiError(10138)
    for pattern in config.filters:
        if not subjects.is_valid(pattern):
            raise ApiError(10052, err="invalid subject")


_START_SEQ: Final = "optional start sequence is also set"
_START_TIME: Final = "optional start time is also set"


def _check_start(config: ConsumerConfig) -> None:
    """The deliver policy and the optional start fit each other. Raises ApiError 10094."""

    def refuse(policy: str, text: str) -> ApiError:
        return ApiError(10094, err=f"consumer delivery policy is deliver {policy}, but {text}")

    has_seq, has_time = config.opt_start_seq > 0, config.opt_start_time_ns is not None
    policy = config.deliver_policy
    name = policy.value.replace("_", " ")
    if policy is DeliverPolicy.BY_START_SEQUENCE:
        if not has_seq:
            raise refuse(name, "optional start sequence is not set")
        if has_time:
            raise refuse(name, _START_TIME)
        return
    if policy is DeliverPolicy.BY_START_TIME:
        if not has_time:
            raise refuse(name, "optional start time is not set")
        if has_seq:
            raise refuse(name, "optional start start sequence is also set")
        return
    if has_seq:
        raise refuse(name, _START_SEQ)
    if has_time:
        raise refuse(name, _START_TIME)
    if policy is DeliverPolicy.LAST_PER_SUBJECT and not config.filters:
        raise refuse(name, "optional filter subject is not set")


def _check_sampling(config: ConsumerConfig) -> None:
    text = config.sample_freq.removesuffix("%")
    if config.sample_freq and not re.fullmatch(r"[+-]?\d+", text):
        raise ApiError(10095, err=f'strconv.Atoi: parsing "{text}": invalid syntax')


def _check_ack_pending(config: ConsumerConfig, stream: StreamConfig, limits: Limits) -> None:
    cap = stream.consumer_limits.max_ack_pending
    if limits.max_ack_pending > 0 and (cap <= 0 or limits.max_ack_pending < cap):
        cap = limits.max_ack_pending
    if cap > 0 and (config.max_ack_pending > cap or config.max_ack_pending < 0):
        raise ApiError(10121, limit=cap)
    threshold = stream.consumer_limits.inactive_threshold_ns
    if threshold and config.inactive_threshold_ns > threshold:
        raise ApiError(10153, limit=duration_text(threshold))
