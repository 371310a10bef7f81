"""Both stores against one list, with crashes and failing disks for the one in files."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream_broker.message import Message
from millstream_broker.store import index, subject_table
from millstream_broker.store.errors import StoreBroken, StoreError
from millstream_broker.store.file import FileStore
from millstream_broker.store.memory import MemoryStore
from millstream_broker.store.port import MessageStore
from tests.broker.store.faults import Crashed, FaultyFiles
from tests.broker.store.model import ListModel, assert_same, state_of

SUBJECTS = st.sampled_from(["a.1", "a.2", "b.1", "b.2", "a", "a.1.x", "é.1", "k.0", "k.1"])
HEADERS = st.sampled_from([None, b"NATS/1.0\r\nA: b\r\n\r\n"])
PAYLOADS = st.binary(max_size=40)
PATTERNS = st.sampled_from([">", "a.*", "a.1", "*.1", "none"])


class QueriedStore(RuleBasedStateMachine):
    """What both stores are asked to do."""

    in_file = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        # Thresholds low enough for a few messages to pass them.
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(subject_table, "_RETIRED_MIN", 3)
        self.patched.setattr(index, "_SCAN_MAX", 6)

    @initialize(first_seq=st.sampled_from([1, 2, 4090, 100_000]))
    def open(self, first_seq: int) -> None:
        self.first_seq = first_seq
        self.model = ListModel(last_seq=first_seq - 1)
        self.store: MessageStore = self.create()
        self.steps: list[ListModel] = []
        self.flushed = self.model.copy()

    def create(self) -> MessageStore:
        return MemoryStore(first_seq=self.first_seq)

    def after(self, model: ListModel) -> None:
        """Remember each state the calls go through since the last flush."""
        self.steps.append(model.copy())

    def change(self, call: str, *arguments: object, **options: object) -> object:
        return getattr(self.store, call)(*arguments, **options)

    @rule(subject=SUBJECTS, headers=HEADERS, payload=PAYLOADS, tick=st.integers(0, 3))
    def append(self, subject: str, headers: bytes | None, payload: bytes, tick: int) -> None:
        self.clock += tick
        seq = self.model.append(subject, headers, payload, self.clock)
        self.after(self.model)
        run = [Message(subject, None, headers, payload)]
        assert self.change("append_run", run, self.clock) == seq

    @rule(
        messages=st.lists(st.tuples(SUBJECTS, HEADERS, PAYLOADS), min_size=1, max_size=30),
        tick=st.integers(0, 3),
    )
    def append_run(self, messages: list[tuple[str, bytes | None, bytes]], tick: int) -> None:
        self.clock += tick
        first_seq = self.model.last_seq + 1
        for message in messages:
            self.model.append(*message, self.clock)
            self.after(self.model)
        run = [Message(subject, "reply", headers, body) for subject, headers, body in messages]
        assert self.change("append_run", run, self.clock) == first_seq

    @rule(count=st.sampled_from([1, 2, 5000]))
    def skip(self, count: int) -> None:
        self.clock += 1
        self.model.skip(count, self.clock)
        self.after(self.model)
        self.change("skip", count, self.clock)

    @rule(back=st.integers(0, 20), erase=st.booleans(), from_front=st.booleans())
    def remove(self, back: int, erase: bool, from_front: bool) -> None:
        kept = self.model.kept
        seq = self.model.last_seq - back
        if from_front and kept:
            seq = kept[min(back, len(kept) - 1)].seq
        there = self.model.remove(seq)
        self.after(self.model)
        removed = self.store.remove(seq, erase=erase)
        assert (removed is not None) == there

    @rule(subject=SUBJECTS)
    def keep_last_of_subject(self, subject: str) -> None:
        """What a bucket does: a new value, and the one before it goes."""
        state = self.store.subject_state(subject)
        self.append(subject, None, b"value", 1)
        if state is not None:
            self.model.remove(state[0])
            self.after(self.model)
            self.store.remove(state[0])

    @rule(
        subject=PATTERNS, below=st.none() | st.integers(0, 30), keep=st.sampled_from([0, 0, 1, 3])
    )
    def purge(self, subject: str, below: int | None, keep: int) -> None:
        below_seq = None if below is None else self.model.last_seq - below
        seqs = self.model.to_purge(subject, below_seq, keep)
        self.steps = [self.model.copy()]
        for seq in seqs:
            self.model.remove(seq)
            self.after(self.model)
        assert self.store.purge(subject=subject, below_seq=below_seq, keep=keep) == len(seqs)
        self.settle()

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.settle()

    def settle(self) -> None:
        self.flushed = self.model.copy()
        self.steps = []

    @invariant()
    def answers_are_the_list_s(self) -> None:
        assert_same(self.store, self.model, in_file=self.in_file)

    def teardown(self) -> None:
        self.patched.undo()


class CrashingStore(QueriedStore):
    """The store in files, with tiny blocks so that they fill, die and merge all the time."""

    in_file = True

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-"))
        self.files = FaultyFiles()

    def create(self) -> MessageStore:
        return FileStore(
            self.files,
            self.folder / "msgs",
            label="S",
            first_seq=self.first_seq,
            block_bytes=500,
        )

    def reopen(self) -> None:
        self.files.let_go()
        self.store = self.create()

    @rule()
    def close_and_reopen(self) -> None:
        self.store.close()
        self.settle()
        self.reopen()
        assert self.store.recovery.truncated_bytes == 0
        assert not self.store.recovery.damages

    @rule()
    def kill_before_flush(self) -> None:
        self.reopen()
        self.model = self.flushed.copy()
        self.settle()

    def survive(self) -> None:
        """Open after a kill: one of the states since the last flush is there, and nothing else."""
        states = [self.flushed, *self.steps]
        self.reopen()
        assert not self.store.recovery.damages
        found = state_of(self.store)
        self.model = next(model for model in states if state_of(model) == found).copy()
        self.settle()

    @rule(nth=st.integers(1, 6), part=st.floats(0, 1))
    def kill_inside_flush(self, nth: int, part: float) -> None:
        self.files.crash_at(nth, part=part)
        with contextlib.suppress(Crashed):
            self.flush()
        self.survive()

    @rule(nth=st.integers(1, 4), part=st.floats(0, 1))
    def kill_inside_purge(self, nth: int, part: float) -> None:
        self.flush()
        self.files.crash_at(nth, part=part)
        with contextlib.suppress(Crashed):
            self.purge("a.*", None, 0)
        self.survive()

    @rule(
        subjects=st.lists(SUBJECTS, min_size=10, max_size=60),
        keep=st.integers(1, 3),
        kill_at=st.none() | st.integers(1, 80),
        part=st.floats(0, 1),
    )
    def churn(self, subjects: list[str], keep: int, kill_at: int | None, part: float) -> None:
        """A bucket with a short history, overwritten until blocks fill, die and merge."""
        if kill_at is not None:
            self.files.crash_at(kill_at, part=part)
        try:
            for subject in subjects:
                self.append(subject, None, b"v" * (len(subjects) % 40), 1)
                state = self.store.subject_state(subject)
                if state is not None and state[2] > keep:
                    self.model.remove(state[0])
                    self.after(self.model)
                    self.store.remove(state[0])
                self.flush()
        except Crashed:
            self.survive()
        self.files.reset()

    @rule(nth=st.integers(1, 3), part=st.floats(0, 1))
    def kill_while_recovering(self, nth: int, part: float) -> None:
        """Twice is once: a recovery cut off anywhere is done again."""
        self.kill_inside_flush(1, part)
        self.files.let_go()
        self.files.crash_at(nth)
        try:
            self.store = self.create()
        except Crashed:
            self.reopen()
        self.files.reset()

    @rule(nth=st.integers(1, 5), failures=st.sampled_from([1, 2, 9]), part=st.floats(0, 1))
    def disk_fails_in_flush(self, nth: int, failures: int, part: float) -> None:
        self.append("a.1", None, b"on a full disk", 1)
        steps = self.steps
        self.files.fail_at(nth, failures=failures, part=part)
        failed = None
        try:
            self.store.flush()
        except StoreError as error:
            failed = error
        if failed is not None:
            assert str(self.folder) in str(failed)
            assert "No space left" in str(failed)
            self.model = self.flushed.copy()
            assert_same(self.store, self.model, in_file=True)
        self.files.reset()
        self.settle()
        try:
            self.store.skip(1, self.clock)
        except StoreBroken:
            self.store.close()
            # What could not be cut off may come back, never acknowledged; it is a prefix anyway.
            self.steps = steps
            self.survive()
        else:
            self.model.skip(1, self.clock)
            self.flush()

    @precondition(lambda self: len(self.model.kept) > 20)
    @rule()
    def drain(self) -> None:
        for message in list(self.model.kept):
            self.model.remove(message.seq)
            self.after(self.model)
            self.store.remove(message.seq)
        self.flush()

    def teardown(self) -> None:
        super().teardown()
        self.files.let_go()
        shutil.rmtree(self.folder)


EXAMPLES = settings().max_examples
"""The profile's; a run of steps is an example, so fewer will do."""

TestMemoryStore = QueriedStore.TestCase
TestMemoryStore.settings = settings(max_examples=EXAMPLES * 3 // 10, stateful_step_count=30)
TestFileStore = CrashingStore.TestCase
TestFileStore.settings = settings(max_examples=EXAMPLES * 3 // 5, stateful_step_count=40)
