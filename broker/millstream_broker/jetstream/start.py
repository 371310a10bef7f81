"""Where a new consumer begins, as its deliver policy says."""

from __future__ import annotations

from .model import ConsumerConfig, DeliverPolicy
from .stream import Stream


def starting_point(stream: Stream, config: ConsumerConfig) -> tuple[int, list[int]]:
    """Say where a new consumer begins: its first sequence, and the snapshot it walks before that.

    With ``last_per_subject`` the sequence is the one behind the snapshot.
    """
    store = stream.store
    first, beyond = max(store.first_seq, 1), store.last_seq + 1
    filters = config.filters
    match config.deliver_policy:
        case DeliverPolicy.ALL:
            return first, []
        case DeliverPolicy.NEW:
            return beyond, []
        case DeliverPolicy.LAST:
            if not filters:
                return max(store.last_seq, 1), []
            found = store.last_matches(filters)
            return (found[-1] if found else 1), []
        case DeliverPolicy.BY_START_SEQUENCE:
            return max(config.opt_start_seq, first), []
        case DeliverPolicy.BY_START_TIME:
            assert config.opt_start_time_ns is not None
            return max(store.seq_at(config.opt_start_time_ns), first), []
        case DeliverPolicy.LAST_PER_SUBJECT:
            return beyond, store.last_matches(filters)
