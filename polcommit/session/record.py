"""Recording a run in the user's own loop (spec §4.3).

    run = polcommit.record("runs/digits", recipe=recipe)
    for batch in run:
        loss = run.step(batch)
    run.close()

One leaf a step, with the digest of the full state after it. A step ends when the next batch is asked for, or at
close: schedulers and scalers have then done their part. Written leaves are never rewritten: a resumed run first
re-executes from its last kept state to the end of the journal, and must get every digest again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from polcommit import transcript as hashes
from polcommit.encoding import decode, encode
from polcommit.errors import DataChanged, NotReproducible, StorageError, UsageError
from polcommit.records import SampleLeaf, StateIndex, StepRecord
from polcommit.session.initial import Initial, initial_state, require_same_initial
from polcommit.session.recipes import require_same, run_recipe
from polcommit.session.run import committed_state, genesis_record, seed_of
from polcommit.session.selfcheck import SelfCheck, SelfChecks
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import fingerprint, require_device, set_determinism
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.state import TrainingState
from polcommit.training.step import StepResult


def record(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    workers: int = 0,
    self_check: SelfCheck = "auto",
    rollback: bool = False,
    initial: Initial | None = None,
) -> RecordedRun:
    """Open a registered, or a post hoc, run for recording; an interrupted one goes on where its journal ends.

    `recipe` may be left out: the registered one is taken. `workers` processes fetch batches ahead. `self_check`
    re-executes some steps in a second process, 'beside' training or 'before-anchor'; 'auto' takes the first where
    the machine has as many processors again as training uses threads; 'off' leaves it to the challenges.
    `rollback` drops steps that cannot be reproduced and that no anchor covers. `initial` is the W_0 of a post hoc run
    that has no parent: parameters and buffers by the model's names (a `state_dict()`), or a safetensors file of them;
    by default the recipe makes it of the run's seed. A run that is resumed needs it no more.

    Raises:
        StorageError: no such run, it is not registered yet, or another process records it.
        Contradiction: a value of `recipe` is not what the run was registered with.
        UsageError: `initial` is not of the recipe's model, not what the run began with, or not to be given.
        NotReproducible: this machine does not get the recorded digests again.
    """
    run = RunFolder.open(Path(path))
    seed_of(run)        # raises: it is not registered yet
    if recipe is None:
        recipe = run_recipe(run)
    else:
        require_same(run, recipe)
        if recipe.device != run.settings.device:        # where self-checks and openings re-execute as well
            run.write_settings(replace(run.settings, device=recipe.device))
    return RecordedRun(run, recipe, workers=workers, self_check=self_check, rollback=rollback, initial=initial)


class RecordedRun:
    """A run that is being recorded; iterate over its batches, `step` each, and `close`."""

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        *,
        workers: int,
        self_check: SelfCheck,
        rollback: bool,
        initial: Initial | None,
    ) -> None:
        require_device(recipe.device)
        set_determinism()
        with ExitStack() as held:       # lets go of lock and journal again where the run cannot be opened
            held.enter_context(run.lock())
            self._run, self._recipe, self._workers = run, recipe, workers
            self._seed = seed_of(run)
            self._engine = Engine(recipe, self._seed)
            self._source = recipe.source()
            self._leaves = run.dataset_leaves()
            self._journal = held.enter_context(run.journal())
            self._pending: tuple[FetchedBatch, StepResult] | None = None
            self._checks = SelfChecks(run, recipe, self_check)
            self._closed = False
            self._environment = 0
            self._begin(rollback, initial)
            self._held = held.pop_all()

    # --- state ------------------------------------------------------------------------------------------------

    @property
    def steps_done(self) -> int:
        """Steps that are recorded: the last one that was closed."""
        return len(self._journal) - 1

    @property
    def steps_planned(self) -> int:
        """Steps that the run was registered with."""
        return self._recipe.steps

    @property
    def state(self) -> TrainingState:
        """The live training state, for evaluation and logging. Changing it makes the run irreproducible."""
        return self._engine.state

    @property
    def model(self) -> torch.nn.Module:
        """The live model."""
        return self._engine.state.model

    # --- the loop ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FetchedBatch]:
        """The batches that are left, in the order that the run's seed gives."""
        self._end_step()
        loader = Loader(
            self._recipe,
            self._seed,
            self.steps_done + 1,
            self._recipe.steps,
            workers=self._workers,
            source=self._source,
        )
        for batch in loader:
            self._end_step()
            self._require_registered(batch)
            yield batch
        self._end_step()

    def step(self, batch: FetchedBatch) -> float:
        """Run the step that this batch is for; returns its loss.

        Raises:
            UsageError: the batch is not the next one.
        """
        if self._closed:
            raise UsageError("the run is closed")
        self._end_step()
        if batch.step != self.steps_done + 1:
            raise UsageError(f"batch of step {batch.step}, but step {self.steps_done + 1} is next")
        result = self._engine.step(batch)
        self._pending = (batch, result)
        return result.loss

    def close(self) -> None:
        """End the last step, make everything durable, and wait for the self-checks."""
        if self._closed:
            return
        try:
            self._end_step()
            self._closed = True
            self._keep(self.steps_done)     # so that an anchor of what there is finds its head's state
            self._journal.sync()
            self._checks.finish()
        finally:
            self._closed = True
            self._held.close()

    def __enter__(self) -> RecordedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._checks.stop()
            self._closed = True
            self._held.close()

    def _end_step(self) -> None:
        """Commit the step that was run last: capture the state, write the leaf, keep the state where it is due."""
        if self._pending is None:
            return
        batch, result = self._pending
        captured = self._engine.capture()
        record = self._record(batch, result, hashes.state_digest(captured.index))
        last = record.step == self._recipe.steps
        if record.step % self._run.manifest.keep == 0 or last:
            self._run.states.put(record.step, captured.index, captured.content)
        self._journal.append(encode(record))
        self._pending = None
        if record.step % self._run.manifest.keep == 0 or last:
            self._journal.sync()
        self._checks.after(record.step, captured.index, captured.content)

    def _record(self, batch: FetchedBatch, result: StepResult, state: bytes) -> StepRecord:
        return StepRecord(
            step=batch.step,
            samples=hashes.samples_digest(self._leaves[index] for index in batch.indices),
            batch=batch.digest,
            state=state,
            loss=result.loss,
            learning_rate=result.learning_rate,
            clipped=result.clipped,
            skipped=result.skipped,
            environment=self._environment,
        )

    def _require_registered(self, batch: FetchedBatch) -> None:
        for index, (content, length) in zip(batch.indices, batch.contents, strict=True):
            leaf = SampleLeaf(index=index, length=length, content=content)
            if hashes.sample_leaf(hashes.sample_salt(self._run.secret, index), leaf) != self._leaves[index]:
                raise DataChanged(
                    f"dataset[{index}] is not the sample that was registered",
                    hint="restore the data set as it was at registration; nothing recorded is lost",
                )

    def _keep(self, step: int) -> None:
        """Keep the state after the last step, unless a step that failed half-way has changed it since."""
        if step in self._run.states.steps():
            return
        captured = self._engine.capture()
        frame = next(self._journal.read(step, step + 1))
        if hashes.state_digest(captured.index) == committed_state(step, frame):
            self._run.states.put(step, captured.index, captured.content)

    # --- beginning and resuming -------------------------------------------------------------------------------

    def _begin(self, rollback: bool, initial: Initial | None) -> None:
        if len(self._leaves) != len(self._source):
            raise DataChanged(
                f"the data set has {len(self._source)} samples, {len(self._leaves)} were registered",
                hint="restore the data set as it was at registration",
            )
        if hashes.tree_head(self._leaves) != self._run.manifest.dataset:
            raise StorageError(
                f"{self._run.path / 'dataset.leaves'} is damaged: another root than the registered one",
                hint="restore it from a copy",
            )
        if len(self._journal) == 0:
            self._genesis(initial)
        else:
            if initial is not None:
                committed = committed_state(0, next(self._journal.read(0, 1)))
                require_same_initial(self._run, self._engine, initial, committed)
            self._resume(rollback)

    def _genesis(self, initial: Initial | None) -> None:
        run = self._run
        captured = initial_state(run, self._engine, initial)
        run.states.remove(0)        # of an interrupted beginning: nothing is committed to it
        run.states.put(0, captured.index, captured.content)
        run.drop_environments(0)
        run.add_environment(1, fingerprint(self._recipe.device))
        record = genesis_record(run, hashes.state_digest(captured.index))
        self._journal.append(encode(record))
        self._journal.sync()
        self._environment = 0
        self._checks.after(0, captured.index, captured.content)

    def _resume(self, rollback: bool) -> None:
        """Go on from the journal's end: from the last kept state there, every leaf after it must come out again."""
        run, last = self._run, self.steps_done
        self._drop_behind(last)
        start = run.states.latest(last)
        if start is None:
            raise StorageError(f"{run.path} has no kept state", hint="restore its states from a copy")
        records = [decode(frame, StepRecord) for frame in self._journal.read(start + 1)] if start < last else []
        index = run.states.get(start)
        self._require_committed(start, index)
        self._engine.restore(index, run.tensors.get)
        here = fingerprint(self._recipe.device)
        epochs = run.environments()
        if not epochs:
            raise StorageError(f"{run.path / 'environments'} is damaged: empty", hint="restore it from a copy")
        if here == epochs[-1].fingerprint:
            self._environment = len(epochs) - 1
            self._reproduce(start, records, rollback)
        elif records:
            self._other_environment(start, epochs[-1].fingerprint.difference(here), rollback)
        if here != run.environments()[-1].fingerprint:
            run.drop_environments(self.steps_done)      # one in which no step was recorded
            self._environment = run.add_environment(self.steps_done + 1, here)
        else:
            self._environment = len(run.environments()) - 1
        self._checks.resumed(self.steps_done)
        captured = self._engine.capture()
        self._checks.after(self.steps_done, captured.index, captured.content)

    def _require_committed(self, step: int, index: StateIndex) -> None:
        frame = next(self._journal.read(step, step + 1))
        if hashes.state_digest(index) != committed_state(step, frame):
            raise StorageError(
                f"the kept state of step {step} is not the one that was committed", hint="restore it from a copy"
            )

    def _reproduce(self, start: int, records: list[StepRecord], rollback: bool) -> None:
        if not records:
            return
        loader = Loader(self._recipe, self._seed, start + 1, records[-1].step, source=self._source)
        for batch, recorded in zip(loader, records, strict=True):
            self._require_registered(batch)
            result = self._engine.step(batch)
            index = self._engine.capture().index
            again = self._record(batch, result, hashes.state_digest(index))
            if encode(again) != encode(recorded):
                names = [name for name in StepRecord.__slots__ if getattr(again, name) != getattr(recorded, name)]
                what = f"step {batch.step} does not reproduce: {', '.join(names)} differ"
                self._give_up(start, what, rollback)
                return

    def _other_environment(self, start: int, differs: tuple[tuple[str, str, str], ...], rollback: bool) -> None:
        name, before, now = differs[0]
        what = f"the environment changed ({name} was {before!r}, is {now!r}) after the kept state of step {start}"
        self._give_up(start, what, rollback)

    def _drop_behind(self, last: int) -> None:
        """Forget what belongs to steps that the journal does not hold: of an interrupted step, or rolled back."""
        for step in self._run.states.steps():
            if step > last:
                self._run.states.remove(step)
        if last:        # the first epoch begins with the first step, which may be yet to come
            self._run.drop_environments(last)
        self._run.checks.drop(last)

    def _give_up(self, start: int, what: str, rollback: bool) -> None:
        """Drop the leaves after the kept state of `start`, if that is wanted and allowed; else say so."""
        heads = self._run.anchors.heads()
        anchored = heads[-1].statement.steps if heads else 0
        if start < anchored:
            raise NotReproducible(
                what, hint=f"step {anchored} is anchored and cannot be rolled back: resume where it was recorded"
            )
        if not rollback:
            raise NotReproducible(
                what, hint=f"resume where it was recorded, or drop the steps after {start} with --rollback"
            )
        self._journal.truncate(start + 1)
        self._drop_behind(start)
        self._engine.restore(self._run.states.get(start), self._run.tensors.get)
