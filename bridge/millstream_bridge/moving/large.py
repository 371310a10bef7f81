"""Large values into an Object Store; `jetstream.large` reads them back."""

from ..jetstream.connection import Connection
from ..jetstream.objects import Objects
from ..model import Piece, Record
from ..records.chunks import Reference, by_reference, digest_of
from ..records.mapping import Mapping

_HASH = "hash"


async def large_object(connection: Connection, mapping: Mapping, record: Record) -> Piece:
    """Store a record's value as an object; the record's own message, which refers to it.

    An object that is there already, from a run that was killed, is not written again.
    """
    value = record.value or b""
    name = f"{record.kafka_partition}/{record.offset}"
    route = mapping.route
    bucket = f"MILLSTREAM_LARGE_{route.name}"
    objects = Objects(connection, bucket, storage=route.storage, replicas=route.replicas)
    digest = digest_of(value)
    info = await objects.info(name)
    if info is None or info.size != len(value) or info.metadata.get(_HASH) != digest:
        await objects.put(name, value, description=f"topic {route.topic}", metadata={_HASH: digest})
    return by_reference(mapping, record, Reference(len(value), digest, bucket=bucket, name=name))
