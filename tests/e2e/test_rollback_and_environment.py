"""What stops a recording: another environment, damaged states, a recipe that does not repeat itself, changed data."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unsteady import Unsteady
from world import PYTHON, Ask, Registered, World, at_home, train

from polcommit.encoding import decode
from polcommit.errors import Contradiction, DataChanged, NotReproducible, StorageError
from polcommit.recipes.digits import Digits
from polcommit.records import StepRecord
from polcommit.session.anchor import anchor
from polcommit.session.record import record
from polcommit.session.status import damage
from polcommit.storage.journal import read_frames
from polcommit.storage.runfolder import RunFolder


def copied(run: Registered, folder: Path) -> Path:
    """The run as it was when it had just been registered."""
    shutil.copytree(run.pristine, folder)
    return folder


def steps(path: Path) -> list[StepRecord]:
    return [decode(frame, StepRecord) for frame in read_frames(path / "journal", 1)]


# --- another environment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epochs(world: World) -> Registered:
    """Begun on this process's threads, and, after `--rollback`, finished on another number of them."""
    run = world.runs["epochs"]
    with at_home(world.home("bob")):
        train(run.path, die_in=7, self_check="before-anchor")
    assert run.folder.checks.pending() == (1, 2, 3)
    before = run.folder.journal_path.read_bytes()
    other = other_threads()
    refused = world.cli("bob", "record", run.path, **other).require(3)
    assert "the environment changed (threads was" in refused.stderr and "--rollback" in refused.stderr
    assert len(refused.stderr.splitlines()) == 2
    assert run.folder.journal_path.read_bytes() == before       # nothing was lost by trying
    finished = world.cli("bob", "record", run.path, "--rollback", "--json", **other).require(0)
    assert finished.json["steps"] == 12 and "goes on after step 4" in finished.stderr
    return run


def other_threads() -> dict[str, str]:
    number = "1" if torch.get_num_threads() > 1 else "2"
    return {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number}


def test_a_rollback_goes_to_the_kept_state_and_begins_an_epoch(epochs: Registered) -> None:
    folder = epochs.folder
    assert [epoch.first for epoch in folder.environments()] == [1, 5]
    assert [record.environment for record in steps(epochs.path)] == [0] * 4 + [1] * 8
    assert folder.states.steps() == (0, 1, 2, 4, 8, 12)     # 1 and 2 wait for their self-checks
    assert len(list(epochs.path.glob("journal.removed-*"))) == 1     # what was dropped is still to be had
    assert not list(damage(folder))


def test_a_run_of_two_environments_is_settled_in_neither(world: World, epochs: Registered, tmp_path: Path) -> None:
    """It can be answered for, each step on as many threads as it had; but bits of another environment say nothing."""
    world.anchor(epochs)        # which re-executes what was queued, each step in its own environment
    assert {1, 2, 3} <= {*epochs.folder.checks.done()} and not epochs.folder.checks.pending()
    assert epochs.folder.states.steps() == (0, 4, 8, 12)
    vera = world.verifier("vera")
    asked = world.announce(vera, "vera", epochs.id, Ask(strategy="list", steps=(3, 10)))
    verdict = world.settle(epochs, vera, asked, tmp_path / "evidence").verdict
    assert (verdict.verdict, verdict.basis, verdict.reexecuted) == ("inconclusive", "none", (10,))
    (finding,) = verdict.findings
    assert finding.check == "V10" and "threads=" in finding.expected and "threads=" in finding.found
    assert dict(verdict.checks)["V8"] == "passed"


def test_an_epoch_without_a_step_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    """Opened in another environment at a kept state, which needs no rollback, and left again before the first step."""
    run = world.runs["epochs"]
    path = copied(run, tmp_path / "run")
    train(path, die_in=5)
    command = [PYTHON, "-c", "import sys, polcommit; polcommit.record(sys.argv[1])", str(path)]
    subprocess.run(command, env=world.environment("bob", **other_threads()), check=True, timeout=120)
    assert [epoch.first for epoch in RunFolder.open(path).environments()] == [1, 5]
    assert train(path) == 12
    folder = RunFolder.open(path)
    first, *more = folder.environments()
    assert all(epoch.fingerprint == first.fingerprint for epoch in more) and not list(damage(folder))


def test_what_an_anchor_covers_is_never_rolled_back(world: World, small: Registered, tmp_path: Path) -> None:
    """Anchored after step 6; a tail that does not reproduce reaches back to the state kept at 4."""
    path = tmp_path / "run"
    shutil.copytree(world.root / "half", path)
    (path / "states" / "6.state").unlink()
    (path / "states" / "8.state").unlink()
    before = (path / "journal").read_bytes()
    done = world.cli("bob", "record", path, "--rollback", **other_threads()).require(3)
    assert "step 6 is anchored and cannot be rolled back" in done.stderr
    assert (path / "journal").read_bytes() == before and not list(path.glob("journal.removed-*"))


