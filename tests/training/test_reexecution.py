"""Recorded in one process with two workers, re-executed from the middle in another, bit for bit; and whole jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fresh
import measured as harness
import pytest

from polcommit.errors import Refuted, Unavailable, UsageError
from polcommit.recipes.digits import Digits
from polcommit.records import OpenedSample, OpenedState, SampleLeaf, StepRecord
from polcommit.replaying import ReplayJob, ReplayReport
from polcommit.session.environments import EnvironmentSettings
from polcommit.session.processes import ProcessReplayer
from polcommit.session.reexecution import Reexecution
from polcommit.storage.blobs import BlobFolder
from polcommit.training.environment import fingerprint
from polcommit.training.loading import encoded_sample
from polcommit.training.tree import sample_content
from polcommit.transcript import state_digest

HERE = Path(__file__).parent


def run(verb: str, folder: Path, threads: int) -> Any:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, "-W", "error", str(HERE / "fresh.py"), verb, str(folder), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("kept")
    return folder, run("record", folder, 2)


@pytest.fixture(scope="module")
def replayed(recorded: tuple[Path, Any]) -> Any:
    return run("replay", recorded[0], 2)


@pytest.mark.parametrize("how", ["0", "3", "opened"])
@pytest.mark.parametrize("variant", fresh.VARIANTS)
def test_steps_from_the_middle_come_out_the_same(recorded: Any, replayed: Any, variant: str, how: str) -> None:
    """States, batches, losses, learning rates and flags, with other numbers of workers and from opened samples."""
    assert len(recorded[1][variant]) == fresh.LAST - fresh.KEPT
    assert replayed[how][variant] == recorded[1][variant]


def test_the_variants_do_what_they_say(recorded: Any) -> None:
    """Clipping happens, the rates of the epoch-wise schedule stay for an epoch, and losses are not all equal."""
    results = {name: [json.loads(line)[0] for line in lines] for name, lines in recorded[1].items()}
    assert any(result["clipped"] for lines in results.values() for result in lines)
    assert [r["learning_rate"] for r in results["sgd with an epoch-wise schedule"]] == [0.0025, 0.0025, 0.00125]
    assert len({result["loss"] for lines in results.values() for result in lines}) > len(results)


# --- whole jobs, in the worker's process --------------------------------------------------------------------------

RECIPE = Digits(steps=4, batch=16, width=4)


def job_of(folder: Path, *, gradients: bool) -> ReplayJob:
    """Steps 1 and 3 of a short run, with everything opened; the bytes in the folder."""
    blobs = harness.Blobs()
    openings, last = harness.opened_run(RECIPE, (1, 3, 4), blobs)
    shown = openings[:2]
    batches = [harness.batch_of(RECIPE, opening.step) for opening in shown]
    samples = {}
    for batch in batches:
        for index in batch.indices:
            data = encoded_sample(RECIPE.source(), index)
            blobs.held[sample_content(data)] = data
            leaf = SampleLeaf(index=index, length=len(data), content=sample_content(data))
            samples[index] = OpenedSample(index=index, salt=bytes(32), leaf=leaf)
    for digest, data in blobs.held.items():
        (folder / digest.hex()).write_bytes(data)
    states = {opening.step - 1: opening.before for opening in shown} | {4: last}
    return ReplayJob(
        recipe="digits",
        configuration=RECIPE.configuration(),
        claimed=fingerprint(),
        seed=harness.SEED,
        sketch_seed=bytes(32),
        steps=tuple(
            StepRecord(
                step=opening.step, samples=bytes(32), batch=batch.digest, state=state_digest(opening.after), loss=0.0,
                learning_rate=RECIPE.learning_rate(opening.step), clipped=False, skipped=False, environment=0,
            )
            for opening, batch in zip(shown, batches, strict=True)
        ),
        samples=tuple(batch.indices for batch in batches),
        states=tuple(OpenedState(step=step, index=index) for step, index in sorted(states.items())),
        sketched=(0, 4),
        kept=(2, 4),
        opened=tuple(samples[index] for index in sorted(samples)),
        last=4,
        epochs=(1,),
        gradients=tuple(opening.gradient for opening in shown) if gradients else None,
        next_states=tuple(OpenedState(step=o.step, index=o.after) for o in shown) if gradients else None,
        origin_seed=bytes(range(32, 64)),
    )  # fmt: skip


def replay(job: ReplayJob, blobs: Path, settings: str = "") -> ReplayReport:
    return ProcessReplayer(settings=EnvironmentSettings.parse(settings)).replay(job, blobs)


def test_a_job_in_the_environment_that_it_claims(tmp_path: Path) -> None:
    job = job_of(tmp_path, gradients=False)
    report = replay(job, tmp_path)
    assert report.refuted is None and len(report.sketches) == 2
    assert [step.state for step in report.steps] == [record.state for record in job.steps]
    assert all(step.again is None and step.measured is None for step in report.steps)
    assert all(step.contribution is not None for step in report.steps)
    assert report.residuals == () and report.span is not None and report.span > 0
    assert report.flops == 2 * 16 * (2 * 64 * 4 * 9 + 3 * 16 * 8 * 4 * 9 + 3 * 8 * 4 * 10)     # see test_measure
    assert report.initial_index is not None and state_digest(report.initial_index) == report.initial
    assert report.origin is not None and all(o.equal if o.constant else o.probability > 1e-4 for o in report.origin)
    assert report.environment.threads == fingerprint().threads


def test_a_job_with_gradients_in_another_environment(tmp_path: Path) -> None:
    """The fingerprint shows each of the settings; the steps differ by rounding, and nothing else does."""
    job = job_of(tmp_path, gradients=True)
    report = replay(job, tmp_path, "threads=1,onednn=off,capability=default,precision=high")
    items = dict(report.environment.items)
    assert (items["threads"], items["onednn"], items["aten instruction set"]) == ("1", "no", "DEFAULT")
    assert items["variable ATEN_CPU_CAPABILITY"] == "default" and items["float32 matmul precision"] == "high"
    assert report.refuted is None and len(report.residuals) == 1 and abs(report.residuals[0]) < 1
    for step, record in zip(report.steps, job.steps, strict=True):
        assert step.state != record.state and step.again == step.state and step.batch == record.batch
        assert step.measured is not None and step.measured.exact is None and step.measured.update[1] <= 1.0
        assert 0.0 < step.measured.distance <= 1e-4 * step.measured.opened


def refuted(job: ReplayJob, blobs: Path) -> tuple[str, str, int | None]:
    """What the worker's code finds, in this process."""
    with pytest.raises(Refuted) as found:
        Reexecution(job, BlobFolder(blobs), lambda done, total: None).run(RECIPE)
    return found.value.check, found.value.what, found.value.at


