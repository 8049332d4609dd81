"""Where a made-up trajectory is submitted to polcommit: a run folder of the forger's own.

Everything is written as recording would write it, only that nobody makes sure that a step leads from one state to the
next. Every state is kept, so that whatever is drawn can be opened: what no step leads to cannot be had again by
re-execution. Whether there is room for all of them is looked at before the first is written.

What is the forger's to choose:

    registered    nothing. W_0 and order are the beacon's; the data is committed before it; the rate is the recipe's,
                  which a forger chooses only by registering other hyperparameters (`spoof run --set`)
    post hoc      'start': W_0 is whatever the forger says it was. The order follows from a seed that the manifest
                  names; by trying seeds it can be influenced, and not be made up

A spoof that wants more commits to more all the same, and sees what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from polcommit import prf
from polcommit import transcript as hashes
from polcommit.encoding import encode
from polcommit.errors import UsageError
from polcommit.records import Fingerprint, StepRecord
from polcommit.session.initial import initial_state
from polcommit.session.run import genesis_record, is_post_hoc, seed_of
from polcommit.spoofs.base import Stage
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.shelf import require_room, state_sizes
from polcommit.storage.journal import Journal
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import fingerprint
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.state import Captured
from polcommit.training.step import StepResult

Alter = Callable[[int, Captured], Captured]     # (step, state after it)

#: What is the forger's to choose, by whether the run is post hoc.
FREE = {False: frozenset[str](), True: frozenset({"start"})}


@dataclass(slots=True)
class RunFolderStage(Stage):
    """Commits into `folder`, a run that may record. Use as a context manager: it holds the folder's lock."""

    folder: RunFolder = field(kw_only=True)
    alter: Alter | None = None          # what is committed of each state, where that is not the engine's as it is
    claimed: Fingerprint | None = None  # the environment that the steps are said to come from; None: this one
    _leaves: list[bytes] = field(default_factory=list)
    _journal: Journal | None = None
    _held: ExitStack = field(default_factory=ExitStack)
    _done: int = 0

    def __enter__(self) -> RunFolderStage:
        with ExitStack() as held:
            held.enter_context(self.folder.lock())
            self._journal = held.enter_context(self.folder.journal())
            self._held = held.pop_all()
        self._leaves = self.folder.dataset_leaves()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def resume(self, step: int) -> None:
        """Go on behind the steps that the folder holds already, from the state after `step`, the last of them."""
        self.engine.restore(self.folder.states.get(step), self.folder.tensors.get)
        self._done = step

    def batches(self) -> Iterator[FetchedBatch]:
        """Raises StorageError: there is no room for the states."""
        count = self.steps + 1 - self._done
        require_room(count, state_sizes(self.engine.schema), self.folder.path, f"{count:,} states")
        if not self._done:
            self._genesis()
        yield from Loader(self.recipe, self.engine.seed, self._done + 1, self.steps)

    def commit(self, batch: FetchedBatch, result: StepResult) -> None:
        """A batch without `indices` is not of the data set: its record names the samples that the order demands."""
        journal = self._open_journal()
        step = len(journal)
        if step == 0:
            raise UsageError("a step was committed before the first batch was asked for: W_0 is not known")
        if (batch.step, result.step) != (step, step):
            raise UsageError(f"step {step} is due, but what is committed is of {batch.step} and {result.step}")
        indices = batch.indices or self.due(step)
        captured = self._captured(step)
        self.folder.states.put(step, captured.index, captured.content)
        record = StepRecord(
            step=step,
            samples=hashes.samples_digest(self._leaves[index] for index in indices),
            batch=batch.digest,
            state=hashes.state_digest(captured.index),
            loss=result.loss,
            learning_rate=result.learning_rate,
            clipped=result.clipped,
            skipped=result.skipped,
            environment=0,
        )
        journal.append(encode(record))

    def due(self, step: int) -> tuple[int, ...]:
        """Dataset indices of the samples that the order demands for a step."""
        return prf.batch_indices(self.engine.seed, step, len(self._leaves), self.recipe.batch)

    def finish(self, *, partial: bool = False) -> None:
        """Make it durable. Raises UsageError: not every step was committed, and it was not to be `partial`."""
        journal = self._open_journal()
        if len(journal) != self.steps + 1 and not partial:
            raise UsageError(f"{max(len(journal) - 1, 0)} of {self.steps} steps were committed")
        journal.sync()

    def _captured(self, step: int) -> Captured:
        captured = self.engine.capture()
        return captured if self.alter is None else self.alter(step, captured)

    def _open_journal(self) -> Journal:
        assert self._journal is not None, "use the stage as a context manager"
        return self._journal

    def _genesis(self) -> None:
        captured = self._captured(0)
        self.folder.add_environment(1, self.claimed or fingerprint(self.recipe.device))
        self.folder.states.put(0, captured.index, captured.content)
        self._open_journal().append(encode(genesis_record(self.folder, hashes.state_digest(captured.index))))


def open_stage(
    folder: RunFolder, recipe: Recipe, stolen: Mapping[str, torch.Tensor], meter: Meter, *, seed: int = 0, **more: Any
) -> RunFolderStage:
    """A stage over a folder that may be recorded into; its engine is at the W_0 that is the run's. `more`: its fields.

    `stolen` is W_T by entry name, `seed` that of the forger's own random choices.
    """
    engine = Engine(recipe, seed_of(folder))
    initial_state(folder, engine, None)
    return RunFolderStage(
        recipe=recipe, engine=engine, stolen=stolen, steps=recipe.steps, meter=meter, seed=seed,
        free=FREE[is_post_hoc(folder)], folder=folder, **more,
    )  # fmt: skip
