"""The journal: torn tails are cut, any other damage is found and named, what was synced is never lost."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit.errors import StorageError, UsageError
from polcommit.storage import journal as journals
from polcommit.storage.journal import HEAD_SIZE, MAX_PAYLOAD, Journal, read_frames

PAYLOADS = [b"genesis", b"", b"step 1", bytes(40), b"\xff" * 21]


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "journal"
    write(path, PAYLOADS)
    return path


def write(path: Path, payloads: list[bytes]) -> None:
    with Journal.create(path) as journal:
        for number, payload in enumerate(payloads):
            assert journal.append(payload) == number
        journal.sync()


def encoded(payloads: list[bytes]) -> bytes:
    return b"".join(journals.frame(number, payload) for number, payload in enumerate(payloads))


def test_the_layout_is_the_documented_one():
    """u32 length ‖ payload ‖ 8 bytes of SHA-256(tag ‖ u64 number ‖ payload)."""
    check = hashlib.sha256(b"polcommit/v1/journal\0" + bytes([0, 0, 0, 0, 0, 0, 1, 2]) + b"abc").digest()[:8]
    assert journals.frame(258, b"abc") == bytes([0, 0, 0, 3]) + b"abc" + check


def test_what_was_appended_is_read_again(path):
    with Journal.open(path) as journal:
        assert len(journal) == 5
        assert journal.torn == 0
        assert list(journal) == PAYLOADS
        assert list(journal.read(1, 3)) == PAYLOADS[1:3]
        assert list(journal.read(4, 99)) == PAYLOADS[4:]
        assert list(journal.read(5)) == []
        journal.append(b"more")
        assert list(journal) == [*PAYLOADS, b"more"]
    assert list(read_frames(path, 4)) == [PAYLOADS[4], b"more"]
    assert path.read_bytes() == encoded([*PAYLOADS, b"more"])


@settings(deadline=None)     # it writes files
@given(payloads=st.lists(st.binary(max_size=300), max_size=12), data=st.data())
def test_a_torn_tail_is_cut_off_and_nothing_else(tmp_path_factory, payloads, data):
    """Whatever a crash left of the last write, the whole frames before it stay, and appending goes on."""
    whole = encoded(payloads)
    keep = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("torn") / "journal"
    path.write_bytes(whole[:keep])
    count = next(n for n in range(len(payloads), -1, -1) if len(encoded(payloads[:n])) <= keep)
    assert list(read_frames(path)) == payloads[:count]
    assert path.stat().st_size == keep      # reading alone changes nothing
    with Journal.open(path) as journal:
        assert journal.torn == keep - len(encoded(payloads[:count]))
        journal.append(b"after the crash")
        assert list(journal) == [*payloads[:count], b"after the crash"]
    with Journal.open(path) as journal:
        assert journal.torn == 0


def test_no_flipped_bit_passes_unnoticed(path):
    """Also in a length, where it makes a frame look as if it went beyond the end, like a torn one."""
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(StorageError, match="is damaged: frame"):
                Journal.open(path)
            with pytest.raises(StorageError, match="is damaged: frame"):
                list(read_frames(path))
            assert path.read_bytes() == damaged


@settings(deadline=None)     # it writes files
@given(payloads=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6), data=st.data())
def test_a_flip_and_a_torn_tail_together_never_give_other_frames(tmp_path_factory, payloads, data):
    whole = encoded(payloads)
    damaged = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("both") / "journal"
    path.write_bytes(damaged)
    try:
        found = list(read_frames(path))
    except StorageError:
        return
    assert found == payloads[: len(found)]


def test_swapped_frames_are_found(path):
    """The check covers the frame's number: a frame is not whole in another place."""
    path.write_bytes(journals.frame(1, b"b") + journals.frame(0, b"a"))
    with pytest.raises(StorageError, match="frame 0 does not match its check"):
        Journal.open(path)


def test_damage_says_which_frame_and_what_to_do(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(encoded(PAYLOADS[:3])) + HEAD_SIZE] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match="frame 3 does not match its check") as caught:
        Journal.open(path)
    assert "roll back to the 3 frames before it" in caught.value.hint


def test_damage_after_opening_is_found_when_it_is_read(path):
    with Journal.open(path) as journal:
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        assert list(journal.read(0, 4)) == PAYLOADS[:4]
        with pytest.raises(StorageError, match="frame 4"):
            list(journal.read(4))
        os.truncate(path, len(damaged) - 3)
        with pytest.raises(StorageError, match="frame 4 is no longer there"):
            list(journal)