def test_hostile_gradients_are_a_finding(tmp_path: Path) -> None:
    """The next state or W_T left out; a gradient of an unknown parameter; bytes other than the digest says."""
    job = job_of(tmp_path, gradients=True)
    assert job.gradients is not None and job.next_states is not None
    assert refuted(replace(job, next_states=job.next_states[1:]), tmp_path) == ("V8", "gradient and next state", 1)
    assert refuted(replace(job, last=9), tmp_path) == ("V8", "last state", 9)
    assert refuted(replace(job, states=job.states[1:], sketched=()), tmp_path)[0] == "V8"
    first = job.gradients[0]
    entries = (replace(first.tensors[0], name="gradient/aaa"), *first.tensors[1:])
    unknown = replace(job, gradients=(replace(first, tensors=entries), *job.gradients[1:]))
    assert refuted(unknown, tmp_path) == ("V8", "gradient", 1)
    blob = tmp_path / first.tensors[0].content.hex()
    blob.write_bytes(bytes(len(blob.read_bytes())))
    assert refuted(job, tmp_path)[:2] == ("V8", f"content of {first.tensors[0].name}")


def test_what_this_machine_cannot_do_is_no_finding(tmp_path: Path) -> None:
    job = job_of(tmp_path, gradients=False)
    with pytest.raises(Unavailable, match="recipe 'elsewhere:Recipe', which is not installed"):
        replay(replace(job, recipe="elsewhere:Recipe"), tmp_path)
    with pytest.raises(UsageError, match="there is no device"):
        replay(job, tmp_path, "device=nowhere")
