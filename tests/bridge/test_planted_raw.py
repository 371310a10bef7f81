"""No byte of a stored message that says something can change without the proof telling.

The other planted differences are records a bridge might have stored; these are no bridge's: lines
of a header block dropped, doubled, exchanged with another message's, bytes changed, subjects and
payloads swapped.
"""

import base64
import random
from collections.abc import Callable, Sequence

import pytest

from millstream_bridge import Record, Route
from millstream_bridge.jetstream.connection import Message
from millstream_bridge.model import TimestampType
from millstream_bridge.proof.check import Check
from millstream_bridge.proof.values import Proof
from millstream_bridge.records.mapping import Mapping
from millstream_bridge.records.template import SubjectError
from tests.bridge.planted import MemorySides, Stored, some_kafka

TEMPLATES = [
    "flights.{partition}.{key}",
    "flights.{partition}",
    "a.{topic}.{partition}.{key|default(none)}",
    "a.{partition}.{key|hash8}",
    "a.{partition}.{key|lower}.{key.part[0]|default(x)}",
    "a.{partition}.{key}.{key.part[0]|default(x)}",
    "{partition}.x.{key}.z",
    "a.{partition}.{header[n]|default(d)}.{key}",
]
CASES = 150
SOURCE = b"Millstream-Source: "


def message_of(mapping: Mapping, record: Record, n: int) -> Message:
    guard = f"Nats-Msg-Id: abc-{n}\r\nNats-Expected-Last-Msg-Id: abc-{n - 1}\r\n"
    block = f"NATS/1.0\r\n{guard}{mapping.header_lines(record)}\r\n"
    return Message(mapping.subject(record), "", block.encode(), record.value or b"")


async def proof_of(mapping: Mapping, kafka: Sequence[Record], stored: list[Stored]) -> Proof:
    return await Check(MemorySides(kafka, stored, mapping=mapping), mapping).full()


def lines_of(message: Message) -> list[bytes]:
    """Those that say something: neither the server's nor the origin, which nobody reads."""
    lines = message.block.split(b"\r\n")[1:]
    return [it for it in lines if it and not it.startswith((b"Nats-", b"Millstream-Origin"))]


def with_lines(message: Message, lines: Sequence[bytes]) -> Message:
    """The message with these lines, and the origin where a bridge has it: behind the source."""
    origin = b"Millstream-Origin: flights"
    all_lines = [line for it in lines for line in ([it, origin] if it.startswith(SOURCE) else [it])]
    return message._replace(block=b"\r\n".join([b"NATS/1.0", *all_lines, b"", b""]))


Change = Callable[[Message, Message, random.Random], Message]
"""A message, another one, and chance: what becomes of the first."""


def _byte(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(7)
    return bytes(changed)


def _header_byte(message: Message, _: Message, chance: random.Random) -> Message:
    lines = lines_of(message)
    at = chance.randrange(len(lines))
    return with_lines(message, [*lines[:at], _byte(lines[at], chance), *lines[at + 1 :]])


def _without_line(message: Message, _: Message, chance: random.Random) -> Message:
    lines = lines_of(message)
    del lines[chance.randrange(len(lines))]
    return with_lines(message, lines)


def _others_line(message: Message, other: Message, chance: random.Random) -> Message:
    lines = lines_of(message)
    lines[chance.randrange(len(lines))] = chance.choice(lines_of(other))
    return with_lines(message, lines)


def _without_key(message: Message, _: Message, chance: random.Random) -> Message:
    return with_lines(
        message, [it for it in lines_of(message) if not it.startswith(b"Millstream-Key")]
    )


def _another_key(message: Message, _: Message, chance: random.Random) -> Message:
    lines = [it for it in lines_of(message) if not it.startswith(b"Millstream-Key")]
    key = base64.b64encode(chance.choice([b"", b"N1", b"y" * 300]))
    return with_lines(message, [*lines, b"Millstream-Key: " + key])


def _payload(message: Message, _: Message, chance: random.Random) -> Message:
    return message._replace(payload=_byte(message.payload or b"\0", chance))


def _longer(message: Message, _: Message, chance: random.Random) -> Message:
    return message._replace(payload=message.payload + b"x")


def _subject(message: Message, _: Message, chance: random.Random) -> Message:
    place = chance.randrange(len(message.subject))
    letter = chance.choice("abc019%~")
    return message._replace(subject=message.subject[:place] + letter + message.subject[place + 1 :])


def _others_subject(message: Message, other: Message, _: random.Random) -> Message:
    return message._replace(subject=other.subject)


def _others_payload(message: Message, other: Message, _: random.Random) -> Message:
    return message._replace(payload=other.payload)


CHANGES: list[Change] = [
    _header_byte,
    _without_line,
    _others_line,
    _without_key,
    _another_key,
    _payload,
    _longer,
    _subject,
    _others_subject,
    _others_payload,
]


@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_message_that_says_something_else_is_a_difference(template: str) -> None:
    planted = 0
    for seed in range(CASES):
        chance = random.Random(f"{template} {seed}")
        mapping = Mapping(Route(topic="flights", stream="FLIGHTS", subject=template))
        kafka = [it for it in some_kafka(chance, each=15) if _has_subject(mapping, it)]
        stored = [(n + 1, message_of(mapping, it, n)) for n, it in enumerate(kafka)]
        at = chance.randrange(len(stored))
        seq, message = stored[at]
        change = chance.choice(CHANGES)
        changed = change(message, chance.choice(stored)[1], chance)

        clean = await proof_of(mapping, kafka, stored)
        spoiled = await proof_of(mapping, kafka, [*stored[:at], (seq, changed), *stored[at + 1 :]])

        assert clean.equal, (seed, clean.difference)
        is_same = _what_it_says(changed) == _what_it_says(message)
        assert spoiled.equal is is_same, (seed, change.__name__, message, changed)
        planted += not is_same
    assert planted > CASES // 2


def _has_subject(mapping: Mapping, record: Record) -> bool:
    try:
        mapping.subject(record)
    except SubjectError:
        return False
    return True


def _what_it_says(message: Message) -> tuple[str, list[bytes], list[bytes], bytes]:
    """Readers trim values; where the bridge's own lines are among the others does not matter."""
    lines = [it.partition(b":") for it in lines_of(message)]
    trimmed = [name + colon + value.strip(b" ") for name, colon, value in lines if colon]
    own = sorted(it for it in trimmed if it.startswith(b"Millstream-"))
    return message.subject, own, [it for it in trimmed if it not in own], message.payload


@pytest.mark.parametrize("template", ["flights.{partition}", "flights.{partition}.{key}"])
async def test_a_key_lost_from_its_header_is_not_that_of_the_message_before(template: str) -> None:
    mapping = Mapping(Route(topic="flights", stream="FLIGHTS", subject=template))
    one = Record(0, 1, 1_357_034_400_000, TimestampType.CREATE, b"x" * 300, b"v", ())
    kafka = [one._replace(offset=offset) for offset in (1, 2)]
    first, second = (message_of(mapping, it, n) for n, it in enumerate(kafka))
    lost = _without_key(second, first, random.Random())

    proof = await proof_of(mapping, kafka, [(1, first), (2, lost)])

    assert proof.difference is not None
    assert proof.difference.offset == 2
