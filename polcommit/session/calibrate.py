"""Calibration: honest steps, re-executed in another environment by the verifier's own code, and how far they differ.

The reference half trains honest runs and keeps what a challenge would open; the other half re-executes that, here or
on another machine. A profile says what was measured, on the machines and the data that it was measured on. Whoever
measures decides α: a profile from somebody else is that person's word.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, TypeVar

from polcommit.encoding import Bytes32, Record, decode, encode
from polcommit.errors import EncodingError, NotReproducible, UsageError
from polcommit.profiles import Profile
from polcommit.records import Fingerprint, OpenedState
from polcommit.replaying import ReplayJob, ReplayReport
from polcommit.session.environments import EnvironmentSettings, claimed_settings, require_capability
from polcommit.session.fitting import DISTANCES, Group, Stressed, digest_every, fit
from polcommit.session.processes import ProcessReplayer, reported_error, worker_environment
from polcommit.storage import files

__all__ = ["DISTANCES", "MAX_STRESSED", "STRESS", "Calibration", "Plan", "calibrate", "export", "import_", "reference"]

#: Of a stressed step every weight is off by this share of itself, up or down: some sixty float32 roundings. What is
#: rare among honest steps, such as a ReLU that opens in one environment and not in the other, is common among those.
STRESS = 2.0**-17
#: Steps of a run that are stressed, at most.
MAX_STRESSED = 300

MAX_REFERENCE = 256 << 20
R = TypeVar("R", bound=Record)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceJob(Record):
    """One honest run to train."""

    TAG: ClassVar[str] = "calibration-job"
    recipe: str
    configuration: tuple[tuple[str, str], ...]
    data: str | None
    seed: Bytes32
    steps: int                          # to train
    sampled: tuple[int, ...]            # steps to keep for re-execution, rising
    starts: tuple[int, ...]             # states from which several steps are followed, rising


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRun(Record):
    """One honest run, less the bytes of its states and samples, which lie in a folder of blobs."""

    TAG: ClassVar[str] = "calibration-run"
    environment: Fingerprint
    recipe_source: Bytes32
    honest: ReplayJob                   # the sampled steps
    stressed: tuple[Stressed, ...]
    starts: tuple[int, ...]
    batches: tuple[tuple[int, tuple[int, ...]], ...]    # (step, samples) of the steps that follow a start
    later: tuple[OpenedState, ...]      # some steps after each start


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift(Record):
    """Weights after some steps from one state, in two environments."""

    start: int
    steps: int
    apart: float                        # ‖W there − W here‖
    moved: float                        # ‖W there − W at the start‖


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed(Record):
    """What following a run's starts in an environment gave."""

    TAG: ClassVar[str] = "calibration-drifts"
    environment: Fingerprint
    drifts: tuple[Drift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Record):
    """The first half of a calibration: honest runs in one environment."""

    TAG: ClassVar[str] = "calibration"
    recipe: str
    runs: tuple[ReferenceRun, ...]
    repeats: bool                       # whether the environment reproduces itself bit by bit
    own: tuple[Drift, ...]              # how far it is from itself, if it does not

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if not self.runs or any(run.honest.recipe != self.recipe for run in self.runs):
            raise EncodingError("a calibration holds runs of its recipe, at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to train and how much of it to look at."""

    recipe: str
    configuration: tuple[tuple[str, str], ...]
    data: str | None
    train: int                          # steps of each run
    steps: int                          # of these, how many are re-executed
    runs: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result. `digest_every` is how many steps one digest may cover, or None: see `fitting.digest_every`."""

    profile: Profile
    repeats: bool
    digest_every: int | None
    largest: dict[str, float] = field(default_factory=dict)     # honest values, for people


def reference(plan: Plan, settings: EnvironmentSettings, blobs: Path, progress: Progress) -> Reference:
    """Train honest runs in the environment of these settings, and see whether it reproduces itself.

    Raises:
        NotReproducible: the recipe is not deterministic.
        PolcommitError: what the recipe or its data raised.
    """
    require_capability(settings)
    sampled, starts = sampled_steps(plan.train, plan.steps), start_steps(plan.train)
    runs: list[ReferenceRun] = []
    reports: list[ReplayReport] = []
    for number in range(plan.runs):
        job = ReferenceJob(
            recipe=plan.recipe,
            configuration=plan.configuration,
            data=plan.data,
            seed=sha256(f"polcommit calibration, run {number}".encode()).digest(),
            steps=plan.train,
            sampled=sampled,
            starts=starts if number == 0 else (),
        )
        runs.append(_work("reference", blobs, job, ReferenceRun, settings))
        progress(2 * number + 1, 2 * plan.runs)
        reports.append(_replay(runs[-1].honest, blobs, settings))
        progress(2 * number + 2, 2 * plan.runs)
    repeats = all(_repeats(run, report) for run, report in zip(runs, reports, strict=True))
    own = () if repeats else _work("follow", blobs, runs[0], Followed, settings).drifts
    return Reference(recipe=plan.recipe, runs=tuple(runs), repeats=repeats, own=own)


def calibrate(
    found: Reference,
    blobs: Path,
    against: Sequence[EnvironmentSettings],
    *,
    name: str,
    left_open: Sequence[str] = ("steps",),
    anything: Sequence[str] = (),
    progress: Progress,
) -> Calibration:
    """Re-execute the reference's steps in each of these environments, and fit one profile to what came out.

    `left_open` are hyperparameters, and `anything` items of the fingerprint, that the profile is not to pin.

    Raises:
        NotReproducible: an honest step fails what no tolerance helps against; the message says which.
        UsageError: the recipe here is not the reference's.
    """
    first = found.runs[0]
    groups: list[Group] = []
    drifts: list[Drift] = []
    total = len(found.runs) * len(against)
    for run in found.runs:
        for settings in against:
            chosen = settings.over(_settings_of(run.environment))
            require_capability(chosen)
            report = _replay(run.honest, blobs, chosen)
            groups.append(_group(run, report))
            if run.starts:
                drifts += _work("follow", blobs, run, Followed, chosen).drifts
            progress(len(groups), total)
    profile = fit(
        name=name,
        recipe=found.recipe,
        recipe_source=first.recipe_source,
        configuration=tuple(pair for pair in first.honest.configuration if pair[0] not in left_open),
        reference=first.environment,
        groups=groups,
        stressed=[step for run in found.runs for step in run.stressed],
        drifts=[(drift.steps, drift.apart, drift.moved) for drift in drifts],
        anything=anything,
    )
    largest = {quantity: value for quantity, q, value in profile.quantiles if q == 1.0}
    every = 1 if found.repeats else digest_every([(drift.steps, drift.apart, drift.moved) for drift in found.own])
    return Calibration(profile, found.repeats, every, largest)


def _settings_of(environment: Fingerprint) -> EnvironmentSettings:
    """What another environment shares with this one where it does not say otherwise."""
    items = dict(environment.items)
    own = EnvironmentSettings(
        precision=items.get("float32 matmul precision"), device="cuda" if "cuda" in items else items.get("device")
    )
    return own.over(claimed_settings(environment))


def _group(run: ReferenceRun, report: ReplayReport) -> Group:
    if report.recipe_source != run.recipe_source:
        raise UsageError(
            f"the recipe {run.honest.recipe!r} that is installed here is not the one of the reference",
            hint="install the same version in both places",
        )
    if report.refuted is not None:
        check, what, step, expected, found = report.refuted
        where = "" if step is None else f" at step {step}"
        raise NotReproducible(f"an honest run of {run.honest.recipe!r} fails {check}: {what}{where}: expected "
                              f"{expected}, found {found}"[:500])  # fmt: skip
    measured = [step.measured for step in report.steps if step.measured is not None]
    if len(measured) != len(run.honest.steps):
        raise NotReproducible(f"not every step of {run.honest.recipe!r} was compared in gradient space")
    return Group(
        environment=report.environment,
        steps=measured,
        losses=[record.loss for record in run.honest.steps],
        residuals=report.residuals,
    )


def _repeats(run: ReferenceRun, report: ReplayReport) -> bool:
    """Whether every step came out the same. Raises NotReproducible where the recipe itself is to blame."""
    name = run.honest.recipe
    group = _group(run, report)
    pairs = list(zip(run.honest.steps, report.steps, group.steps, strict=True))
    for record, step, measured in pairs:
        trouble = None
        if step.batch != record.batch:
            trouble = "its batch differs"
        elif measured.missing:
            trouble = f"the gradient of {measured.missing[0]} is there in one of two executions only"
        elif all(measured.finite) and not (measured.distance <= 0.5 * min(measured.opened, measured.here)):
            trouble = "its gradient differs by more than half"
        if trouble is not None:
            raise NotReproducible(
                f"recipe {name!r} is not deterministic: step {record.step}, executed twice in one environment: "
                f"{trouble}",
                hint="take all randomness from the generators that polcommit seeds; see docs/contributing.md",
            )
    return all(step.state == record.state for record, step, _ in pairs)


def sampled_steps(train: int, steps: int) -> tuple[int, ...]:
    """Steps to re-execute: the first two, the last, and the others evenly spread; at most `train`."""
    if steps >= train:
        return tuple(range(1, train + 1))
    spread = {1 + int((k + 0.5) * train / steps) for k in range(steps)}
    return tuple(sorted({1, min(2, train), train, *spread}))


def start_steps(train: int) -> tuple[int, ...]:
    """States to follow: W_0, and those before the middle and the last stretch of a run."""
    longest = max(DISTANCES)
    return tuple(sorted({0, max(0, train // 2 - longest), max(0, train - longest)}))


# --- two machines ---------------------------------------------------------------------------------------------

_NAME = "calibration"


def export(found: Reference, folder: Path) -> None:
    """Write the reference beside its blobs, which were made in `folder / 'blobs'`."""
    files.write_atomic(folder / _NAME, encode(found))


def import_(folder: Path) -> Reference:
    """What `export` wrote. Raises UsageError: there is none, or not a whole one."""
    try:
        return decode(files.read(folder / _NAME, MAX_REFERENCE), Reference, max_size=MAX_REFERENCE)
    except EncodingError as error:
        raise UsageError(f"{folder / _NAME} is no exported calibration: {error}", hint="export it again") from error


# --- processes ------------------------------------------------------------------------------------------------


def _replay(job: ReplayJob, blobs: Path, settings: EnvironmentSettings) -> ReplayReport:
    """The verifier's own re-execution."""
    return ProcessReplayer(recipes=(job.recipe,), settings=settings).replay(job, blobs)


def _work(verb: str, blobs: Path, job: Record, kind: type[R], settings: EnvironmentSettings) -> R:
    """Run `polcommit.session.calibrating` on a job, in an environment of these settings."""
    with tempfile.TemporaryDirectory(prefix="polcommit-") as name:
        inward, outward = Path(name) / "job", Path(name) / "report"
        inward.write_bytes(encode(job))
        words = [sys.executable, "-m", "polcommit.session.calibrating", verb]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(
                [*words, str(blobs), str(inward), str(outward), str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=worker_environment(settings.threads, settings),
            )
            try:
                status = child.wait()
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            if status != 0:
                raise reported_error(out, err, status)
        return decode(outward.read_bytes(), kind, max_size=MAX_REFERENCE)
