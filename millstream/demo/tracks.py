"""What the demo computes: for each aircraft a chain and its times away from New York.

Both are wrong as soon as one leg is lost, repeated or out of order; a sum or a count would not
notice. ``chain`` is for machines: a SHA-256 over the chain before, the leg's place in Kafka and the
row's bytes. The figures are for people: how long the aircraft had been gone at most, and its
fastest way out, home and out again.

Twelve of the packaged flights left after midnight, and the file has them at the head of the day
they were scheduled for, before that day's other legs. Time runs backwards there for the aircraft
concerned. Such a step counts towards no figure (cancelled flights do not either), but it does move
``departed_ms``, so order matters to it all the same.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import msgspec

from .flights import departure_ms

NO_CHAIN: Final = "00" * 32
_PLACE = struct.Struct(">iq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What is known of one aircraft. Times are in whole minutes, None before there is one.

    ``kafka_partition`` and ``offset`` are the newest leg's place. ``away_min`` is the sum of all
    times between departures.
    """

    chain: str = NO_CHAIN
    legs: int = 0
    departures: int = 0
    kafka_partition: int = -1
    offset: int = -1
    departed_ms: int | None = None
    longest_absence_min: int | None = None
    shortest_turn_min: int | None = None
    away_min: int = 0


def follow(track: Track, kafka_partition: int, offset: int, value: bytes) -> Track:
    """The track after one more leg, the Kafka record ``value`` at that place."""
    chain = link(track.chain, kafka_partition, offset, value)
    departed = departure_ms(msgspec.json.decode(value))
    before, longest, shortest, away = (
        track.departed_ms,
        track.longest_absence_min,
        track.shortest_turn_min,
        track.away_min,
    )
    if departed is not None and before is not None and departed > before:
        gap = (departed - before) // 60_000
        longest = gap if longest is None else max(longest, gap)
        shortest = gap if shortest is None else min(shortest, gap)
        away += gap
    return Track(
        chain=chain,
        legs=track.legs + 1,
        departures=track.departures + (departed is not None),
        kafka_partition=kafka_partition,
        offset=offset,
        departed_ms=before if departed is None else departed,
        longest_absence_min=longest,
        shortest_turn_min=shortest,
        away_min=away,
    )


def link(chain: str, kafka_partition: int, offset: int, value: bytes) -> str:
    """The next value of a chain: ``H(h ‖ partition ‖ offset ‖ row)``, in hexadecimal.

    The partition is 4 bytes, the offset 8, both big-endian; the first h is 32 zero bytes.
    """
    place = _PLACE.pack(kafka_partition, offset)
    return hashlib.sha256(bytes.fromhex(chain) + place + value).hexdigest()


def encode(track: Track) -> bytes:
    """The track as JSON, the form in which the sink keeps it."""
    return msgspec.json.encode(track)


def decode(stored: bytes | None) -> Track:
    """The track that ``encode`` wrote; a new one for None."""
    return Track() if stored is None else msgspec.json.decode(stored, type=Track)
