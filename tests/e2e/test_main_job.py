"""The main job: recorded through kill -9, anchored, challenged by strangers with keys of their own, accepted."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from world import Finished, Recording, Registered, World, at_home, flip, train

from polcommit.encoding import decode
from polcommit.records import StepRecord
from polcommit.session.status import damage
from polcommit.storage.journal import read_frames
from polcommit.storage.runfolder import RunFolder

#: What the JSON of a verdict has at least.
FIELDS = {
    "verdict", "basis", "registered", "draw", "run", "root", "size", "anchor", "steps", "detection", "challenges",
    "findings",
}  # fmt: skip


def final_state(path: Path) -> bytes:
    """The committed digest of the last state."""
    *_, last = read_frames(path / "journal", 1)
    return decode(last, StepRecord).state


def challenge(world: World, verifier: str, run: Registered, out: Path, *more: object) -> Finished:
    """By run id, from the verifier's own home; the prover is a command."""
    command = ("challenge", run.id.hex(), "--prover", world.respondent(run), "--json", "--out", out)
    return world.cli(verifier, *command, *more)


# --- digits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(world: World) -> Registered:
    """300 steps with two loader workers, killed right after the start and between kept states, and resumed."""
    run = world.runs["main"]
    moments = random.Random()       # another pair of moments each time; what comes out must not depend on them
    first, second = moments.randint(1, 4), moments.randint(101, 149)
    left = Recording(world, run, 2).kill_at(first)
    assert not list(damage(run.folder)), f"killed at step {first}"
    further = Recording(world, run, 2).kill_at(second)
    assert not list(damage(run.folder)), f"killed at step {second}"
    steps = Recording(world, run, 2).finish()
    whole = run.folder.journal_path.read_bytes()
    assert steps[-1] == 300 and steps[0] >= 100
    for journal in (left, further):     # but for a last frame that was cut off, nothing is ever rewritten
        common = next((at for at, (a, b) in enumerate(zip(whole, journal, strict=False)) if a != b), len(journal))
        assert len(journal) - common < 400, f"killed at steps {first} and {second}"
    return run


@pytest.fixture(scope="module")
def anchored(world: World, recorded: Registered) -> Registered:
    done = world.cli(recorded.prover, "anchor", recorded.path, "--json").require(0)
    assert done.json["sent"] and done.json["final"] and done.json["steps"] == 300
    return recorded


@pytest.fixture(scope="module")
def evidence(world: World, anchored: Registered) -> Path:
    """Twenty random steps, challenged by vera, who knows nothing but the run's id and how to reach the prover."""
    out = world.root / "main.polcommit"
    done = challenge(world, "vera", anchored, out, "--count", 20, "--with-openings").require(0)
    found = done.json
    assert found["verdict"] == "accepted" and found["basis"] == "bit-exact" and found["draw"] == "ledger"
    assert found["registered"] is True and found["findings"] == [] and found["challenges"] == []
    assert found.keys() >= FIELDS
    assert found["anchor"].keys() >= {"chain id", "contract", "block", "transaction", "time"}
    assert len(found["steps"]) == 20 and found["steps"] == sorted(set(found["steps"]))
    assert sorted(found["reexecuted"]) == sorted(found["steps"] + found["added"]) and len(found["added"]) <= 3
    assert found["detection"]["fraction"] == 0.05 and 0.6 < found["detection"]["probability"] < 0.7
    assert (found["run"], found["size"]) == (anchored.id.hex(), 301)
    passed = {name for name, outcome in found["checks"].items() if outcome == "passed"}
    assert passed - {"V11"} == {f"V{n}" for n in (*range(1, 11), 12)}
    assert found["work"] == {"steps": 300, "samples": 19200, "flops": found["work"]["flops"]} and found["work"]["flops"]
    return out


def test_a_run_killed_twice_and_resumed_is_accepted_bit_for_bit(evidence: Path) -> None:
    assert evidence.stat().st_size > 100_000    # states and samples are in it


def test_the_verifier_keeps_its_own_things_and_reads_none_of_the_provers(
    world: World, anchored: Registered, evidence: Path
) -> None:
    names = {path.name for path in world.home("vera").iterdir()}
    assert names == {"keys", "policy.toml", "challenges"}
    assert anchored.folder.receipts()[0].verdict.verdict == "accepted"


def test_a_third_party_takes_the_word_of_a_verifier_that_it_trusts(world: World, evidence: Path) -> None:
    reader = world.reader("trusting", trusted=["vera"])
    found = world.cli(reader, "verify", evidence, "--json").require(0).json
    assert found["verdict"] == "accepted" and found["basis"] == "bit-exact"
    assert {found["checks"][f"V{n}"] for n in range(1, 8)} == {"checked here"}
    assert {found["checks"][f"V{n}"] for n in range(8, 11)} == {"word of the verifier"}


@pytest.mark.parametrize(("name", "options", "said"), [
    ("trusting nobody", {}, "whom the policy does not trust"),
    ("trusting another", {"trusted": ["victor"]}, "whom the policy does not trust"),
    ("without a chain", {"trusted": ["vera"], "rpc": "http://127.0.0.1:9"}, "cannot reach"),
])  # fmt: skip
def test_a_third_party_that_cannot_check_says_so(
    world: World, evidence: Path, name: str, options: dict[str, object], said: str
) -> None:
    done = world.cli(world.reader(name, **options), "verify", evidence).require(3)  # type: ignore[arg-type]
    assert said in done.stderr and "hint: " in done.stderr and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 2