# --- what does not reproduce --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["beside", "before-anchor"])
def test_a_recipe_that_does_not_repeat_itself_is_found_before_the_anchor(
    world: World, tmp_path: Path, mode: str
) -> None:
    """By re-executing some steps in a second process; the first tensor that differs is named."""
    run = world.runs["unsteady"]
    path = copied(run, tmp_path / "run")
    rows = shutil.copy(world.root / "rows.txt", tmp_path / "rows.txt")
    recipe = Unsteady(rows=rows)
    folder = RunFolder.open(path)
    folder.write_settings(replace(folder.settings, data=str(rows)))
    (tmp_path / "rows.unsteady").touch()
    with pytest.raises(NotReproducible, match=r"step 1 does not reproduce: .*") as found:
        with record(path, recipe, self_check="beside" if mode == "beside" else "before-anchor") as recorded:
            for batch in recorded:
                recorded.step(batch)
        assert mode == "before-anchor", "training should have been told"
        anchor(folder, world.connection("bob"), world.signing("bob"), world.account("bob"))
    assert re.search(r": tensor optimizer/(first|second)\.(bias|weight)/momentum_buffer$", found.value.message)
    assert found.value.hint is not None
    assert not folder.anchors.sequences() and not world.connection("bob").ledger.anchors(run.id)


def test_a_tail_that_does_not_reproduce_is_refused_and_can_be_dropped(world: World, tmp_path: Path) -> None:
    """Steady up to the kept state of step 4, unsteady after it: a resume re-executes 5, and says what differs."""
    path = copied(world.runs["unsteady"], tmp_path / "run")
    rows = shutil.copy(world.root / "rows.txt", tmp_path / "rows.txt")
    folder = RunFolder.open(path)
    folder.write_settings(replace(folder.settings, data=str(rows)))

    def unsteady_from_five(state: object, step: int) -> None:
        if step == 4:
            (tmp_path / "rows.unsteady").touch()

    train(path, die_in=7, poke=unsteady_from_five)
    (tmp_path / "rows.unsteady").unlink()
    before = (path / "journal").read_bytes()
    with pytest.raises(NotReproducible, match=r"step 5 does not reproduce: .*state.* differ") as found:
        train(path)
    assert "--rollback" in str(found.value.hint) and (path / "journal").read_bytes() == before
    assert train(path, rollback=True) == 8
    assert (path / "journal").read_bytes().startswith(before[:100]) and not list(damage(RunFolder.open(path)))


def test_a_damaged_kept_state_is_found_when_it_is_used(world: World, tmp_path: Path) -> None:
    path = copied(world.runs["small"], tmp_path / "run")
    train(path, die_in=7)
    folder = RunFolder.open(path)
    entry = next(e for e in folder.states.get(4).tensors if e.name.endswith("momentum_buffer"))
    tensor = folder.tensors.path(entry)
    data = bytearray(tensor.read_bytes())
    data[-1] ^= 1
    tensor.write_bytes(data)
    with pytest.raises(StorageError, match="content does not match its digest"):
        train(path)
    assert any(line.startswith("state 4: ") for line in damage(folder))


# --- what contradicts the registration ----------------------------------------------------------------------------


def test_data_that_changed_after_registration_stops_the_run(world: World, tmp_path: Path) -> None:
    """Whichever way it changed; what was recorded stays, and goes on once the data is as it was."""
    path = copied(world.runs["unsteady"], tmp_path / "run")
    rows = tmp_path / "rows.txt"
    shutil.copy(world.root / "rows.txt", rows)
    good = rows.read_text()
    folder = RunFolder.open(path)
    folder.write_settings(replace(folder.settings, data=str(rows)))
    train(path, die_in=6)
    before = (path / "journal").read_bytes()
    lines = good.splitlines()
    changes: dict[str, Callable[[], str]] = {
        "is not the sample that was registered": lambda: "\n".join([line.replace("1", "2") for line in lines]),
        "has 39 samples, 40 were registered": lambda: "\n".join(lines[:-1]),
    }
    for said, change in changes.items():
        rows.write_text(change())
        done = world.cli("bob", "record", path).require(3)
        assert said in done.stderr and "hint: restore the data set" in done.stderr
        assert (path / "journal").read_bytes() == before
        with pytest.raises(DataChanged):
            train(path)
    rows.write_text(good)
    assert train(path) == 8
    assert (path / "journal").read_bytes().startswith(before)


def test_what_contradicts_the_manifest_is_refused(world: World, tmp_path: Path) -> None:
    path = copied(world.runs["small"], tmp_path / "run")
    for recipe, what in (
        (Digits(steps=12, batch=4, width=4, peak=0.1), "'peak' is '0.1', but the run was registered with '0.05'"),
        (Digits(steps=13, batch=4, width=4), "'steps' is '13'"),
        (Unsteady(steps=12), "the recipe is 'unsteady:Unsteady', but the run was registered with 'digits'"),
    ):
        with pytest.raises(Contradiction) as found:
            record(path, recipe)
        assert what in found.value.message and found.value.exit_status == 2
    assert (path / "journal").stat().st_size == 0


def test_settings_that_contradict_the_manifest_are_refused(world: World, tmp_path: Path) -> None:
    path = copied(world.runs["small"], tmp_path / "run")
    settings = path / "settings.json"
    settings.write_text(settings.read_text().replace('"0.05"', '"0.06"'))
    done = world.cli("bob", "record", path).require(3)
    assert "settings.json" in done.stderr and "does not hold the registered" in done.stderr
