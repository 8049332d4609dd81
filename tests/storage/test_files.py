"""Atomic files and locks: whole or not at all, one writer, errors that name the file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polcommit.errors import StorageError
from polcommit.storage import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")
    files.write_atomic(path, iter([b"ne", bytearray(b"w"), memoryview(b"er")]))
    assert path.read_bytes() == b"newer"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_modes(tmp_path, mode):
    files.write_atomic(tmp_path / "file", b"", mode=mode)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_what_fails_half_way_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def breaks():
        yield b"new"
        raise StorageError("the source broke")

    with pytest.raises(StorageError, match="the source broke"):
        files.write_atomic(path, breaks())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_exist_ok_false_never_overwrites(tmp_path):
    path = tmp_path / "file"
    files.write_atomic(path, b"first", exist_ok=False)
    with pytest.raises(StorageError, match="exists already"):
        files.write_atomic(path, b"second", exist_ok=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_exist_ok_false_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_exist_ok_false_never_overwrites(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_disk_full_says_what_to_do(tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    files.write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"disk full while writing {path}") as caught:
        files.write_atomic(path, b"new")
    assert "free space and run the same command again" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_reading_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with pytest.raises(StorageError, match=str(tmp_path)):
            files.read(tmp_path / name, 10)


def test_a_file_larger_than_allowed_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(StorageError, match="11 bytes, more than the 10 allowed"):
        files.read(tmp_path / "file", 10)


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        files.write_atomic(tmp_path / "absent" / "file", b"")


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file exists"):
        files.make_folder(tmp_path / "file")
    with pytest.raises(StorageError, match="file exists"):
        files.make_folder(tmp_path / "file" / "below")


def test_sweep_removes_only_what_dead_processes_left(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for name in (f".tmp-{ended.pid}-a", ".tmp-foreign", f".tmp-{os.getpid()}-a", ".tmp-1-a", "file"):
        (tmp_path / name).write_bytes(b"half")
    assert files.sweep(tmp_path) == 2
    assert names(tmp_path) == sorted([".tmp-1-a", f".tmp-{os.getpid()}-a", "file"])


def test_two_writers(tmp_path):
    message = rf"another process \(process {os.getpid()}\) is recording in {tmp_path}"
    with files.lock(tmp_path), pytest.raises(StorageError, match=message), files.lock(tmp_path):
        pytest.fail("two at once")
    with files.lock(tmp_path):
        pass


LOCKS_AND_FORKS = """
import os, pathlib, sys, time
from polcommit.storage import files
with files.lock(pathlib.Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)      # a loader's worker, which outlives its parent
        time.sleep(60)
    time.sleep(60)
"""


def test_the_lock_dies_with_its_process_even_if_a_forked_worker_lives_on(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", LOCKS_AND_FORKS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(StorageError, match=f"process {process.pid}"), files.lock(tmp_path):
                pytest.fail("two at once")
            process.kill()
            process.wait()
            with files.lock(tmp_path):
                pass
        finally:
            process.kill()
            os.kill(worker, signal.SIGKILL)