def test_a_long_torn_frame_is_told_from_a_damaged_length(tmp_path):
    """A megabyte cut short by one byte is torn; the same, whole, under a length one too large is damaged."""
    payload = os.urandom(MAX_PAYLOAD - 1)
    whole = journals.frame(0, payload)
    path = tmp_path / "journal"
    path.write_bytes(whole[:-1])
    with Journal.open(path) as journal:
        assert (len(journal), journal.torn) == (0, len(whole) - 1)
    path.write_bytes(MAX_PAYLOAD.to_bytes(HEAD_SIZE, "big") + whole[HEAD_SIZE:])
    with pytest.raises(StorageError, match="announces 1048576 bytes, but is shorter"):
        Journal.open(path)


def test_a_payload_has_a_limit(tmp_path):
    with Journal.create(tmp_path / "journal") as journal:
        journal.append(bytes(MAX_PAYLOAD))
        with pytest.raises(UsageError, match="do not fit"):
            journal.append(bytes(MAX_PAYLOAD + 1))
        assert len(journal) == 1


@pytest.mark.parametrize("content", [b"not a journal at all", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_a_foreign_file(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="frame 0 announces"):
        Journal.open(path)
    assert path.read_bytes() == content


def test_missing_and_existing(tmp_path, path):
    with pytest.raises(StorageError, match="no such file"):
        Journal.open(tmp_path / "absent")
    with pytest.raises(StorageError, match="file exists"):
        Journal.create(path)
    assert list(read_frames(path)) == PAYLOADS


def test_two_writers(path):
    with Journal.open(path), pytest.raises(StorageError, match="another process is recording"):
        Journal.open(path)
    Journal.open(path).close()


def test_a_closed_journal_does_not_append(path):
    journal = Journal.open(path)
    journal.close()
    with pytest.raises(StorageError, match="not open for appending"):
        journal.append(b"late")


# --- rolling back -----------------------------------------------------------------------------------------------


def test_truncate_keeps_what_it_removes(path):
    with Journal.open(path) as journal:
        assert journal.truncate(5) is None
        first = journal.truncate(3)
        journal.append(b"another step")
        second = journal.truncate(3)
        assert list(journal) == PAYLOADS[:3]
        journal.append(b"yet another")
        with pytest.raises(UsageError, match="the journal has 4"):
            journal.truncate(5)
    assert first.name == "journal.removed-1"
    assert path.read_bytes() == encoded([*PAYLOADS[:3], b"yet another"])
    assert encoded(PAYLOADS[:3]) + first.read_bytes() == encoded(PAYLOADS)
    assert second.read_bytes() == journals.frame(3, b"another step")


def test_rescue_of_a_damaged_journal(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(encoded(PAYLOADS[:3])) + HEAD_SIZE] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match="frame 3"):
        Journal.rescue(path, 4)
    assert path.read_bytes() == damaged
    kept = Journal.rescue(path, 3)
    assert encoded(PAYLOADS[:3]) + kept.read_bytes() == damaged
    with Journal.open(path) as journal:
        assert list(journal) == PAYLOADS[:3]
    assert Journal.rescue(path, 3) is None


# --- disk full --------------------------------------------------------------------------------------------------


def test_a_write_that_stops_half_way_is_taken_back(path, monkeypatch):
    room = [10]

    def filling(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = real(descriptor, data[: room[0]])
        room[0] -= written
        return written

    real = os.write
    before = path.read_bytes()
    with Journal.open(path) as journal:
        monkeypatch.setattr(os, "write", filling)
        with pytest.raises(StorageError, match="disk full"):
            journal.append(b"a payload of more than ten bytes")
        assert path.read_bytes() == before
        monkeypatch.setattr(os, "write", real)
        assert journal.append(b"there is space again") == 5
        assert list(journal) == [*PAYLOADS, b"there is space again"]


def test_if_even_truncating_fails_the_next_append_does_it(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def half(descriptor: int, data: memoryview) -> int:
        monkeypatch.setattr(os, "write", full)
        return real(descriptor, data[:20])

    real = os.write
    with Journal.open(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "ftruncate", full)
            monkeypatch.setattr(os, "write", half)
            with pytest.raises(StorageError, match="disk full while writing"):
                journal.append(b"x" * 100)
        monkeypatch.setattr(os, "write", real)
        journal.append(b"short")
    with Journal.open(path) as journal:
        assert (list(journal), journal.torn) == ([*PAYLOADS, b"short"], 0)


def test_after_a_failed_fsync_nothing_is_called_durable(path, monkeypatch):
    def broken(_):
        raise OSError(5, "Input/output error")

    with Journal.open(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", broken)
            with pytest.raises(StorageError, match="syncing"):
                journal.sync()
        for attempt in (journal.sync, lambda: journal.append(b"more")):
            with pytest.raises(StorageError, match="did not reach the disk"):
                attempt()