def test_a_tampered_bundle_is_rejected(world: World, evidence: Path, tmp_path: Path) -> None:
    reader = world.reader("trusting", trusted=["vera"])
    for position in (300, evidence.stat().st_size - 1):
        changed = tmp_path / "changed"
        shutil.copy(evidence, changed)
        flip(changed, position)
        found = world.cli(reader, "verify", changed, "--json").require(1).json
        assert found["verdict"] == "rejected" and found["findings"][0]["step"] == "V1"


def test_whoever_has_the_openings_can_re_execute_for_themselves(world: World, evidence: Path) -> None:
    """Nobody's word is needed then."""
    reader = world.reader("trusting nobody")
    found = world.cli(reader, "verify", evidence, "--replay", "--json").require(0).json
    assert found["verdict"] == "accepted"
    assert {found["checks"][f"V{n}"] for n in (*range(1, 11), 12)} == {"checked here"}


def test_another_number_of_threads_is_accepted_within_tolerance(
    world: World, anchored: Registered, evidence: Path, tmp_path: Path
) -> None:
    """Over one pipe: the answer, which digests do not settle, and the follow-up with gradients; a shipped profile."""
    done = challenge(world, "vera", anchored, tmp_path / "out", "--count", 20, "--threads", 1).require(0)
    found = done.json
    assert (found["verdict"], found["basis"], found["reexecuted"]) == ("accepted", "within-tolerance", [])
    assert sorted(found["tolerated"]) == sorted(found["steps"] + found["added"]) and len(found["profiles"]) == 1
    assert found["detection"]["probability"] > 0.6 and 0 <= found["reach"] < 1
    assert "it was recorded in another environment" in done.stderr
    reader = world.reader("trusting", trusted=["vera"])
    assert world.cli(reader, "verify", tmp_path / "out", "--json").require(0).json["basis"] == "within-tolerance"
    strict = world.reader("exacting", trusted=["vera"], demand="[tolerance]\naccept = false\n")
    assert world.cli(strict, "verify", tmp_path / "out", "--json").require(3).json["verdict"] == "inconclusive"


# --- any number of workers ----------------------------------------------------------------------------------------


def test_workers_and_interruptions_do_not_change_a_bit(world: World, tmp_path: Path) -> None:
    """The same registration, recorded at one go; killed and resumed with 0 workers; and with 3."""
    pristine = world.runs["epochs"].pristine
    ways = {}
    for name in ("whole", "none", "three"):
        shutil.copytree(pristine, tmp_path / name)
        ways[name] = Registered(name, "bob", tmp_path / name, pristine, b"")
    with at_home(world.home("bob")):
        train(ways["whole"].path)
        for name in ("none", "three"):
            train(ways[name].path, die_in=7)
        train(ways["none"].path)
    assert Recording(world, ways["three"], 3).finish() == [7, 8, 9, 10, 11, 12]
    assert len({final_state(way.path) for way in ways.values()}) == 1
    assert len({(way.path / "journal").read_bytes() for way in ways.values()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment(world: World, tmp_path: Path, seed: int) -> None:
    """SIGKILL after a random time, whatever it was doing; again and again until it is through."""
    pristine = world.runs["main"].pristine
    shutil.copytree(pristine, tmp_path / "run")
    run = Registered("run", "alice", tmp_path / "run", pristine, b"")
    moments = random.Random(seed)
    for _ in range(4):
        recording = Recording(world, run, 2)
        try:
            recording.process.wait(moments.uniform(1.0, 12.0))
        except subprocess.TimeoutExpired:
            recording.kill()
        else:
            recording.finish()
        assert not list(damage(RunFolder.open(run.path)))
    Recording(world, run, 2).finish()
    assert len(list(read_frames(run.path / "journal"))) == 301


# --- gpt ----------------------------------------------------------------------------------------------------------


def test_gpt_in_two_heads_is_accepted(world: World, tmp_path: Path) -> None:
    """Accumulation, clipping, dropout, bfloat16, a schedule; anchored half-way, off a kept state, and at the end."""
    run = world.runs["gpt"]
    Recording(world, run, 0).kill_at(random.Random().randint(2, 7))
    assert Recording(world, run, 2, last=12).finish()[-1] == 12
    first = world.cli(run.prover, "anchor", run.path, "--json").require(0).json
    assert (first["sequence"], first["steps"], first["final"]) == (1, 12, False)
    Recording(world, run, 3).kill_at(random.Random().randint(14, 22))
    assert Recording(world, run, 0).finish()[-1] == 24
    second = world.cli(run.prover, "anchor", run.path, "--json").require(0).json
    assert (second["sequence"], second["steps"], second["final"]) == (2, 24, True)
    records = [decode(frame, StepRecord) for frame in read_frames(run.folder.journal_path, 1)]
    assert any(record.clipped for record in records) and not any(record.skipped for record in records)

    out = tmp_path / "gpt.polcommit"
    found = challenge(world, "victor", run, out, "--count", 8).require(0).json
    assert (found["verdict"], found["basis"], found["sequence"]) == ("accepted", "bit-exact", 2)
    assert found["sketched"] == 4       # of steps 0, 8, 12, 16 and 24 the last and three others
    reader = world.reader("trusting victor", trusted=["victor"])
    assert world.cli(reader, "verify", out, "--json").require(0).json["verdict"] == "accepted"
    assert world.cli(world.reader("trusting vera", trusted=["vera"]), "verify", out).require(3)
