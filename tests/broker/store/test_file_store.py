"""The store in files: what is written when, what survives, what damage is told."""

import errno
from pathlib import Path

import pytest

from millstream_broker.store.block import HEADER_SIZE
from millstream_broker.store.errors import DamagedRecord, StoreBroken, StoreError
from millstream_broker.store.file import FileStore
from millstream_broker.store.fs import LocalFiles
from millstream_broker.store.record import MARK
from tests.broker.store.faults import FaultyFile, FaultyFiles
from tests.broker.store.model import append


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


def open_store(files: FaultyFiles, folder: Path, *, block_bytes: int = 1 << 20) -> FileStore:
    return FileStore(files, folder, label="$G/S", block_bytes=block_bytes)


def reopen(files: FaultyFiles, folder: Path, *, block_bytes: int = 1 << 20) -> FileStore:
    files.let_go()
    return open_store(files, folder, block_bytes=block_bytes)


def fill(store: FileStore, count: int, *, size: int = 20) -> None:
    for number in range(count):
        append(store, f"s.{number % 3}", None, bytes([65 + number % 26]) * size, number + 1)
    store.flush()


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.blk"), key=lambda path: int(path.stem))


def record_places(block: Path) -> list[int]:
    data = block.read_bytes()
    places, place = [], HEADER_SIZE
    while place < len(data):
        assert data[place : place + 2] == MARK
        places.append(place)
        place += int.from_bytes(data[place + 4 : place + 8], "little")
    return places


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


# What a flush writes


def test_a_flush_is_one_write_whatever_it_carries(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 10)
    files.writes.clear()

    for number in range(500):
        append(store, "s.x", b"NATS/1.0\r\n\r\n", b"payload", number)
    store.remove(3)
    store.remove(5)
    store.skip(2, 600)
    store.flush()

    assert len(files.writes) == 1
    store.close()


