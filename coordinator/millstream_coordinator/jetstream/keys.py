"""The group's bucket: made, read from its leader, written by compare-and-set.

**Revisions grow over the loss of a bucket.** A bucket that is deleted and made again would begin at
revision 1. A member that has not noticed yet would then take what it reads for older than what it
knows, and its compare-and-set could meet the new bucket's revision by chance. So the revisions of a
bucket begin at the time it was made.

**nats-server 2.10 forgets such a stream.** With ``first_seq`` it is empty after a restart as long
as the message of that very sequence is still there (seen on 2.10.26, clean and killed; not on
2.11.11). So there the first message is a key without meaning, and whatever is the oldest is written
again before anything else is: once something is older than all that is there, all of it is kept.
"""

import time
from typing import Any

from .. import naming
from ..model import MemberSettings
from ..ports import (
    Conflict,
    DeleteKey,
    Failure,
    KeyNames,
    KeyRead,
    ListKeys,
    ReadKey,
    Reply,
    WriteKey,
    Written,
)
from .api import (
    MADE_S,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
    marks_deletion,
)
from .wire import NS

MARKER_TTL_S = 3600
_ROOM_ROUNDS_MAX = 20
MADE_KEY = "made"
"""What comes first in the bucket of a 2.10 server."""


def bucket_config(group: str, num_replicas: int, *, has_ttl: bool) -> dict[str, Any]:
    """Return the body of STREAM.CREATE for a group's bucket.

    ``num_replicas`` are the data stream's. ``has_ttl``: whether the server knows per-key TTL (API
    level 1); one that does not would take the fields and drop them. Revisions begin at the
    microseconds of the wall clock (exact in JSON until 2255).
    """
    bucket = naming.bucket(group)
    config: dict[str, Any] = {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "num_replicas": num_replicas,
        "first_seq": time.time_ns() // 1000,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }
    if has_ttl:
        config["allow_msg_ttl"] = True
        config["subject_delete_marker_ttl"] = MARKER_TTL_S * NS
    return config


async def make_room(api: Api, bucket: str, info: dict[str, Any]) -> None:
    """See to it that a bucket's first sequence is not its oldest message any more.

    For servers before 2.11. ``info`` is what STREAM.INFO or STREAM.CREATE answered. What is there
    keeps its value. Raises RequestFailed.
    """
    stream = f"KV_{bucket}"
    for _ in range(_ROOM_ROUNDS_MAX):
        state, first_seq = info["state"], info["config"].get("first_seq", 0)
        if first_seq == 0 or state["first_seq"] > first_seq:
            return
        key, value, revision, headers = MADE_KEY, b"", 0, {}
        if state["messages"]:
            oldest = await api.stored(stream, {"seq": state["first_seq"]})
            if oldest is None:  # it was written over meanwhile
                info = await api.call(f"STREAM.INFO.{stream}")
                continue
            key = oldest.subject.removeprefix(f"$KV.{bucket}.")
            value, revision = oldest.data, oldest.seq
            if marks_deletion(oldest.headers):
                headers = {"KV-Operation": "DEL"}
        try:
            await api.write(bucket, key, value, revision, headers, made_s=MADE_S)
        except RequestFailed as error:
            if error.code not in WRONG_LAST_SEQUENCE:  # else another member did
                raise
        info = await api.call(f"STREAM.INFO.{stream}")
    raise RequestFailed(Failure.TIMEOUT, f"{stream}: others write its oldest key all the time")


class Bucket:
    """One group's KV bucket.

    ``has_ttl``: a key can run out by itself here. Known once `prepare` has returned: a server
    before 2.11 takes the fields for it and drops them.
    """

    def __init__(self, api: Api, settings: MemberSettings) -> None:
        self.name = naming.bucket(settings.group)
        self.stream = f"KV_{self.name}"
        self.begins_at = 0
        self.has_ttl = False
        self._api = api
        self._group = settings.group
        self._created: str | None = None

    def stored_subject(self, key: str) -> str:
        """Return what the bucket's stream stores a key under."""
        return f"$KV.{self.name}.{key}"

    async def prepare(self, num_replicas: int, *, has_ttl: bool) -> None:
        """Make the bucket if it is missing. ``has_ttl``: whether the server says it can."""
        config = bucket_config(self._group, num_replicas, has_ttl=has_ttl)
        try:
            answer = await self._api.call(f"STREAM.INFO.{self.stream}")
        except RequestFailed as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            answer = await self._create(config)
        cluster = answer.get("cluster")
        if cluster is not None and not cluster.get("leader"):
            # Who asks for a bucket that is being made is told so before it has a leader, and until
            # then nobody would answer at all.
            raise RequestFailed(Failure.TIMEOUT, f"{self.stream} has no leader yet")
        if not has_ttl:
            await make_room(self._api, self.name, answer)
        self._created = answer["created"]
        self.begins_at = answer["config"].get("first_seq", 0)
        self.has_ttl = bool(answer["config"].get("allow_msg_ttl"))

    async def _create(self, config: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._api.call(f"STREAM.CREATE.{self.stream}", config)
        except RequestFailed as error:
            if error.code != STREAM_NAME_IN_USE:
                raise
        try:
            return await self._api.call(f"STREAM.INFO.{self.stream}")
        except RequestFailed as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            # A cluster that deletes it at this moment may say both (seen on 2.15.1): ask again.
            raise RequestFailed(Failure.TIMEOUT, error.detail) from error

    async def is_the_same(self) -> bool:
        """Whether the bucket is still the one that was prepared; raises RequestFailed."""
        info = await self._api.call(f"STREAM.INFO.{self.stream}")
        return self._created is None or info["created"] == self._created

    async def read(self, command: ReadKey) -> Reply:
        """Read a key's newest value."""
        try:
            entry = await self._api.read(self.name, command.key)
        except RequestFailed as error:
            raise _bucket_gone(error) from error
        return KeyRead(id=command.id, value=entry.value, revision=entry.revision)

    async def names(self, command: ListKeys) -> Reply:
        """List the keys that have a value."""
        try:
            values = await self._api.read_all(self.name, command.prefix)
        except RequestFailed as error:
            raise _bucket_gone(error) from error
        return KeyNames(id=command.id, keys=tuple(values))

    async def write(self, command: WriteKey | DeleteKey) -> Reply:
        """Write or delete a key if nobody else did."""
        headers = {}
        value = b""
        if isinstance(command, DeleteKey):
            headers["KV-Operation"] = "DEL"
        else:
            value = command.value
            if command.ttl_s is not None and self.has_ttl:
                headers["Nats-TTL"] = f"{max(1, round(command.ttl_s))}s"
        try:
            revision = await self._api.write(
                self.name, command.key, value, command.revision, headers
            )
        except RequestFailed as error:
            if error.code in WRONG_LAST_SEQUENCE:
                return Conflict(id=command.id)
            if error.reason is Failure.NO_RESPONDERS:
                await self._expect()
            raise
        return Written(id=command.id, revision=revision)

    async def _expect(self) -> None:
        """Raise bucket gone if that is why nobody answered a write."""
        try:
            await self._api.call(f"STREAM.INFO.{self.stream}")
        except RequestFailed as error:
            raise _bucket_gone(error) from error


def _bucket_gone(error: RequestFailed) -> RequestFailed:
    if error.code == STREAM_NOT_FOUND:
        return RequestFailed(Failure.BUCKET_GONE, error.detail, error.code)
    return error
