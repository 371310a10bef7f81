"""Where streams live: folders, documents, journals, the lock."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from millstream_broker.store.directory import FileStorage, FolderDirectory, MemoryStorage
from millstream_broker.store.errors import DamagedRecord, StoreError, StoreLocked
from tests.broker.store.faults import Crashed, FaultyFiles
from tests.broker.store.model import append


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


def make_stream(storage: FileStorage, name: str = "S") -> FolderDirectory:
    directory = storage.create_stream("$G", name)
    directory.save_config(b"config")
    return directory


def reopen(files: FaultyFiles, store_dir: Path) -> FileStorage:
    """Open as after kill -9: nothing was closed in order."""
    files.let_go()
    return FileStorage(store_dir, files=files)


# Streams


def test_streams_are_found_again_with_config_and_messages(
    files: FaultyFiles, tmp_path: Path
) -> None:
    storage = FileStorage(tmp_path, files=files)
    store = make_stream(storage).open_messages(first_seq=7)
    append(store, "a", None, b"x", 1)
    store.flush()

    again = reopen(files, tmp_path)

    assert again.accounts() == ["$G"]
    assert again.streams("$G") == ["S"]
    directory = again.open_stream("$G", "S")
    assert directory.load_config() == b"config"
    assert directory.open_messages().first_seq == 7
    again.close()


def test_a_creation_cut_off_before_its_config_is_no_stream(
    files: FaultyFiles, tmp_path: Path
) -> None:
    storage = FileStorage(tmp_path, files=files)
    append(storage.create_stream("$G", "S").open_messages(), "a", None, b"x", 1)

    again = reopen(files, tmp_path)

    assert again.streams("$G") == []
    with pytest.raises(StoreError, match="no stream is there"):
        again.open_stream("$G", "S")
    assert make_stream(again).open_messages().last_seq == 0
    again.close()


def test_a_destroyed_stream_is_gone(files: FaultyFiles, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, files=files)
    directory = make_stream(storage)
    directory.open_messages()
    directory.save_consumer("c", b"doc")

    directory.destroy()

    assert storage.streams("$G") == []
    assert not (tmp_path / "jetstream" / "$G" / "streams" / "S").exists()
    make_stream(storage)
    storage.close()


def test_a_stream_is_not_created_over_another(files: FaultyFiles, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, files=files)
    make_stream(storage)

    with pytest.raises(StoreError, match="there already"):
        storage.create_stream("$G", "S")
    storage.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "..\\x", "a\0b"])
def test_names_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    storage = FileStorage(tmp_path)

    with pytest.raises(StoreError, match="not a name"):
        storage.create_stream("$G", name)
    with pytest.raises(StoreError, match="not a name"):
        storage.create_stream(name, "S")
    storage.close()


def test_a_config_is_old_or_new_whenever_the_process_dies(
    files: FaultyFiles, tmp_path: Path
) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    for nth in range(1, 6):
        files.crash_at(nth, part=0.5)
        try:
            directory.save_config(b"other config")
        except Crashed:
            expected = {b"config"} if nth < 4 else {b"config", b"other config"}
        else:
            expected = {b"other config"}
        files.reset()

        assert directory.load_config() in expected
        directory.save_config(b"config")
    files.let_go()


def test_a_damaged_config_is_an_error_naming_the_file(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    path = tmp_path / "jetstream" / "$G" / "streams" / "S" / "config"
    path.write_bytes(path.read_bytes()[:-1] + b"X")

    with pytest.raises(DamagedRecord, match="config"):
        directory.load_config()
    files.let_go()


# Consumers


def test_a_consumer_comes_back_with_its_journal(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"doc")
    for entry in (b"one", b"", b"three"):
        directory.journal_consumer("c", entry)
    directory.flush_consumers()

    again = reopen(files, tmp_path).open_stream("$G", "S")

    assert again.consumers() == ["c"]
    assert again.load_consumer("c") == (b"doc", [b"one", b"", b"three"])
    files.let_go()


def test_entries_not_flushed_are_not_kept(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"doc")
    directory.journal_consumer("c", b"kept")
    directory.flush_consumers()
    directory.journal_consumer("c", b"lost")

    again = reopen(files, tmp_path).open_stream("$G", "S")

    assert again.load_consumer("c")[1] == [b"kept"]
    files.let_go()


def test_a_flush_is_one_write_per_consumer(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    for name in ("c", "d", "idle"):
        directory.save_consumer(name, b"doc")
    files.writes.clear()
    for number in range(50):
        directory.journal_consumer("c", b"%d" % number)
        directory.journal_consumer("d", b"%d" % number)

    directory.flush_consumers()

    assert sorted(name for name, _ in files.writes) == ["c.0.log", "d.0.log"]
    files.let_go()


def test_a_torn_last_entry_is_dropped_at_any_byte_and_written_over(
    files: FaultyFiles, tmp_path: Path
) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"doc")
    directory.journal_consumer("c", b"kept")
    directory.journal_consumer("c", b"torn")
    directory.flush_consumers()
    path = next((tmp_path / "jetstream").rglob("c.0.log"))
    whole = path.read_bytes()

    for end in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:end])
        again = reopen(files, tmp_path).open_stream("$G", "S")
        assert again.load_consumer("c")[1] == [b"kept"]
        again.journal_consumer("c", b"new")
        again.flush_consumers()
        third = reopen(files, tmp_path).open_stream("$G", "S")
        assert third.load_consumer("c")[1] == [b"kept", b"new"]
        assert third.damages == ()
    files.let_go()


def test_a_damaged_entry_is_stepped_over_and_told(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"doc")
    for entry in (b"one", b"two", b"three"):
        directory.journal_consumer("c", entry)
    directory.flush_consumers()
    path = next((tmp_path / "jetstream").rglob("c.0.log"))
    path.write_bytes(path.read_bytes().replace(b"two", b"tvo"))

    again = reopen(files, tmp_path).open_stream("$G", "S")

    assert again.load_consumer("c")[1] == [b"one", b"three"]
    assert [damage.path for damage in again.damages] == [str(path)]
    files.let_go()


def test_saving_a_consumer_empties_its_journal_in_the_same_instant(
    files: FaultyFiles, tmp_path: Path
) -> None:
    for nth in range(1, 8):
        store_dir = tmp_path / str(nth)
        directory = make_stream(FileStorage(store_dir, files=files))
        directory.save_consumer("c", b"old")
        directory.journal_consumer("c", b"entry")
        directory.flush_consumers()
        files.crash_at(nth, part=0.5)
        try:
            directory.save_consumer("c", b"new")
        except Crashed:
            expected = [(b"old", [b"entry"]), (b"new", [])]
        else:
            expected = [(b"new", [])]

        again = reopen(files, store_dir).open_stream("$G", "S")

        assert again.load_consumer("c") in expected
    files.let_go()


def test_a_consumer_made_anew_never_sees_the_journal_of_the_one_before(
    files: FaultyFiles, tmp_path: Path
) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"old")
    directory.journal_consumer("c", b"entry")
    directory.flush_consumers()
    files.crash_at(2)
    with pytest.raises(Crashed):
        directory.delete_consumer("c")
    second = reopen(files, tmp_path).open_stream("$G", "S")
    assert second.consumers() == []

    second.save_consumer("c", b"new")

    third = reopen(files, tmp_path).open_stream("$G", "S")
    assert third.load_consumer("c") == (b"new", [])
    files.let_go()


def test_entries_wait_for_the_next_flush_when_the_disk_is_full(
    files: FaultyFiles, tmp_path: Path
) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"doc")
    directory.journal_consumer("c", b"one")
    directory.flush_consumers()
    directory.journal_consumer("c", b"two")
    files.fail_at(1, part=0.5)
    with pytest.raises(StoreError, match=r"c\.0\.log: No space left"):
        directory.flush_consumers()

    directory.journal_consumer("c", b"three")
    directory.flush_consumers()

    again = reopen(files, tmp_path).open_stream("$G", "S")
    assert again.load_consumer("c")[1] == [b"one", b"two", b"three"]
    files.let_go()


def test_a_deleted_consumer_leaves_no_file(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    directory.save_consumer("c", b"doc")
    directory.journal_consumer("c", b"one")
    directory.flush_consumers()

    directory.delete_consumer("c")

    assert list((tmp_path / "jetstream").rglob("c.*")) == []
    files.let_go()


def test_many_journals_do_not_hold_many_files_open(files: FaultyFiles, tmp_path: Path) -> None:
    directory = make_stream(FileStorage(tmp_path, files=files))
    names = [f"c{number}" for number in range(60)]
    for name in names:
        directory.save_consumer(name, b"doc")
    for round_number in range(2):
        for name in names:
            directory.journal_consumer(name, b"%d" % round_number)
        directory.flush_consumers()

    assert len(files.opened) < 40
    again = reopen(files, tmp_path).open_stream("$G", "S")
    assert {tuple(again.load_consumer(name)[1]) for name in names} == {(b"0", b"1")}
    files.let_go()


# The folder


def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    first = FileStorage(tmp_path)

    with pytest.raises(StoreLocked, match="another server is using this folder"):
        FileStorage(tmp_path)

    first.close()
    FileStorage(tmp_path).close()


HOLDER = """
import sys
from pathlib import Path
from millstream_broker.store.directory import FileStorage
storage = FileStorage(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_server_is_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreLocked):
            FileStorage(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    FileStorage(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")

    with pytest.raises(StoreError, match=r"cannot create .*file/jetstream"):
        FileStorage(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(StoreError, match="Permission denied"):
        FileStorage(tmp_path)
    tmp_path.chmod(0o700)


# Memory


def test_memory_streams_live_as_long_as_the_storage() -> None:
    storage = MemoryStorage()
    directory = storage.create_stream("$G", "S")
    directory.save_config(b"config")
    directory.save_consumer("c", b"doc")
    store = directory.open_messages(first_seq=5)
    append(store, "a", None, b"x", 1)

    assert storage.streams("$G") == ["S"]
    assert storage.open_stream("$G", "S").load_config() == b"config"
    assert directory.consumers() == ["c"]
    assert directory.load_consumer("c") == (b"doc", [])
    assert directory.open_messages().last_seq == 5
    directory.destroy()
    assert storage.streams("$G") == []
