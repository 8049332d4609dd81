"""Honest runs, re-executed here and elsewhere: every one of them has to be accepted.

For each recipe and optimizer two runs are for calibration, under other seeds than all the others. The others are
judged: bit for bit in the environment that trained them, and within the tolerance of that profile in each of the other
environments. Training, re-execution, calibration and judgement are polcommit's own, in processes as they use them;
there is no ledger here, but runs of the same recipes go through all of polcommit as well (`honest_verdicts`). What is
drawn is a few steps of short runs of small nets: a rate of rejects is bounded by how many there are, and not proved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from polcommit.encoding import decode, encode
from polcommit.errors import Refuted, Unavailable
from polcommit.profiles import Profile, find
from polcommit.replaying import ReplayedStep, ReplayReport
from polcommit.session.calibrate import MAX_REFERENCE, ReferenceJob, ReferenceRun, sampled_steps
from polcommit.session.environments import EnvironmentSettings, has_capability
from polcommit.session.fitting import Group, fit
from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.alignment_draws import upper_bound
from polcommit.spoofs.measure.honest_jobs import Job, run_jobs
from polcommit.spoofs.measure.honest_page import draw, section
from polcommit.spoofs.measure.honest_runs import VariedResNet, recipes
from polcommit.spoofs.measure.honest_verdicts import verdicts
from polcommit.tolerance import check_alignment, judge, reach
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine

STEPS = 40              # of each run
JUDGED, MEASURED = 5, 12        # steps that are re-executed, of a run that is judged, and of one for calibration
SEEDS = 2               # runs of each recipe, optimizer and schedule
CALIBRATION = "cosine"  # schedule of the runs for calibration
HERE = "threads=1"
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"width": 8, "batch": 16},
    "gpt": {"layers": 1, "width": 16, "context": 16, "batch": 4},
    "resnet": {"width": 4, "batch": 8},
}


def elsewhere() -> list[str]:
    """The other environments that this machine can have."""
    found = ["threads=2", "threads=1,onednn=off", "threads=1,capability=default"]
    return found + (["threads=1,capability=avx2"] if has_capability("avx512") else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run to train: recipe, optimizer and schedule, and a seed."""

    kind: str                   # 'digits momentum'
    schedule: str
    number: int
    recipe: Recipe
    calibration: bool

    @property
    def seed(self) -> bytes:
        """Of the run."""
        role = "calibration" if self.calibration else "judged"
        return sha256(f"polcommit honest {role} {self.kind} {self.schedule} {self.number}".encode()).digest()

    @property
    def data(self) -> str | None:
        """Where its data lies."""
        found = getattr(self.recipe, "data" if isinstance(self.recipe, VariedResNet) else "text", None)
        return None if found is None else str(found)


def planned(folder: Path, steps: int, seeds: int) -> list[Planned]:
    """All runs; data is written into `folder`."""
    found = []
    for name, recipe in recipes(folder, steps):
        what, optimizer, schedule = name.split()
        if what == "gpt" and optimizer not in ("momentum", "adamw"):
            continue
        small = replace(recipe, **SMALL[what])
        kinds = [False] * seeds + ([True] * 2 if schedule == CALIBRATION else [])
        found += [
            Planned(kind=f"{what} {optimizer}", schedule=schedule, number=number, recipe=small, calibration=calibration)
            for number, calibration in enumerate(kinds)
        ]
    return found


# --- training and re-execution --------------------------------------------------------------------------------


