"""What the file store costs, in CPU time per message: ``python -m tests.broker.store.measure``.

Figures are of this machine and never asserted on. Options: ``--messages`` (200000), ``--profile``
(where the time of appending and flushing goes).
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from millstream_broker.store.file import FileStore
from millstream_broker.store.fs import LocalFiles
from tests.broker.store.model import append

PARTITIONS = 10
KEYS = 4000
BATCH = 100
PAYLOAD = b"x" * 128


def timed(what: str, count: int, call: Callable[[], object]) -> None:
    started = time.process_time()
    call()
    spent_s = time.process_time() - started
    print(f"{what:42} {spent_s / count * 1e6:8.2f} µs {count / max(spent_s, 1e-9):12,.0f}/s")


def append_all(store: FileStore, subjects: list[str], batch: int) -> None:
    for number, subject in enumerate(subjects, 1):
        append(store, subject, None, PAYLOAD, number)
        if number % batch == 0:
            store.flush()
    store.flush()


def walk(store: FileStore, patterns: tuple[str, ...]) -> None:
    seq = store.next_match(patterns, 1)
    while seq is not None:
        seq = store.next_match(patterns, seq + 1)


def remove_all(store: FileStore, count: int) -> None:
    for seq in range(1, count + 1):
        store.remove(seq)
        if seq % BATCH == 0:
            store.flush()
    store.flush()


def measure(count: int) -> None:
    subjects = [f"flights.{number % PARTITIONS}.N{number % KEYS}" for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(LocalFiles(), Path(folder, "a"), label="measure")
        timed(f"append, flush every {BATCH}", count, lambda: append_all(store, subjects, BATCH))
        single = FileStore(LocalFiles(), Path(folder, "b"), label="measure")
        timed("append, flush every 1", count // 10, lambda: append_all(single, subjects[::10], 1))
        single.close()
        timed("load, walking", count, lambda: [store.load(seq) for seq in range(1, count + 1)])
        for pattern in (">", "flights.3.*", "flights.3.N3"):
            found = store.count_matches((pattern,), 1)
            timed(f"next_match {pattern}", found, lambda: walk(store, (pattern,)))  # noqa: B023
        timed("count_matches flights.3.*, from the middle", 1, lambda: middle(store, count))
        store.close()
        reopened: list[FileStore] = []
        timed("recovery", count, lambda: reopened.append(again(folder)))
        timed(f"remove, flush every {BATCH}", count, lambda: remove_all(reopened[0], count))
        reopened[0].close()


def middle(store: FileStore, count: int) -> int:
    return store.count_matches(("flights.3.*",), count // 2)


def again(folder: str) -> FileStore:
    return FileStore(LocalFiles(), Path(folder, "a"), label="measure")


def profile(count: int) -> None:
    subjects = [f"flights.{number % PARTITIONS}.N{number % KEYS}" for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(LocalFiles(), Path(folder), label="measure")
        profiler = cProfile.Profile()
        profiler.runcall(append_all, store, subjects, BATCH)
        store.close()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile(options.messages)
    else:
        measure(options.messages)


if __name__ == "__main__":
    main()
