"""The prover's own run, re-executed: any state of it, and the gradient of any step, from the states that were kept.

Every state that comes out is compared with the digest that was committed, so what is handed on is what was recorded,
or nothing is. Each step runs on as many threads as its environment epoch had; what else that epoch's fingerprint
names, this machine has or has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from polcommit import prf
from polcommit.draws import Screened, opened_states
from polcommit.encoding import decode
from polcommit.errors import DataChanged, NotReproducible, StorageError
from polcommit.records import GenesisRecord, Gradient, OpenedState, StateIndex, StepRecord, TensorEntry
from polcommit.replaying import RegenerateJob, RegenerateReport
from polcommit.session.recipes import run_recipe
from polcommit.session.run import seed_of
from polcommit.storage.journal import read_frames
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import Epoch
from polcommit.training.loading import FetchedBatch, Loader, encoded_sample
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine, first_difference
from polcommit.training.sketch import sketch_state
from polcommit.training.step import GRADIENT, gradient_entries, gradients
from polcommit.training.tree import raw_bytes, sample_content
from polcommit.transcript import sketch_seed, state_digest

Progress = Callable[[int, int], None]


def regenerate(run: RunFolder, job: RegenerateJob, out: Path, progress: Progress) -> RegenerateReport:
    """What a challenge asks for: indices in the report, all bytes in `out`.

    Raises:
        NotReproducible: this machine does not get the committed digests.
        DataChanged: a sample is no longer what was registered.
    """
    regenerator = Regenerator(run, run.environments())
    signs = sketch_seed(job.seed)
    sketches = {step: regenerator.sketch(step, signs) for step in job.kept}
    screened = Screened(
        job.request,
        run.manifest,
        seed=job.seed,
        last=job.kept[-1],
        records=regenerator.records,
        sketches=sketches,
    )
    sketches |= {step: regenerator.sketch(step, signs) for step in screened.fine}
    added = screened.over(job.drawn, sketches)
    steps = sorted({*job.drawn, *added.steps})
    write_samples(run, regenerator.recipe, regenerator.samples(steps), out)
    opened = Opened(regenerator, out)
    before = {step - 1 for step in steps}
    due = opened_states(steps, job.opened_kept, added.pinned)
    for done, step in enumerate(due):
        progress(done, len(due))
        opened.state(step)
        if job.gradients and step in before:
            opened.step(step + 1)
    return RegenerateReport(
        added=added.steps,
        fine=added.fine,
        pinned=added.pinned,
        states=tuple(OpenedState(step=step, index=index) for step, index in sorted(opened.states.items())),
        sketches=tuple(sorted(sketches.items())),
        gradients=tuple(opened.gradients) if job.gradients else None,
        next_states=tuple(opened.next_states) if job.gradients else None,
    )


def write_samples(run: RunFolder, recipe: Recipe, indices: Iterable[int], out: Path) -> None:
    """Encodings of raw samples into `out`, under their contents. Raises DataChanged."""
    contents = run.dataset_contents()
    source = recipe.source()
    for index in indices:
        data = encoded_sample(source, index)
        content, length = contents[index]
        if len(data) != length or sample_content(data) != content:
            raise DataChanged(
                f"dataset[{index}] is not the sample that was registered",
                hint="restore the data set as it was; the run cannot be opened without it",
            )
        (out / content.hex()).write_bytes(data)


class Opened:
    """What was regenerated for an opening so far; the bytes go into the folder `out`."""

    def __init__(self, regenerator: Regenerator, out: Path) -> None:
        self._regenerator, self._out = regenerator, out
        self.states: dict[int, StateIndex] = {}
        self.gradients: list[Gradient] = []
        self.next_states: list[OpenedState] = []

    def state(self, step: int) -> None:
        """The state after `step`."""
        self._regenerator.go_to(step)
        self.states[step] = self._captured()

    def step(self, step: int) -> None:
        """The gradient of `step`, from the state before it, which is in place; and the state after it."""
        entries: tuple[TensorEntry, ...] = ()

        def take() -> None:
            nonlocal entries
            found = gradients(self._regenerator.engine.state.model)
            entries = gradient_entries(found)
            for entry in entries:
                self._write(entry, lambda entry: raw_bytes(found[entry.name.removeprefix(GRADIENT)]))

        self._regenerator.advance(step, between=take)
        self.gradients.append(Gradient(step=step, tensors=entries))
        self.next_states.append(OpenedState(step=step, index=self._captured()))

    def _captured(self) -> StateIndex:
        captured = self._regenerator.engine.capture()
        for entry in captured.index.tensors:
            self._write(entry, captured.content)
        return captured.index

    def _write(self, entry: TensorEntry, data: Callable[[TensorEntry], memoryview]) -> None:
        target = self._out / entry.content.hex()
        if not target.exists():
            target.write_bytes(data(entry))


class Regenerator:
    """Any state of a recorded run: from the kept state before it, by re-execution, compared step by step.

    With `epochs`, each step runs on as many threads as its epoch had; without, on those of this process.
    """

    def __init__(self, run: RunFolder, epochs: tuple[Epoch, ...] = ()) -> None:
        self.run = run
        self.recipe = run_recipe(run)
        self.seed = seed_of(run)
        self.engine = Engine(self.recipe, self.seed)
        self.source = self.recipe.source()
        frames = enumerate(read_frames(run.journal_path, 1), 1)
        self.records = {step: decode(frame, StepRecord) for step, frame in frames}
        self._epochs = epochs
        self._at: int | None = None

    def samples(self, steps: Iterable[int]) -> list[int]:
        """Dataset indices that these steps take, rising."""
        manifest = self.run.manifest
        taken = (prf.batch_indices(self.seed, step, manifest.dataset.size, manifest.batch) for step in steps)
        return sorted({index for indices in taken for index in indices})

    def sketch(self, step: int, seed: bytes) -> tuple[float, ...]:
        """Sketch of the state after `step`, kept or not."""
        if step in self.run.states.steps():
            return sketch_state(self._kept(step), self._fetch, seed)
        self.go_to(step)
        captured = self.engine.capture()
        return sketch_state(captured.index, captured.content, seed)

    def go_to(self, step: int) -> None:
        """Put the state after `step` in place. Raises NotReproducible."""
        kept = self.run.states.latest(step)
        if self._at is None or self._at > step or (kept is not None and kept > self._at):
            if kept is None:
                raise NotReproducible(f"no kept state at or before step {step}", hint="restore the run folder")
            self.restore(kept)
        assert self._at is not None
        if self._at < step:
            for batch in Loader(self.recipe, self.seed, self._at + 1, step, source=self.source):
                self.execute(batch)

    def restore(self, step: int) -> None:
        """Put the kept state after `step` in place."""
        self.engine.restore(self._kept(step), self._fetch)
        self._at = step

    def advance(self, step: int, between: Callable[[], None] | None = None) -> None:
        """Execute the step after the state in place; `between` as for `run_step`. Raises NotReproducible."""
        for batch in Loader(self.recipe, self.seed, step, step, source=self.source):
            self.execute(batch, between)

    def execute(self, batch: FetchedBatch, between: Callable[[], None] | None = None) -> None:
        """One step, compared with the record of it."""
        self._at = None
        self._set_threads(batch.step)
        self.engine.step(batch, between=between)
        record = self.records[batch.step]
        index = self.engine.capture().index
        if state_digest(index) != record.state:
            raise NotReproducible(
                f"step {batch.step} does not reproduce: {self._difference(batch.step, index)}",
                hint="a challenge of it would fail; was it recorded on another machine, or with other settings?",
            )
        self._at = batch.step

    def _set_threads(self, step: int) -> None:
        epoch = max((epoch for epoch in self._epochs if epoch.first <= step), key=_first, default=None)
        threads = epoch.fingerprint.threads if epoch is not None else None
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def _kept(self, step: int) -> StateIndex:
        """The kept state after `step`. Raises StorageError: damaged, or not the one that was committed."""
        index = self.run.states.get(step)
        if step in self.records:
            committed = self.records[step].state
        else:
            frame = next(read_frames(self.run.journal_path, step, step + 1))
            committed = decode(frame, StepRecord).state if step else decode(frame, GenesisRecord).state
        if state_digest(index) != committed:
            raise StorageError(
                f"the kept state of step {step} is not the one that was committed", hint="restore it from a copy"
            )
        return index

    def _fetch(self, entry: TensorEntry) -> bytes:
        return self.run.tensors.get(entry)

    def _difference(self, step: int, index: StateIndex) -> str:
        if step in self.run.states.steps():
            return first_difference(self.run.states.get(step), index) or "the record"
        return "the state after it has another digest"


def _first(epoch: Epoch) -> int:
    return epoch.first

