"""Re-executed in other environments than the prover's, with the profiles that ship: by real processes, end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from world import Registered, World, train

from polcommit.encoding import digest
from polcommit.errors import ProverUnavailable
from polcommit.session import noise
from polcommit.session.answer import Options, verify_answer
from polcommit.session.challenge import Ask
from polcommit.session.environments import EnvironmentSettings, has_capability
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import fingerprint

#: The last changes all three at once; each by itself is for the slow run (and one thread, too, `test_main_job`).
OTHERS = (
    pytest.param("threads=1", marks=pytest.mark.slow),
    pytest.param("onednn=off", marks=pytest.mark.slow),
    pytest.param("capability=avx2", marks=pytest.mark.slow),
    "threads=1,onednn=off,capability=default",
)
DRAWN = 10


@pytest.fixture(scope="module", params=["digits-elsewhere", "gpt-elsewhere"])
def run(request: pytest.FixtureRequest, world: World) -> Registered:
    """Trained and anchored in this process, on two threads, by honest people."""
    return anchored(world, request.param)


def anchored(world: World, name: str) -> Registered:
    found = world.runs[name]
    if not found.folder.anchors.sequences():
        train(found.path)
        world.anchor(found)
    return found


@pytest.mark.parametrize("settings", OTHERS)
def test_an_honest_run_is_accepted_within_tolerance(
    world: World, run: Registered, tmp_path: Path, settings: str
) -> None:
    wanted = EnvironmentSettings.parse(settings)
    if wanted.capability is not None and not has_capability(wanted.capability):
        pytest.skip(f"this processor has no {wanted.capability}")
    options = Options(settings=wanted, profiles=noise.shipped())
    vera = world.verifier("vera")
    asked = world.announce(vera, "vera", run.id, Ask(count=DRAWN, gradients=True))
    verdict = world.settle(run, vera, asked, tmp_path / "evidence", options=options).verdict
    assert [(found.check, found.what, found.found) for found in verdict.findings] == []
    if verdict.environment == elsewhere(run):
        pytest.skip(f"{settings} is the environment that the run was recorded in")
    assert (verdict.verdict, verdict.basis) == ("accepted", "within-tolerance")
    assert set(verdict.tolerated) >= set(verdict.steps) and len(verdict.steps) == DRAWN and not verdict.reexecuted
    assert all(distance.value <= distance.tolerance for distance in verdict.distances)


def elsewhere(run: Registered) -> bytes:
    """The digest of the environment that the run was recorded in."""
    (epoch,) = RunFolder.open(run.path).environments()
    assert epoch.fingerprint == fingerprint("cpu")
    return digest(epoch.fingerprint)


def test_without_a_profile_it_is_inconclusive_and_says_why(world: World, tmp_path: Path) -> None:
    run = anchored(world, "digits-elsewhere")
    vera = world.verifier("vera")
    asked = world.announce(vera, "vera", run.id, Ask(count=3))
    options = Options(settings=EnvironmentSettings.parse("onednn=off"))
    verdict = world.settle(run, vera, asked, tmp_path / "evidence", options=options).verdict
    assert (verdict.verdict, verdict.basis, verdict.reexecuted, verdict.tolerated) == ("inconclusive", "none", (), ())
    (finding,) = verdict.findings
    assert finding.check == "V10" and "onednn=yes" in finding.expected and "onednn=no" in finding.found
    assert len(verdict.distances) == len(verdict.steps) + len(verdict.added) and verdict.probability == 0


@pytest.mark.parametrize("asked", [True, False])
def test_an_answer_to_the_other_request_is_no_answer(world: World, tmp_path: Path, asked: bool) -> None:
    """The first opening where the follow-up is waited for, or the other way round: the challenge stays open."""
    run = anchored(world, "digits-elsewhere")
    vera = world.verifier("vera")
    folder, challenge = world.announce(vera, "vera", run.id, Ask(count=2, gradients=asked))
    other = world.opening(run, replace(challenge, gradients=not asked), tmp_path / "opening")
    with other.open("rb") as file, pytest.raises(ProverUnavailable, match=r"with(out)? gradients, and"):
        verify_answer(vera, folder, challenge, file, tmp_path / "evidence", Options())
    assert folder.receipt is None and not (tmp_path / "evidence").exists()
    assert world.settle(run, vera, (folder, challenge), tmp_path / "evidence").verdict.verdict == "accepted"


# --- other strategies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["mixed", "top-q"])
def test_steps_that_follow_from_the_sketches(world: World, tmp_path: Path, strategy: str) -> None:
    """By command, in the environment that the run was recorded in: only random steps count for detection."""
    found = anchored(world, "digits-elsewhere")
    command = ("challenge", found.id.hex(), "--prover", world.respondent(found), "--json", "--out", tmp_path / "out")
    result = world.cli("vera", *command, "--steps", strategy, "--count", 3).require(0).json
    assert (result["verdict"], result["basis"]) == ("accepted", "bit-exact")
    assert set(result["reexecuted"]) == {*result["steps"], *result["added"]}
    if strategy == "mixed":
        assert len(result["steps"]) == 3 and {1, 24} <= {*result["steps"], *result["added"]}
        assert 0 < result["detection"]["probability"] < 0.3
    else:
        assert result["steps"] == [] and result["added"] and result["detection"]["probability"] == 0
