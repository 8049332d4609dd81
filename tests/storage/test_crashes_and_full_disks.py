"""Real processes: killed at any moment, or out of space, they lose nothing that was reported as stored."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polcommit.storage.journal import Journal
from polcommit.storage.states import StateStore
from polcommit.storage.tensors import TensorStore

KILLED_WRITER = """
import hashlib, sys
from pathlib import Path
from polcommit.storage.journal import Journal
with Journal.open(Path(sys.argv[1])) as journal:
    while True:
        payload = hashlib.sha256(b"%d" % len(journal)).digest() * (1 + len(journal) % 2000)
        number = journal.append(payload)
        if number % 7 == 0:
            journal.sync()
            print(number, flush=True)
"""


def test_kill_9_at_random_moments_loses_nothing_synced(tmp_path):
    """Also after earlier kills, on the journal that they left."""
    path = tmp_path / "journal"
    Journal.create(path).close()
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            time.sleep(secrets.randbelow(50) / 1000)
            process.kill()
            reported = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        with Journal.open(path) as journal:
            assert len(journal) > max(reported, default=0)
            for number, payload in enumerate(journal):
                assert payload == hashlib.sha256(b"%d" % number).digest() * (1 + number % 2000)


STATE_WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from polcommit.storage.states import StateStore
from polcommit.storage.tensors import TensorStore
from stored_samples import state
root = Path(sys.argv[1])
states = StateStore(root / "states", TensorStore(root / "tensors"))
step = max(states.steps(), default=-1) + 1
while True:
    states.put(step, *state(**{f"t{n}": b"%d %d" % (n, step // (n + 1)) * 1000 for n in range(6)}))
    print(step, flush=True)
    step += 1
"""


def test_kill_9_leaves_whole_states_and_no_others(tmp_path):
    states = StateStore(tmp_path / "states", TensorStore(tmp_path / "tensors"))
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", STATE_WRITER, str(tmp_path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            process.stdout.readline()
            time.sleep(secrets.randbelow(50) / 1000)
            process.kill()
            reported = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        assert states.latest(1 << 40) >= max(reported, default=0)
        for step in states.steps():
            states.check(step)
        states.collect()
        assert not list(tmp_path.glob("tensors/*/.tmp-*"))


FULL_DISK = """
import errno, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from polcommit.errors import StorageError
from polcommit.storage import files
from polcommit.storage.journal import Journal
from polcommit.storage.states import StateStore
from polcommit.storage.tensors import TensorStore
from stored_samples import state

root, limit = Path(sys.argv[1]), int(sys.argv[2])
ballast = root / "ballast"

def make_space():
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        ballast.unlink()

def full(doing, work):
    try:
        while True:
            work()
    except StorageError as error:
        assert "disk full while writing" in error.message, error.message
        assert "free space and run the same command again" in error.hint
        assert str(root) in error.message
    else:
        raise SystemExit(f"{doing}: the disk is not full")

ballast.write_bytes(bytes(100_000))
files.write_atomic(root / "kept", b"old")
states = StateStore(root / "states", TensorStore(root / "tensors"))
states.put(0, *state(a=b"small"))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
with Journal.create(root / "journal") as journal:
    def work():
        journal.append(b"%d " % len(journal) * 300)
        journal.sync()
    full("append", work)
    frames, size = len(journal), (root / "journal").stat().st_size
    full("append once more", lambda: journal.append(bytes(200_000)))
    assert (root / "journal").stat().st_size == size
    full("replace", lambda: files.write_atomic(root / "kept", bytes(600_000)))
    full("keep a state", lambda: states.put(1, *state(a=b"small", b=bytes(600_000))))
    assert (root / "kept").read_bytes() == b"old"
    assert states.steps() == (0,)
    states.check(0)
    assert not list(root.rglob(".tmp-*"))
    make_space()
    journal.append(b"there is space again")
    journal.sync()
    states.put(1, *state(a=b"small", b=bytes(50_000)))
    states.check(1)
with Journal.open(root / "journal") as journal:
    assert journal.torn == 0 and len(journal) == frames + 1
    expected = [b"%d " % n * 300 for n in range(frames)] + [b"there is space again"]
    assert list(journal) == expected
print("survived", frames)
"""


@pytest.fixture
def tmpfs(tmp_path) -> Iterator[Path]:
    """A file system of half a megabyte, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no 'mount' on this machine: a full disk is tested by RLIMIT_FSIZE alone")
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs ({mounted.stderr.strip()}): RLIMIT_FSIZE alone is tested")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, limit: int) -> None:
    script = [sys.executable, "-c", FULL_DISK, str(folder), str(limit), str(Path(__file__).parent)]
    finished = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("survived")
    assert int(finished.stdout.split()[1]) > 50


def test_a_full_tmpfs(tmpfs):
    fill(tmpfs, 0)


def test_a_file_size_limit(tmp_path):
    fill(tmp_path, 200_000)
