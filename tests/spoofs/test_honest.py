"""Honest runs: a few, through the whole experiment; and what it makes of one that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polcommit.errors import Unavailable
from polcommit.session.calibrate import ReferenceRun
from polcommit.session.environments import EnvironmentSettings
from polcommit.spoofs.measure import honest
from polcommit.spoofs.measure.honest import Bench, Planned, exact, planned, profile_of, resumed, within_tolerance
from polcommit.spoofs.measure.honest_jobs import run_jobs
from polcommit.spoofs.measure.honest_page import section
from polcommit.spoofs.measure.honest_runs import VariedDigits
from polcommit.spoofs.measure.honest_verdicts import verdicts

OTHER = "threads=1,onednn=off"


def plan(number: int, *, calibration: bool) -> Planned:
    recipe = VariedDigits(steps=12, batch=8, width=4)
    return Planned(kind="digits momentum", schedule="cosine", number=number, recipe=recipe, calibration=calibration)


def test_an_honest_run_is_accepted_and_a_changed_one_is_not(tmp_path: Path) -> None:
    runs = [plan(0, calibration=True), plan(1, calibration=True), plan(0, calibration=False)]
    bench = Bench(tmp_path, runs)
    trained = bench.train()
    here, there = bench.replay(trained, honest.HERE), bench.replay(trained, OTHER)
    profile = profile_of("digits momentum", list(zip(trained[:2], there[:2], strict=True)))
    judged, report = trained[2], there[2]
    assert exact(judged, here[2]) is None
    found = within_tolerance(judged, report, [profile])
    assert found["why"] is None and not found["equal"] and 0 < found["distance"] < 1e-3
    assert found["reach"] > 0
    assert resumed(judged, runs[2].recipe, bench.blobs)

    assert "loss" in within_tolerance(_with_first(judged, loss=5.0), report, [profile])["why"]
    assert exact(_with_first(judged, state=bytes(32)), here[2]) == "step 1"
    assert within_tolerance(judged, report, [])["why"] == "no profile applies"


def _with_first(run: ReferenceRun, **changes: Any) -> ReferenceRun:
    """The run, with its first record changed."""
    first, *rest = run.honest.steps
    return replace(run, honest=replace(run.honest, steps=(replace(first, **changes), *rest)))


def test_more_than_sixty_runs_are_planned(tmp_path: Path) -> None:
    runs = [run for run in planned(tmp_path, honest.STEPS, honest.SEEDS) if not run.calibration]
    assert len(runs) >= 60
    assert len({run.seed for run in planned(tmp_path, honest.STEPS, honest.SEEDS)}) == len(
        planned(tmp_path, honest.STEPS, honest.SEEDS)
    ), "and no two, for calibration or not, share a seed"
    assert {run.kind.split()[0] for run in runs} == {"digits", "gpt", "resnet"}
    assert {run.schedule for run in runs} == {"constant", "cosine", "steps", "warm-up"}


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    jobs = [("worker", ["replay", str(tmp_path), "cpu", "1", str(tmp_path / "no job"), str(tmp_path / "out"), ""])]
    with pytest.raises(Unavailable, match=r"ended with status 1: .*no job"):
        run_jobs(jobs, EnvironmentSettings.parse("threads=1"), tmp_path / "listed")


def test_the_section_says_what_was_not_accepted() -> None:
    found = {
        "accepted": 1, "equal": 0, "largest distance": 1e-6, "largest reach": 2.0, "reach above 1": 1,
        "why": {"V10: gradient at step 3": 1},
    }  # fmt: skip
    kinds = [{
        "kind": "digits sgd", "runs": 2, "alpha": 0.1, "alpha preconditioned": None, "exact": 2, "resumed": 1,
        "taken up": 1, "elsewhere": {"threads=2": found},
    }]  # fmt: skip
    verdicts = {"drawn": 3, "runs": 4, "accepted": 3, "resumed": 2, "post hoc": 2, "flags": {"turn": 1},
                "why": ["rejected: V10: loss"]}  # fmt: skip
    text = section({
        "steps": 4, "judged": 2, "measured": 3, "here": "threads=1", "elsewhere": ["threads=2"], "runs": 2,
        "kinds": kinds, "upper": 0.5, "verdicts": verdicts,
    })  # fmt: skip
    assert "- `digits sgd`, `threads=2`: 1 refuted or not decided: V10: gradient at step 3" in text
    assert "None of the" not in text
    assert "3 of 4 verdicts are 'accepted'" in " ".join(text.split()) and "- rejected: V10: loss" in text


def test_honest_runs_go_through_all_of_it() -> None:
    """Registered and post hoc, at one go and in two sittings."""
    recipe = VariedDigits(steps=12, batch=8, width=4)
    found = verdicts([(recipe, None)] * 4, drawn=4)
    assert (found["runs"], found["accepted"], found["resumed"], found["post hoc"]) == (4, 4, 2, 2)
    assert found["why"] == [] and found["drawn"] == 4
