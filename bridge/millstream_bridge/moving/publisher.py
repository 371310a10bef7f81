"""The way to publish that is a route's."""

from ..jetstream.connection import Connection
from ..ports import Publisher
from ..records.mapping import Mapping
from .chain import ChainPublisher
from .checkpoint import CheckpointPublisher
from .dense import DensePublisher


def publisher_for(connection: Connection, mapping: Mapping) -> Publisher:
    """Chains for a dense route, checkpointed batches for a shared one, else one chain.

    For as long as the connection is open; who opened that closes it.
    """
    if mapping.route.mode == "dense":
        return DensePublisher(connection, mapping)
    if mapping.route.shared:
        return CheckpointPublisher(connection, mapping)
    return ChainPublisher(connection, mapping)
