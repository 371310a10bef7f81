"""The store's contract as a list: slow, short, and plainly right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from millstream_broker.message import Message
from millstream_broker.store.port import MessageStore, StoredMessage
from millstream_broker.subjects.subject import matches


def size_in_file(message: StoredMessage) -> int:
    headers = 0 if message.headers is None else 4 + len(message.headers)
    return 22 + len(message.subject.encode()) + headers + len(message.payload) + 8


def size_in_memory(message: StoredMessage) -> int:
    headers = 0 if message.headers is None else len(message.headers)
    return len(message.subject.encode()) + headers + len(message.payload) + 16


def append(
    store: MessageStore, subject: str, headers: bytes | None, payload: bytes, ts_ns: int
) -> int:
    """Store one message; its sequence."""
    return store.append_run((Message(subject, None, headers, payload),), ts_ns)


@dataclass
class ListModel:
    """All messages of a stream in one list."""

    last_seq: int = 0
    last_ts_ns: int = 0
    kept: list[StoredMessage] = field(default_factory=list)

    def copy(self) -> "ListModel":
        return ListModel(self.last_seq, self.last_ts_ns, list(self.kept))

    def append(self, subject: str, headers: bytes | None, payload: bytes, ts_ns: int) -> int:
        self.last_seq += 1
        self.last_ts_ns = ts_ns
        self.kept.append(StoredMessage(self.last_seq, ts_ns, subject, headers, payload))
        return self.last_seq

    def skip(self, count: int, ts_ns: int) -> None:
        self.last_seq += count
        self.last_ts_ns = ts_ns

    def remove(self, seq: int) -> bool:
        before = len(self.kept)
        self.kept = [message for message in self.kept if message.seq != seq]
        return len(self.kept) < before

    def to_purge(self, subject: str, below_seq: int | None, keep: int) -> list[int]:
        seqs = [message.seq for message in self.kept if matches(subject, message.subject)]
        if keep:
            seqs = seqs[:-keep]
        return [seq for seq in seqs if below_seq is None or seq < below_seq]

    @property
    def first_seq(self) -> int:
        return self.kept[0].seq if self.kept else self.last_seq + 1

    def on(self, patterns: Sequence[str]) -> Iterator[StoredMessage]:
        for message in self.kept:
            if any(matches(pattern, message.subject) for pattern in patterns):
                yield message

    def last_matches(self, patterns: Sequence[str], up_to_seq: int | None) -> list[int]:
        last: dict[str, int] = {}
        for message in self.on(patterns):
            if up_to_seq is None or message.seq <= up_to_seq:
                last[message.subject] = message.seq
        return sorted(last.values())

    def deleted(self) -> list[int]:
        there = {message.seq for message in self.kept}
        return [seq for seq in range(self.first_seq, self.last_seq + 1) if seq not in there]


PATTERNS: tuple[tuple[str, ...], ...] = (
    (">",),
    ("a.1",),
    ("a.*",),
    ("*.1",),
    ("a.>",),
    ("a.1", "b.2"),
    ("a.*", "*.2"),
    ("a",),
    ("none.here",),
)


def state_of(store: MessageStore | ListModel) -> tuple[object, ...]:
    """What tells two states apart, in one comparable value."""
    if isinstance(store, ListModel):
        return (store.last_seq, store.last_ts_ns, tuple(store.kept))
    kept = []
    seq = store.next_match((">",), 0)
    while seq is not None:
        kept.append(store.load(seq))
        seq = store.next_match((">",), seq + 1)
    return (store.last_seq, store.last_ts_ns, tuple(kept))


def assert_same(store: MessageStore, model: ListModel, *, in_file: bool) -> None:
    """Every question of the contract has the model's answer."""
    size = size_in_file if in_file else size_in_memory
    assert state_of(store) == state_of(model)
    assert store.messages == len(model.kept)
    assert store.size_bytes == sum(map(size, model.kept))
    assert store.first_seq == model.first_seq
    assert store.first_ts_ns == (model.kept[0].ts_ns if model.kept else 0)
    assert store.num_subjects == len({message.subject for message in model.kept})
    deleted = model.deleted()
    assert list(store.deleted()) == deleted
    assert store.num_deleted == len(deleted)
    for seq in deleted:
        assert store.load(seq) is None
    for subject in {message.subject for message in model.kept} | {"a.1", "never"}:
        seqs = [message.seq for message in model.kept if message.subject == subject]
        expected = (seqs[0], seqs[-1], len(seqs)) if seqs else None
        assert store.subject_state(subject) == expected
    starts = sorted(
        {0, 1, model.first_seq, (model.first_seq + model.last_seq) // 2, model.last_seq}
    )
    for patterns in PATTERNS:
        matching = list(model.on(patterns))
        counts: dict[str, int] = {}
        for message in matching:
            counts[message.subject] = counts.get(message.subject, 0) + 1
        if len(patterns) == 1:
            assert store.subjects(patterns[0]) == counts
        for start in starts:
            seqs = [message.seq for message in matching if message.seq >= start]
            assert store.next_match(patterns, start) == (seqs[0] if seqs else None)
            for count in (1, 3, len(seqs) + 1):
                assert list(store.next_matches(patterns, start, count)) == seqs[:count]
            run = [message for message in matching if message.seq >= start]
            assert store.load_run(seqs, 1 << 20) == run
            if run:
                of_two = sum(map(size, run[:2]))
                assert store.load_run(seqs, of_two) == run[:2]
                assert store.load_run(seqs, of_two + 1) == run[:3]
            assert store.count_matches(patterns, start) == len(seqs)
            assert store.last_matches(patterns, up_to_seq=start) == model.last_matches(
                patterns, start
            )
        assert store.last_matches(patterns) == model.last_matches(patterns, None)
    for ts_ns in {0, model.last_ts_ns, model.last_ts_ns + 1, model.last_ts_ns // 2}:
        seqs = [message.seq for message in model.kept if message.ts_ns >= ts_ns]
        assert store.seq_at(ts_ns) == (seqs[0] if seqs else model.last_seq + 1)