def test_a_flush_with_nothing_to_write_writes_nothing(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    files.writes.clear()

    store.flush()

    assert files.writes == []
    store.close()


def test_what_was_flushed_is_read_by_another_process_s_eyes(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    append(store, "a.b", b"NATS/1.0\r\nK: v\r\n\r\n", b"body", 7)

    store.flush()

    data = blocks(tmp_path)[0].read_bytes()
    assert data.count(b"a.b") == 1
    assert data.count(b"K: v\r\n\r\nbody") == 1
    store.close()


def test_unflushed_messages_can_be_loaded_but_do_not_survive(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 2)
    append(store, "later", None, b"unflushed", 9)
    loaded = store.load(3)

    again = reopen(files, tmp_path)

    assert loaded is not None
    assert loaded.payload == b"unflushed"
    assert again.last_seq == 2
    again.close()


def test_sync_reaches_every_block_written_since_the_last(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=500)
    for _ in range(4):
        fill(store, 5)
    files.syncs.clear()

    store.sync()

    assert set(files.syncs) == {path.name for path in blocks(tmp_path)} | {tmp_path.name}
    store.close()


def test_sync_always_syncs_before_flush_returns(files: FaultyFiles, tmp_path: Path) -> None:
    store = FileStore(files, tmp_path, label="S", sync_always=True)
    files.syncs.clear()

    fill(store, 1)

    assert files.syncs == ["1.blk"]
    store.close()


# Disks that fail


def test_a_full_disk_is_named_and_leaves_nothing_half_stored(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 3)
    size = blocks(tmp_path)[0].stat().st_size
    append(store, "new", None, b"x", 9)
    store.remove(1)
    files.fail_at(1, part=0.5)

    with pytest.raises(StoreError, match=r"cannot write .*1\.blk: No space left on device"):
        store.flush()

    assert blocks(tmp_path)[0].stat().st_size == size
    assert (store.first_seq, store.last_seq, store.messages) == (1, 3, 3)
    assert store.subject_state("new") is None
    store.close()


def test_a_store_goes_on_when_the_disk_has_room_again(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 3)
    append(store, "refused", None, b"x", 9)
    files.fail_at(1, part=0.9)
    with pytest.raises(StoreError):
        store.flush()

    append(store, "accepted", None, b"y", 10)
    store.flush()

    again = reopen(files, tmp_path)
    assert again.subject_state("accepted") == (4, 4, 1)
    assert again.subject_state("refused") is None
    assert again.recovery.truncated_bytes == 0
    again.close()


def test_a_write_that_cannot_be_taken_back_breaks_the_store_for_changes_only(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 3)
    append(store, "new", None, b"x", 9)
    files.fail_at(1, failures=2, part=0.5, code=errno.EIO)
    with pytest.raises(StoreError, match="Input/output error"):
        store.flush()

    with pytest.raises(StoreBroken, match=r"1\.blk.*Input/output error"):
        append(store, "next", None, b"", 10)
    with pytest.raises(StoreBroken):
        store.remove(1)
    with pytest.raises(StoreBroken):
        store.purge()

    assert store.load(2) is not None
    store.close()


def test_a_purge_that_fails_takes_nothing(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 9)
    files.fail_at(1)

    with pytest.raises(StoreError):
        store.purge(subject="s.1")

    assert store.messages == 9
    assert store.purge(subject="s.1") == 3
    store.close()


def test_a_new_block_that_cannot_be_made_leaves_the_old_one_in_use(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=400)
    fill(store, 12)
    append(store, "s.0", None, b"x", 50)
    files.fail_at(1, code=errno.EMFILE)
    with pytest.raises(StoreError, match=r"2\.blk"):
        store.flush()

    append(store, "s.0", None, b"y", 51)
    store.flush()

    assert [path.name for path in blocks(tmp_path)] == ["1.blk", "2.blk"]
    assert reopen(files, tmp_path).last_seq == 13
    files.let_go()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this platform")
def test_a_really_full_device_is_told_by_name(tmp_path: Path) -> None:
    file = LocalFiles().open(Path("/dev/full"))

    with pytest.raises(StoreError, match="cannot write /dev/full: No space left on device"):
        file.append(b"x", 0)
    file.close()


def test_tidying_that_fails_loses_nothing_and_says_why(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path, block_bytes=400)
    fill(store, 12)
    fill(store, 12)
    for seq in range(2, 12):
        store.remove(seq)
    files.fail_at(3)

    store.flush()

    assert "No space left" in str(store.maintenance_error)
    assert store.messages == 14
    assert reopen(files, tmp_path).messages == 14
    files.let_go()


# Crashes


def test_a_torn_last_write_is_cut_off_at_any_byte(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 2)
    append(store, "s.9", b"NATS/1.0\r\n\r\n", b"torn", 9)
    store.flush()
    store.close()
    block = blocks(tmp_path)[0]
    whole = block.read_bytes()
    start = record_places(block)[-1]

    for end in range(start + 1, len(whole)):
        block.write_bytes(whole[:end])
        again = open_store(files, tmp_path)

        assert (again.last_seq, again.recovery.truncated_bytes) == (2, end - start)
        assert block.stat().st_size == start
        again.close()


def test_what_follows_a_cut_is_found_again(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 3)
    store.close()
    block = blocks(tmp_path)[0]
    block.write_bytes(block.read_bytes()[:-5])

    second = open_store(files, tmp_path)
    append(second, "s.new", None, b"after the cut", 9)
    second.flush()
    third = reopen(files, tmp_path)

    assert third.subject_state("s.new") == (3, 3, 1)
    assert third.recovery.truncated_bytes == 0
    third.close()


def test_the_end_of_the_stream_outlives_its_messages(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path, block_bytes=300)
    for _ in range(20):
        fill(store, 5)
    store.purge()
    store.close()

    again = reopen(files, tmp_path, block_bytes=300)

    assert (again.messages, again.first_seq, again.last_seq) == (0, 101, 100)
    assert again.last_ts_ns == 5
    assert len(blocks(tmp_path)) == 1
    assert append(again, "s.0", None, b"", 9) == 101
    again.close()


def test_a_message_removed_after_its_block_was_closed_stays_removed(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=400)
    fill(store, 12)
    fill(store, 2)
    store.remove(4)
    store.flush()

    again = reopen(files, tmp_path)

    assert again.load(4) is None
    assert list(again.deleted()) == [4]
    again.close()


def test_first_seq_of_a_new_store_survives_without_any_message(
    files: FaultyFiles, tmp_path: Path
) -> None:
    FileStore(files, tmp_path, label="$G/S", first_seq=500).close()

    again = open_store(files, tmp_path)

    assert (again.first_seq, again.last_seq) == (500, 499)
    again.close()


def test_an_unfinished_first_block_is_begun_anew(files: FaultyFiles, tmp_path: Path) -> None:
    open_store(files, tmp_path).close()
    block = blocks(tmp_path)[0]
    block.write_bytes(block.read_bytes()[:10])

    again = open_store(files, tmp_path)

    assert append(again, "s", None, b"", 1) == 1
    again.flush()
    again.close()


# Damage


def test_a_flipped_bit_in_the_middle_loses_that_message_and_is_told(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 5)
    store.close()
    block = blocks(tmp_path)[0]
    places = record_places(block)
    flip(block, places[2] + 35)

    again = open_store(files, tmp_path)

    assert [seq for seq in range(1, 6) if again.load(seq)] == [1, 2, 4, 5]
    (damage,) = again.recovery.damages
    assert (damage.path, damage.position) == (str(block), places[2])
    assert (damage.size_bytes, damage.lost_messages) == (places[3] - places[2], 1)
    assert again.recovery.lost_messages == 1
    again.close()


@pytest.mark.parametrize("byte", range(26))
def test_any_flipped_bit_of_a_record_s_head_is_seen(
    files: FaultyFiles, tmp_path: Path, byte: int
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 5)
    store.close()
    block = blocks(tmp_path)[0]
    flip(block, record_places(block)[2] + byte)

    again = open_store(files, tmp_path)

    assert [seq for seq in range(1, 6) if again.load(seq)] == [1, 2, 4, 5]
    assert again.recovery.lost_messages == 1
    again.close()


def test_damage_over_several_records_counts_each(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 8)
    store.close()
    block = blocks(tmp_path)[0]
    places = record_places(block)
    data = bytearray(block.read_bytes())
    data[places[2] + 3 : places[5] + 3] = bytes(places[5] - places[2])
    block.write_bytes(data)

    again = open_store(files, tmp_path)

    assert [seq for seq in range(1, 9) if again.load(seq)] == [1, 2, 7, 8]
    assert again.recovery.lost_messages == 4
    again.close()


def test_damage_at_the_end_of_a_closed_block_is_told_by_the_next(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=400)
    fill(store, 12)
    fill(store, 2)
    store.close()
    first = blocks(tmp_path)[0]
    first.write_bytes(first.read_bytes()[: record_places(first)[-2] + 5])

    again = open_store(files, tmp_path)

    assert again.recovery.lost_messages == 2
    assert [seq for seq in range(1, 15) if again.load(seq)] == [*range(1, 11), 13, 14]
    again.close()


def test_a_removed_message_whose_record_is_damaged_is_not_counted_as_lost(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 5)
    store.remove(3)
    store.flush()
    store.close()
    block = blocks(tmp_path)[0]
    flip(block, record_places(block)[2] + 35)

    again = open_store(files, tmp_path)

    assert len(again.recovery.damages) == 1
    assert again.recovery.lost_messages == 0
    again.close()


def test_the_sequence_of_a_damaged_last_message_is_not_given_out_again(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 3)
    store.close()
    block = blocks(tmp_path)[0]
    flip(block, block.stat().st_size - 8)

    again = open_store(files, tmp_path)

    assert (again.last_seq, again.messages, again.recovery.lost_messages) == (3, 2, 1)
    assert append(again, "s", None, b"", 9) == 4
    again.close()


def test_damage_is_told_again_at_every_opening(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 5)
    store.close()
    block = blocks(tmp_path)[0]
    flip(block, record_places(block)[2] + 35)
    first = open_store(files, tmp_path)
    told = first.recovery
    fill(first, 2)
    first.close()

    again = open_store(files, tmp_path)

    assert again.recovery == told
    assert again.messages == 6
    again.close()


def test_a_damaged_header_costs_no_message(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path, block_bytes=400)
    fill(store, 12)
    fill(store, 2)
    store.close()
    flip(blocks(tmp_path)[1], 9)

    again = open_store(files, tmp_path)

    assert again.messages == 14
    assert len(again.recovery.damages) == 1
    again.close()


def test_a_record_out_of_its_place_is_not_believed(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 4)
    store.close()
    block = blocks(tmp_path)[0]
    places = [*record_places(block), block.stat().st_size]
    data = bytearray(block.read_bytes())
    data[places[2] : places[3]] = data[places[1] : places[2]]
    block.write_bytes(data)

    again = open_store(files, tmp_path)

    assert [seq for seq in range(1, 5) if again.load(seq)] == [1, 2, 4]
    assert again.recovery.lost_messages == 1
    again.close()


def test_a_block_of_another_stream_is_not_believed(files: FaultyFiles, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    store = open_store(files, ours)
    fill(store, 4)
    store.close()
    stranger = FileStore(files, theirs, label="$G/OTHER")
    fill(stranger, 4)
    stranger.close()
    (ours / "1.blk").write_bytes((theirs / "1.blk").read_bytes())

    again = open_store(files, ours)

    assert again.messages == 0
    assert again.recovery.truncated_bytes > 0
    again.close()


def test_a_record_that_goes_bad_while_open_is_an_error_when_loaded(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 4)
    fill(store, 1)
    block = blocks(tmp_path)[0]
    place = record_places(block)[1]
    flip(block, place + 33)

    with pytest.raises(DamagedRecord, match=rf"1\.blk.*sequence 2 at byte {place}"):
        store.load(2)

    assert store.remove(2) is not None
    store.close()


# Tidying


def test_a_bucket_overwritten_for_ever_stays_small(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path, block_bytes=4096)
    append(store, "once", None, b"never touched again", 1)
    live_bytes = 0
    for number in range(6000):
        subject = f"key.{number % 20}"
        before = store.subject_state(subject)
        append(store, subject, None, b"v" * 50, number)
        if before is not None:
            store.remove(before[0])
        store.flush()
        live_bytes = store.size_bytes

    on_disk = sum(path.stat().st_size for path in blocks(tmp_path))
    assert store.messages == 21
    assert on_disk < 2 * live_bytes + 3 * 4096
    assert len(blocks(tmp_path)) <= 5
    again = reopen(files, tmp_path, block_bytes=4096)
    assert again.messages == 21
    again.close()


def test_a_work_queue_that_is_drained_gives_its_disk_back(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=2048)
    for _ in range(30):
        fill(store, 20)
    for seq in range(600, 0, -1):
        store.remove(seq)
        store.flush()

    assert store.last_seq == 600
    assert sum(path.stat().st_size for path in blocks(tmp_path)) < 2 * 2048
    store.close()


def test_neighbours_that_became_small_are_merged(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path, block_bytes=1000)
    for _ in range(10):
        fill(store, 20)
    for seq in range(1, 201):
        if seq % 20:
            store.remove(seq)
            store.flush()

    assert len(blocks(tmp_path)) <= 4
    again = reopen(files, tmp_path, block_bytes=1000)
    assert [seq for seq in range(1, 201) if again.load(seq)] == list(range(20, 201, 20))
    again.close()


def test_a_removal_outlives_its_block_while_the_record_it_removed_is_there(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=1000)
    fill(store, 20)
    fill(store, 1)
    store.remove(4)
    fill(store, 19)
    fill(store, 1)
    closed = blocks(tmp_path)[1].stat().st_size
    for seq in range(21, 40):
        store.remove(seq)
        store.flush()
    assert blocks(tmp_path)[1].stat().st_size < closed

    again = reopen(files, tmp_path, block_bytes=1000)

    assert again.load(4) is None
    assert [seq for seq in range(1, 42) if again.load(seq)] == [1, 2, 3, *range(5, 21), 40, 41]
    again.close()


def test_a_merge_killed_before_its_leftovers_are_deleted_is_finished_at_opening(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path, block_bytes=1000)
    for _ in range(3):
        fill(store, 20)
    kept = {path.name: path.read_bytes() for path in blocks(tmp_path)}
    for seq in range(1, 61):
        if seq % 20:
            store.remove(seq)
            store.flush()
    store.close()
    gone = [name for name in kept if not (tmp_path / name).exists()]
    for name in gone:
        (tmp_path / name).write_bytes(kept[name])

    again = open_store(files, tmp_path, block_bytes=1000)

    assert gone
    assert [seq for seq in range(1, 61) if again.load(seq)] == [20, 40, 60]
    assert not again.recovery.damages
    again.close()


def test_an_erased_message_leaves_no_byte_behind(files: FaultyFiles, tmp_path: Path) -> None:
    store = open_store(files, tmp_path)
    fill(store, 2)
    append(store, "secret", b"NATS/1.0\r\nTo: nobody\r\n\r\n", b"the launch codes", 3)
    store.flush()

    store.remove(3, erase=True)
    store.flush()

    data = blocks(tmp_path)[0].read_bytes()
    assert b"launch" not in data
    assert b"nobody" not in data
    again = reopen(files, tmp_path)
    assert (again.messages, again.last_seq, again.recovery.damages) == (2, 3, ())
    again.close()


def test_a_removed_message_that_need_not_be_erased_keeps_its_bytes(
    files: FaultyFiles, tmp_path: Path
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 2)
    append(store, "s.0", None, b"the launch codes", 3)

    store.remove(3)
    store.flush()

    assert b"launch" in blocks(tmp_path)[0].read_bytes()
    store.close()


# Reading


def test_a_walk_reads_ahead_and_a_look_up_does_not(
    files: FaultyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(files, tmp_path)
    fill(store, 1000, size=100)
    fill(store, 1)
    reads: list[int] = []
    read = FaultyFile.read

    def counted(self: FaultyFile, size: int, position: int) -> bytes:
        reads.append(size)
        return read(self, size, position)

    monkeypatch.setattr(FaultyFile, "read", counted)

    store.load(500)
    assert reads == [133]
    for seq in range(1, 1001):
        assert store.load(seq) is not None
    assert len(reads) <= 6
    store.close()
