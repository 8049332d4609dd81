"""What a challenge has regenerated of a run: states, gradients and next states, each as it was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from world import Registered, World, regenerate_here

from polcommit.draws import opened_states
from polcommit.encoding import decode
from polcommit.errors import DataChanged, NotReproducible
from polcommit.records import Request, StepRecord
from polcommit.replaying import RegenerateJob
from polcommit.session.recipes import run_recipe
from polcommit.session.run import seed_of
from polcommit.storage.journal import read_frames
from polcommit.storage.runfolder import RunFolder
from polcommit.training.loading import Loader
from polcommit.training.measure import OpenedStep, measure
from polcommit.training.replay import Engine
from polcommit.transcript import state_digest


def job_of(run: Registered, *, gradients: bool) -> RegenerateJob:
    request = Request(
        run=run.id, commitment=bytes(32), verifier=bytes(32), strategy="list", count=2, steps=(3, 10),
        clear_openings=False,
    )  # fmt: skip
    kept = run.folder.states.steps()
    return RegenerateJob(
        request=request, seed=bytes(range(32)), drawn=(3, 10), kept=kept, opened_kept=(kept[-1],), gradients=gradients
    )


def test_a_regenerated_gradient_is_the_one_that_the_step_had(world: World, small: Registered, tmp_path: Path) -> None:
    """Applied to the regenerated state before, it gives the regenerated state after, which is the committed one."""
    job = job_of(small, gradients=True)
    report = regenerate_here(small.path, job, tmp_path)
    assert report.gradients is not None and report.next_states is not None
    steps = sorted({*job.drawn, *report.added})
    assert [gradient.step for gradient in report.gradients] == [state.step for state in report.next_states] == steps
    assert [state.step for state in report.states] == list(opened_states(steps, job.opened_kept, report.pinned))
    records = {step: decode(frame, StepRecord) for step, frame in enumerate(read_frames(small.path / "journal", 1), 1)}
    states = {state.step: state.index for state in (*report.states, *report.next_states)}
    assert all(state_digest(index) == records[step].state for step, index in states.items() if step)
    recipe = run_recipe(small.folder)
    engine = Engine(recipe, seed_of(small.folder))
    for gradient, after in zip(report.gradients, report.next_states, strict=True):
        opened = OpenedStep(
            step=gradient.step, before=states[gradient.step - 1], gradient=gradient, after=after.index,
            last=states[job.opened_kept[0]], fetch=lambda entry: (tmp_path / entry.content.hex()).read_bytes(),
        )  # fmt: skip
        batch = next(iter(Loader(recipe, engine.seed, gradient.step, gradient.step)))
        found = measure(engine, opened, batch)[0]
        assert (found.distance, found.update, found.exact, found.missing) == (0.0, ("", 0.0), None, ())
        assert found.opened > 0


def test_without_gradients_none_are_written(world: World, small: Registered, tmp_path: Path) -> None:
    report = regenerate_here(small.path, job_of(small, gradients=False), tmp_path)
    assert report.gradients is None and report.next_states is None
    named = {entry.content.hex() for state in report.states for entry in state.index.tensors}
    samples = {content.hex() for content, _ in small.folder.dataset_contents()}
    assert {path.name for path in tmp_path.iterdir()} <= named | samples


def test_what_does_not_reproduce_is_not_opened(
    world: World, small: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient goes out only with a next state that has the committed digest."""
    honest = Engine.step

    def unsteady(engine: Engine, batch: object, **options: object) -> object:
        for group in engine.state.optimizer.param_groups:
            group["weight_decay"] = 1e-3
        return honest(engine, batch, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "step", unsteady)
    with pytest.raises(NotReproducible, match="does not reproduce"):
        regenerate_here(small.path, job_of(small, gradients=True), tmp_path)


def test_a_changed_sample_is_not_opened(
    world: World, small: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [(bytes(32), length) for _, length in small.folder.dataset_contents()]
    monkeypatch.setattr(RunFolder, "dataset_contents", lambda folder: contents)
    with pytest.raises(DataChanged, match="is not the sample that was registered"):
        regenerate_here(small.path, job_of(small, gradients=True), tmp_path)
