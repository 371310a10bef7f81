"""Where a group begins to read: a position as a floor, and what a work queue keeps of it."""

import asyncio
from collections.abc import Mapping
from typing import Any

from ..errors import StreamMissing
from ..jetstream.api import STREAM_NOT_FOUND, Api, RequestFailed
from ..partitioning.difference import begun, start_of
from ..partitioning.topic import Start, StartKind
from .server import stream_info

_PROBE_S = 5
_FORGET_LOOKS, _FORGET_S = 10, 0.03


async def forget_start(api: Api, stream: str) -> None:
    """Take out of a work queue's source where it began, if it has begun within a moment.

    A source that waits for its first message keeps it; the next `plan` tells. Raises RequestFailed.
    """
    for _ in range(_FORGET_LOOKS):
        info = await stream_info(api, stream)
        if info is None or not start_of(info["config"]):
            return
        if sourced_to(info):
            await api.call(f"STREAM.UPDATE.{stream}", begun(info["config"]))
            return
        await asyncio.sleep(_FORGET_S)


def sourced_to(info: Mapping[str, Any]) -> int:
    """The origin's sequence of the last message that a stream was given since it began; or 0.

    Servers before 2.15 do not say it.
    """
    for config, source in zip(
        info["config"].get("sources") or [], info.get("sources") or [], strict=False
    ):
        place = int(source.get("seq", 0))
        return place if place >= config.get("opt_start_seq", 1) else 0
    return 0


async def resolve_start(api: Api, stream: str, start: Start) -> int:
    """Return the floor that means ``start``: the last sequence of the stream that is not read.

    Raises StreamMissing, RequestFailed.
    """
    match start.kind:
        case StartKind.EARLIEST:
            return 0
        case StartKind.SEQUENCE:
            return start.sequence - 1
        case StartKind.LATEST:
            info = await stream_info(api, stream)
            if info is None:
                raise StreamMissing(stream)
            return int(info["state"]["last_seq"])
        case StartKind.TIME:
            return await _floor_at(api, stream, start)


async def _floor_at(api: Api, stream: str, start: Start) -> int:
    """Ask the server itself: a consumer that begins at a time says what it will not deliver."""
    config = {
        "deliver_policy": "by_start_time",
        "opt_start_time": start.rfc3339,
        "ack_policy": "none",
        "inactive_threshold": _PROBE_S * 10**9,
        "mem_storage": True,
        "num_replicas": 1,
    }
    try:
        made = await api.call(
            f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}
        )
    except RequestFailed as error:
        if error.code == STREAM_NOT_FOUND:
            raise StreamMissing(stream) from error
        raise
    await api.call(f"CONSUMER.DELETE.{stream}.{made['name']}")
    return int(made["delivered"]["stream_seq"])