class Bench:
    """Runs that are trained and re-executed in a folder."""

    def __init__(self, folder: Path, runs: Sequence[Planned]) -> None:
        self._folder, self._runs = folder, runs
        self.blobs = folder / "blobs"

    def train(self) -> list[ReferenceRun]:
        """All of the runs, in the first environment."""
        jobs: list[Job] = []
        for number, run in enumerate(self._runs):
            wanted = ReferenceJob(
                recipe=f"{type(run.recipe).__module__}:{type(run.recipe).__name__}",
                configuration=run.recipe.configuration(), data=run.data, seed=run.seed, steps=run.recipe.steps,
                sampled=sampled_steps(run.recipe.steps, MEASURED if run.calibration else JUDGED), starts=(),
            )  # fmt: skip
            inward, outward = self._files("reference", number)
            inward.write_bytes(encode(wanted))
            jobs.append(("calibrating", ["reference", str(self.blobs), str(inward), str(outward), HERE]))
        self._run(jobs, HERE)
        outputs = [self._files("reference", number)[1] for number in range(len(self._runs))]
        return [decode(path.read_bytes(), ReferenceRun, max_size=MAX_REFERENCE) for path in outputs]

    def replay(self, found: Sequence[ReferenceRun], text: str) -> list[ReplayReport]:
        """Their steps, as a verifier in that environment re-executes them."""
        settings = EnvironmentSettings.parse(text)
        jobs: list[Job] = []
        for number, run in enumerate(found):
            inward, outward = self._files(text, number)
            inward.write_bytes(encode(run.honest))
            threads = str(settings.threads or 0)
            jobs.append(("worker", ["replay", str(self.blobs), "cpu", threads, str(inward), str(outward), text]))
        self._run(jobs, text)
        outputs = [self._files(text, number)[1] for number in range(len(found))]
        return [decode(path.read_bytes(), ReplayReport, max_size=MAX_REFERENCE) for path in outputs]

    def _run(self, jobs: Sequence[Job], text: str) -> None:
        run_jobs(jobs, EnvironmentSettings.parse(text), self._folder / "jobs.json")

    def _files(self, text: str, number: int) -> tuple[Path, Path]:
        folder = self._folder / text.replace(",", "-").replace("=", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{number}.job", folder / f"{number}.report"


def group(run: ReferenceRun, report: ReplayReport) -> Group:
    """What a calibration takes from a re-execution."""
    measured = [step.measured for step in report.steps if step.measured is not None]
    losses = [record.loss for record in run.honest.steps]
    return Group(environment=report.environment, steps=measured, losses=losses, residuals=report.residuals)


def profile_of(kind: str, pairs: Sequence[tuple[ReferenceRun, ReplayReport]]) -> Profile:
    """The profile of a recipe and optimizer, over all environments that these reports are from."""
    first = pairs[0][0]
    distinct = {id(run): run for run, _ in pairs}.values()
    return fit(
        name=kind, recipe=first.honest.recipe, recipe_source=first.recipe_source,
        configuration=tuple(pair for pair in first.honest.configuration if pair[0] not in ("steps", "schedule")),
        reference=first.environment, groups=[group(run, report) for run, report in pairs],
        stressed=[step for run in distinct for step in run.stressed], drifts=(),
    )  # fmt: skip


def resumed(run: ReferenceRun, recipe: Recipe, blobs: Path) -> bool:
    """Whether the run, taken up again from a state in its middle, ends in the same bits."""
    states = {state.step: state.index for state in run.honest.states}
    start = sorted(step for step in states if step < run.honest.last)[len(states) // 2]
    engine = Engine(recipe, run.honest.seed)
    engine.restore(states[start], lambda entry: (blobs / entry.content.hex()).read_bytes())
    for batch in Loader(recipe, run.honest.seed, start + 1, run.honest.last):
        engine.step(batch)
    return engine.capture().index == states[run.honest.last]


# --- judgement ------------------------------------------------------------------------------------------------


def exact(run: ReferenceRun, report: ReplayReport) -> str | None:
    """What differs in the same environment; None: nothing does."""
    for record, step in zip(run.honest.steps, report.steps, strict=True):
        if step.state != record.state or step.batch != record.batch:
            return f"step {record.step}"
    return None if run.environment == report.environment else "the environment"


def within_tolerance(run: ReferenceRun, report: ReplayReport, profiles: Sequence[Profile]) -> dict[str, Any]:
    """The verifier's judgement of a run in another environment: 'why' is None if it is accepted."""
    measured = [step.measured for step in report.steps if step.measured is not None]
    found: dict[str, Any] = {
        "why": None, "equal": exact(run, report) in (None, "the environment"),
        "distance": max(_relative(step) for step in report.steps), "reach": None,
    }  # fmt: skip
    profile = find(
        profiles, recipe=run.honest.recipe, recipe_source=run.recipe_source, configuration=run.honest.configuration,
        claimed=run.environment, here=report.environment,
    )  # fmt: skip
    try:
        if report.refuted is not None:
            check, what, at, expected, here = report.refuted
            raise Refuted(check, what, at=at, expected=expected, found=here)
        if profile is None:
            raise Unavailable("no profile applies")
        for record, step in zip(run.honest.steps, report.steps, strict=True):
            judge(record, step, profile)
        check_alignment(measured, report.residuals, profile)
        found["reach"] = reach(measured, profile, report.rates, report.span or 0.0)
    except (Refuted, Unavailable) as error:
        found["why"] = error.message
    return found


def _relative(step: ReplayedStep) -> float:
    measured = step.measured
    assert measured is not None
    least = min(measured.opened, measured.here)
    return measured.distance / least if least > 0 else 0.0


# --- all of it ------------------------------------------------------------------------------------------------


def measure(folder: Path, steps: int = STEPS, seeds: int = SEEDS, only: str = "", jobs: int = 1) -> dict[str, Any]:
    """The whole experiment. `folder` is emptied as it goes; with `only`, recipes whose name begins so."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, list[Planned]] = defaultdict(list)
    for run in planned(folder, steps, seeds):
        if run.kind.startswith(only):
            kinds[run.kind].append(run)
    rows = [_kind(folder / kind.replace(" ", "-"), kind, runs) for kind, runs in kinds.items()]
    judged = sum(row["runs"] for row in rows)
    whole = [(run.recipe, run.data) for runs in kinds.values() for run in runs if not run.calibration]
    return {
        "steps": steps, "judged": JUDGED, "measured": MEASURED, "here": HERE, "elsewhere": elsewhere(), "small": SMALL,
        "runs": judged, "kinds": rows, "upper": upper_bound(0, judged), "verdicts": verdicts(whole, jobs=jobs),
    }  # fmt: skip


def _kind(folder: Path, kind: str, runs: Sequence[Planned]) -> dict[str, Any]:
    """A row: one recipe and optimizer."""
    bench = Bench(folder, runs)
    trained = bench.train()
    own = bench.replay(trained, HERE)
    reports = {text: bench.replay(trained, text) for text in elsewhere()}
    for_profile = [
        (trained[at], reports[text][at]) for at, run in enumerate(runs) if run.calibration for text in reports
    ]
    profile = profile_of(kind, for_profile)
    judged = [at for at, run in enumerate(runs) if not run.calibration]
    again = [resumed(trained[at], runs[at].recipe, bench.blobs) for at in judged if runs[at].number == 0]
    row = {
        "kind": kind, "runs": len(judged), "alpha": profile.alpha, "alpha preconditioned": profile.alpha_preconditioned,
        "exact": sum(exact(trained[at], own[at]) is None for at in judged),
        "resumed": sum(again), "taken up": len(again),
        "elsewhere": {
            text: _summary([within_tolerance(trained[at], reports[text][at], [profile]) for at in judged])
            for text in reports
        },
    }  # fmt: skip
    shutil.rmtree(folder)
    return row


def _summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    reaches = [each["reach"] for each in found if each["reach"] is not None]
    return {
        "accepted": sum(each["why"] is None for each in found),
        "equal": sum(each["equal"] for each in found),
        "largest distance": max(each["distance"] for each in found),
        "largest reach": max(reaches, default=None),
        "reach above 1": sum(value > 1.0 for value in reaches),
        "why": dict(Counter(each["why"] for each in found if each["why"] is not None)),
    }  # fmt: skip


def main() -> None:
    """Measure, and write docs/figures/honest.json, its plot, and the section of docs/soundness.md."""
    docs = figures.docs_folder()        # before the work, where it fails
    set_determinism(1)
    with tempfile.TemporaryDirectory(prefix="polcommit-") as folder:
        result = measure(Path(folder), jobs=len(os.sched_getaffinity(0)))
    figures.write_json("honest", result, docs)
    figures.insert_section("soundness.md", "honest", section(result), docs)
    with figures.plot("honest", docs=docs) as (axes,):
        draw(axes, result)


if __name__ == "__main__":
    main()
