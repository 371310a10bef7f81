"""A registry's schemas into the bucket, once or again and again.

A version never changes, so only those the bucket does not have are fetched. Nothing is removed:
values that were written with a deleted schema still need it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from ..errors import Unreachable
from ..jetstream.target import NatsTarget
from .bucket import SchemaBucket, open_bucket
from .registry import Registry
from .schema import version_key

logger = logging.getLogger(__name__)

EVERY_S = 10.0


class Copied(NamedTuple):
    """What one pass saw and wrote.

    ``configs`` are compatibility settings that were new; ``withheld`` versions that the registry
    lists but does not show, as they were deleted, and that were not copied before.
    """

    subjects: int
    versions: int
    written: int
    configs: int
    withheld: int


async def copy_schemas(*, registry: Registry, nats: str | NatsTarget, replicas: int = 1) -> Copied:
    """One pass. Unreachable; ConfigurationError: one of the two refuses, or is none."""
    async with open_bucket(nats, may_create=True, replicas=replicas) as bucket:
        return await _copy(registry, bucket)


async def follow_schemas(
    *,
    registry: Registry,
    nats: str | NatsTarget,
    every_s: float = EVERY_S,
    on_pass: Callable[[Copied], None] = lambda _: None,
    replicas: int = 1,
) -> None:
    """Pass after pass until cancelled; one that finds a side away is made up for by the next.

    The first must succeed: Unreachable, ConfigurationError.
    """
    on_pass(await copy_schemas(registry=registry, nats=nats, replicas=replicas))
    while True:
        await asyncio.sleep(every_s)
        try:
            on_pass(await copy_schemas(registry=registry, nats=nats, replicas=replicas))
        except Unreachable as error:
            logger.warning("%s; trying again", error, extra={"event": "schemas_not_copied"})


async def _copy(registry: Registry, bucket: SchemaBucket) -> Copied:
    have = await bucket.keys()
    configs = int(await bucket.put_config(None, await registry.compatibility(None)))
    versions = written = withheld = 0
    subjects = await registry.subjects()
    for subject in sorted(subjects):
        for version in await registry.versions(subject):
            versions += 1
            if version_key(subject, version) in have:
                continue
            schema = await registry.schema(subject, version)
            if schema is None:
                withheld += 1
                continue
            await bucket.put(schema)
            written += 1
        configs += await bucket.put_config(subject, await registry.compatibility(subject))
    return Copied(len(subjects), versions, written, configs, withheld)
