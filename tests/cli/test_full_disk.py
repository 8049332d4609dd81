"""A disk that is full: one line, nothing lost, and the same command finishes once there is room.

By RLIMIT_FSIZE, which no file of the command and its children may outgrow, and on a small tmpfs where this process
may mount one. The chain's own process is not limited: what fails is what the commands write.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STEPS, World, new_keys, register
from shell import Result, assert_one_line, ok, polcommit

from polcommit.ledger.devnet import CONTRACT
from polcommit.ledger.registry import Registry

#: The last where not even a few bytes of a temporary file can be written.
FULL = re.compile("disk full|file too large|no usable temporary directory")
LIMIT = (
    "import os, resource, sys; size = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def limited(world: World, size: int, *words: object, **options: Any) -> Result:
    """Run a command none of whose files may have more than `size` bytes, compiled modules of Python's included."""
    env = {**options.pop("env", {}), "PYTHONDONTWRITEBYTECODE": "1"}
    return world(*words, wrap=(sys.executable, "-c", LIMIT, str(size)), env=env, **options)


def until_it_works(world: World, sizes: tuple[int, ...], *words: object, **options: Any) -> Result:
    """Run a command with each limit, rising: each failure is one line. Then without any, and it succeeds."""
    failures = 0
    for size in sizes:
        result = limited(world, size, *words, **options)
        if result.status == 0:
            break
        assert_one_line(result, 3)
        assert FULL.search(result.err), str(result)
        failures += 1
    assert failures, "no limit was low enough to fail"
    return ok(world(*words, **options))


def test_every_step_finishes_once_there_is_room(world: World, elsewhere: dict[str, Any], tmp_path: Path) -> None:
    run, out, opening, request = (tmp_path / name for name in ("run", "evidence", "opening", "request"))
    words = ("register", run, "--recipe", "digits", "--steps", STEPS, "--keep", 4, "--json")
    done = json.loads(until_it_works(world, (50_000,), *words, **elsewhere).out)
    registry, number = Registry.connect(world.rpc, CONTRACT), bytes.fromhex(done["run"])
    assert registry.registration(number) is not None
    found = json.loads(ok(world("status", run, "--check", "--json")).out)
    assert (found["run"], found["steps"], found["damage"]) == (done["run"], 0, [])

    until_it_works(world, (3_000,), "record", run, "--self-check", "off", **elsewhere)
    found = json.loads(ok(world("status", run, "--check", "--json")).out)
    assert (found["steps"], found["damage"]) == (STEPS, [])

    until_it_works(world, (500,), "anchor", run, **elsewhere)
    assert len(registry.anchors(number)) == 1

    ask = ("challenge", done["run"], "--count", 2, "--request", request)
    until_it_works(world, (100,), *ask, **elsewhere)
    until_it_works(world, (4_000,), "respond", run, "--request", request, "--out", opening, **elsewhere)
    ok(world("status", run, "--check"))
    finish = ("challenge", done["run"], "--opening", opening, "--out", out, "--json")
    assert json.loads(until_it_works(world, (7_000,), *finish, **elsewhere).out)["verdict"] == "accepted"
    assert len(registry.challenges(number)) == 1
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_challenge_whose_evidence_did_not_fit_is_resumed(world: World, tmp_path: Path) -> None:
    """The draw is kept; what was paid for is not paid for again."""
    run, folder = world.copy(tmp_path), tmp_path / "out"
    registry = Registry.connect(world.rpc, CONTRACT)
    number = len(registry.challenges(bytes.fromhex(world.id))) + 1
    result = limited(world, 2_000, "challenge", run, "--steps", 1)      # too little for the devnet's dump
    assert_one_line(result, 3, "state.json.gz")
    assert len(registry.challenges(bytes.fromhex(world.id))) == number - 1      # nothing was sent
    folder.mkdir()
    answer = f"{sys.executable} -m polcommit.cli.main respond --stdio {run}"
    gone = ("--prover", f"sh -c 'rmdir {folder}; exec {answer}'", "--out", folder / "evidence")
    result = world("challenge", run, "--steps", 1, *gone)
    assert_one_line(result, 3, str(folder / "evidence"))
    assert f"--resume {number}" in result.err, str(result)
    out = tmp_path / "evidence"
    finished = world("challenge", run, "--resume", number, "--out", out, "--json")
    # challenge 2 of this world stays unanswered, which is no matter of disks
    assert json.loads(finished.out)["challenge"]["id"] == number and finished.status in (0, 3), str(finished)
    assert out.exists()
    assert len(registry.challenges(bytes.fromhex(world.id))) == number
    assert_one_line(world("challenge", run, "--resume", number, "--out", out), 2, "has its verdict")


def test_what_only_reads_needs_no_room(world: World) -> None:
    reading = ("status", world.run, "--check"), ("inspect", world.evidence), ("keys", "list"), ("devnet", "status")
    for words in reading:
        ok(limited(world, 0, *words))


def test_verify_that_has_no_room_for_the_contents(world: World) -> None:
    until_it_works(world, (0, 100), "verify", world.evidence, "--policy", world.policy)


def test_keys_and_devnet(world: World, tmp_path: Path) -> None:
    words = ("keys", "new", "x", "--role", "verifier", "--no-passphrase")
    until_it_works(world, (0, 100, 300), *words, home=tmp_path)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["x"]
    before = (world.home / "devnet" / "state.json.gz").stat().st_size
    assert before > 1000
    assert_one_line(limited(world, 1000, "devnet", "fund", "0x" + "77" * 20), 3)
    assert (world.home / "devnet" / "state.json.gz").stat().st_size > 1000
    ok(world("devnet", "fund", "0x" + "77" * 20))


# --- a real file system ----------------------------------------------------------------------------------------


def mount(*words: object) -> bool:
    command = shutil.which("mount")
    return command is not None and subprocess.run(
        [command, *map(str, words)], capture_output=True, check=False
    ).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", folder):
        pytest.skip("this process may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_small_disk(world: World, small: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    new_keys(home)
    policy = {"POLCOMMIT_POLICY": str(world.policy)}
    for name in ("alice", "vera"):
        account = json.loads((home / "keys" / name / "public.json").read_text())["account"]
        ok(world("devnet", "fund", account))
    run = small / "run"
    filler = small / "filler"
    filler.write_bytes(bytes(150_000))
    assert_one_line(register(home, run, env=policy), 3, "disk full")
    filler.unlink()
    ok(register(home, run, env=policy))
    record = polcommit("record", run, home=home, env=policy)
    assert_one_line(record, 3, "disk full")
    assert "free space" in record.err
    steps = json.loads(ok(polcommit("status", run, "--json", home=home)).out)["steps"]
    assert mount("-o", "remount,size=64m", small)
    ok(polcommit("record", run, home=home, env=policy))
    found = json.loads(ok(polcommit("status", run, "--check", "--json", home=home)).out)
    assert steps < found["steps"] == STEPS
    assert found["damage"] == []
    ok(polcommit("anchor", run, home=home, env=policy))
