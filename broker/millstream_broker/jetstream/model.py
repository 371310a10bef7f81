"""The values of JetStream: configurations, states and requests as the engine sees them.

Field names are the wire's; a duration or a time carries its unit in the name (``max_age_ns`` is
``max_age`` in JSON), and both stay whole nanoseconds, so that what a client wrote comes back
unchanged. Defaults here are the wire's zero values; what the server writes back in their place
is decided in ``stream_config`` and ``consumer_config``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

API_LEVEL: Final = 5
SERVER_VERSION: Final = "2.15.1"


class Retention(StrEnum):
    """What removes messages besides limits."""

    LIMITS = "limits"
    INTEREST = "interest"
    WORKQUEUE = "workqueue"


class Discard(StrEnum):
    """Which end gives way when a limit is reached."""

    OLD = "old"
    NEW = "new"


class StorageType(StrEnum):
    """Where messages live."""

    FILE = "file"
    MEMORY = "memory"


class Compression(StrEnum):
    """How closed blocks are kept; the choice is recorded, and today's store keeps them plain."""

    NONE = "none"
    S2 = "s2"


class PersistMode(StrEnum):
    """Whether an ack waits for the write."""

    DEFAULT = "default"
    ASYNC = "async"


class DeliverPolicy(StrEnum):
    """Where a consumer starts."""

    ALL = "all"
    LAST = "last"
    NEW = "new"
    BY_START_SEQUENCE = "by_start_sequence"
    BY_START_TIME = "by_start_time"
    LAST_PER_SUBJECT = "last_per_subject"


class AckPolicy(StrEnum):
    """What a client owes for a delivery."""

    NONE = "none"
    ALL = "all"
    EXPLICIT = "explicit"
    FLOW_CONTROL = "flow_control"


class ReplayPolicy(StrEnum):
    """How fast old messages are delivered."""

    INSTANT = "instant"
    ORIGINAL = "original"


