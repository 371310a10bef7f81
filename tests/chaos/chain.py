"""What a chaos worker computes per key, and what that proves.

A `Chain` is wrong as soon as one effect is lost, repeated or out of order: its digest is a hash
over the digest before and the message's sequence and payload, as the demo's. The counters beside it
say in which way it is wrong, also where no fence kept the wrong effect out. So it judges a sink
without trusting the sink's own marks.
"""

import hashlib
from collections.abc import Iterable

import msgspec


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """One key's effects so far. ``seq`` is the newest one's."""

    digest: str = "00" * 32
    count: int = 0
    seq: int = 0
    repeats: int = 0
    """Effects of the same message as the one before."""
    disorder: int = 0
    """Effects of a message older than the one before."""

    @property
    def violations(self) -> int:
        return self.repeats + self.disorder

    def link(self, seq: int, data: bytes) -> "Chain":
        """The chain after one more effect."""
        text = bytes.fromhex(self.digest) + seq.to_bytes(8, "big") + data
        return Chain(
            digest=hashlib.sha256(text).hexdigest(),
            count=self.count + 1,
            seq=seq,
            repeats=self.repeats + (seq == self.seq),
            disorder=self.disorder + (seq < self.seq),
        )


def encode(chain: Chain) -> bytes:
    return msgspec.json.encode(chain)


def decode(stored: bytes | None) -> Chain:
    """Read what `encode` wrote; a new chain for None."""
    return Chain() if stored is None else msgspec.json.decode(stored, type=Chain)


def expected(messages: Iterable[tuple[int, bytes]]) -> Chain:
    """The chain of these (seq, data), in order of seq."""
    chain = Chain()
    for seq, data in sorted(messages):
        chain = chain.link(seq, data)
    return chain
