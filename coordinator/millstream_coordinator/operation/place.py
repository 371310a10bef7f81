"""Where a partition's messages are: which stream, which subjects, as the group's ``cfg`` says it.

``cfg.filter`` has a mark where each partition token stands: ``{partition}`` for the first level,
``{partition:16}`` for the level of 16. At the level that is read now a partition of it fixes its
own token and every coarser one (a finer number modulo the coarser count is the coarser number,
always); finer tokens are open.
"""

import re
from typing import NamedTuple

from ..model import ConfigRecord

_MARK = re.compile(r"\{partition(?::([1-9][0-9]*))?\}")


class Place(NamedTuple):
    """A stream, and the filter of one partition in it."""

    stream: str
    filter: str


def place(config: ConfigRecord, partition: int) -> Place | None:
    """Return where the partition's messages are; None for a group without a stream."""
    if config.stream is None:
        return None
    stream = config.stream.replace("{partition}", str(partition))

    def token(mark: re.Match[str]) -> str:
        level = int(mark[1]) if mark[1] else config.partitions
        return str(partition % level) if level <= config.active else "*"

    return Place(stream, _MARK.sub(token, config.filter or ">"))


def streams(config: ConfigRecord) -> list[str]:
    """Every stream the group reads, once each, in the order of the partitions."""
    places = (place(config, it) for it in range(config.active))
    return list(dict.fromkeys(it.stream for it in places if it is not None))