class Action(StrEnum):
    """What a consumer create request may do."""

    ANY = ""
    CREATE = "create"
    UPDATE = "update"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectTransform:
    """``src`` filters or matches, ``dest`` rewrites; an empty ``dest`` only filters."""

    src: str = ""
    dest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RePublish:
    """Stored messages that match ``src`` are published again to ``dest``."""

    src: str = ""
    dest: str = ""
    headers_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a cluster should keep the stream; recorded and without meaning on one node."""

    cluster: str = ""
    tags: tuple[str, ...] = ()
    preferred: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalStream:
    """A stream behind another account or domain."""

    api: str = ""
    deliver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConsumerSource:
    """A consumer its owner made for a source to read from."""

    name: str = ""
    deliver_subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSource:
    """One origin of a mirror or a sourcing stream."""

    name: str = ""
    opt_start_seq: int = 0
    opt_start_time_ns: int | None = None
    filter_subject: str = ""
    subject_transforms: tuple[SubjectTransform, ...] = ()
    external: ExternalStream | None = None
    consumer: StreamConsumerSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLimits:
    """Defaults and caps of a stream for its consumers; 0 sets none."""

    inactive_threshold_ns: int = 0
    max_ack_pending: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """A stream as its owner wants it. -1 is unlimited where a limit is meant."""

    name: str = ""
    description: str = ""
    subjects: tuple[str, ...] = ()
    retention: Retention = Retention.LIMITS
    max_consumers: int = 0
    max_msgs: int = 0
    max_bytes: int = 0
    max_age_ns: int = 0
    max_msgs_per_subject: int = 0
    max_msg_size: int = 0
    discard: Discard = Discard.OLD
    storage: StorageType = StorageType.FILE
    num_replicas: int = 0
    no_ack: bool = False
    duplicate_window_ns: int = 0
    placement: Placement | None = None
    mirror: StreamSource | None = None
    sources: tuple[StreamSource, ...] = ()
    compression: Compression = Compression.NONE
    first_seq: int = 0
    subject_transform: SubjectTransform | None = None
    republish: RePublish | None = None
    allow_direct: bool = False
    mirror_direct: bool = False
    discard_new_per_subject: bool = False
    sealed: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    allow_rollup_hdrs: bool = False
    consumer_limits: ConsumerLimits = field(default_factory=ConsumerLimits)
    allow_msg_ttl: bool = False
    subject_delete_marker_ttl_ns: int = 0
    allow_msg_counter: bool = False
    allow_atomic: bool = False
    allow_msg_schedules: bool = False
    persist_mode: PersistMode = PersistMode.DEFAULT
    allow_batched: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerConfig:
    """A consumer as its owner wants it."""

    durable_name: str = ""
    name: str = ""
    description: str = ""
    deliver_policy: DeliverPolicy = DeliverPolicy.ALL
    opt_start_seq: int = 0
    opt_start_time_ns: int | None = None
    ack_policy: AckPolicy = AckPolicy.NONE
    ack_wait_ns: int = 0
    max_deliver: int = 0
    backoff_ns: tuple[int, ...] = ()
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] = ()
    replay_policy: ReplayPolicy = ReplayPolicy.INSTANT
    rate_limit_bps: int = 0
    sample_freq: str = ""
    max_waiting: int = 0
    max_ack_pending: int = 0
    flow_control: bool = False
    headers_only: bool = False
    max_batch: int = 0
    max_expires_ns: int = 0
    max_bytes: int = 0
    deliver_subject: str = ""
    deliver_group: str = ""
    idle_heartbeat_ns: int = 0
    inactive_threshold_ns: int = 0
    num_replicas: int = 0
    mem_storage: bool = False
    direct: bool = False
    sourcing: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    pause_until_ns: int | None = None
    priority_groups: tuple[str, ...] = ()
    priority_policy: str = ""
    priority_timeout_ns: int = 0

    @property
    def filters(self) -> tuple[str, ...]:
        """What the consumer wants to see; empty means everything."""
        if self.filter_subject:
            return (self.filter_subject,)
        return self.filter_subjects

    @property
    def is_push(self) -> bool:
        """Whether messages go to ``deliver_subject`` by themselves."""
        return bool(self.deliver_subject)

    @property
    def is_durable(self) -> bool:
        """Whether it outlives its users without an inactive threshold."""
        return bool(self.durable_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """STREAM.CREATE and STREAM.UPDATE."""

    config: StreamConfig
    pedantic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerRequest:
    """CONSUMER.CREATE and CONSUMER.DURABLE.CREATE."""

    stream_name: str = ""
    config: ConsumerConfig | None = None
    action: Action = Action.ANY
    pedantic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """STREAM.NAMES, STREAM.LIST, CONSUMER.NAMES, CONSUMER.LIST."""

    offset: int = 0
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfoRequest:
    """STREAM.INFO."""

    offset: int = 0
    deleted_details: bool = False
    subjects_filter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeRequest:
    """STREAM.PURGE; ``seq`` is the first sequence kept."""

    filter: str = ""
    seq: int = 0
    keep: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest:
    """STREAM.MSG.GET and DIRECT.GET."""

    seq: int = 0
    last_by_subj: str = ""
    next_by_subj: str = ""
    batch: int = 0
    max_bytes: int = 0
    start_time_ns: int | None = None
    multi_last: tuple[str, ...] = ()
    up_to_seq: int = 0
    up_to_time_ns: int | None = None
    no_hdr: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest:
    """STREAM.MSG.DELETE."""

    seq: int = 0
    no_erase: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpinRequest:
    """CONSUMER.UNPIN."""

    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRequest:
    """CONSUMER.PAUSE; None or a past time resumes."""

    pause_until_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """CONSUMER.MSG.NEXT; what is unknown in it is ignored."""

    batch: int = 0
    expires_ns: int = 0
    no_wait: bool = False
    max_bytes: int = 0
    idle_heartbeat_ns: int = 0
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NakRequest:
    """What may follow ``-NAK``."""

    delay_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who answers: what responses and headers say of the server and the account."""

    account: str = "$G"
    server_id: str = ""
    server_name: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the account may use, -1 is unlimited; ``sync_always`` makes acks survive power loss."""

    max_memory: int = -1
    max_storage: int = -1
    max_streams: int = -1
    max_consumers: int = -1
    max_ack_pending: int = -1
    max_request_batch: int = -1
    duplicate_window_ns: int = -1
    max_consumers_per_stream: int = 1000
    sync_always: bool = False
