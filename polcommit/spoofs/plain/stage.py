"""Where a trajectory spoof submits to plain Proof-of-Learning: everything is the forger's to choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from polcommit.errors import UsageError
from polcommit.spoofs.base import Stage
from polcommit.spoofs.checkpoint import Checkpoint
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.plain.log import Log, LoggedStep
from polcommit.spoofs.plain.verifier import Terms
from polcommit.spoofs.shelf import Shelf, require_room, state_sizes
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.step import StepResult

FREE = frozenset({"start", "order", "rate", "optimizer", "data"})


@dataclass(slots=True)
class PlainStage(Stage):
    """Logs what is committed, with a checkpoint every k steps and after the last.

    Checkpoints and made-up data go to files, which are gone with stage and log. What stays in memory of each step is
    which samples it took.
    """

    terms: Terms = field(default_factory=Terms)
    _steps: list[LoggedStep] = field(default_factory=list)
    _checkpoints: Shelf[Checkpoint] = field(default_factory=lambda: Shelf(Checkpoint.tree, Checkpoint.back))
    _supplied: Shelf[FetchedBatch] = field(default_factory=lambda: Shelf(_tree, _batch))

    def batches(self) -> Iterator[FetchedBatch]:
        """Raises StorageError: there is no room for the checkpoints."""
        count = 1 - (-self.steps // self.terms.interval)
        size = sum(state_sizes(self.engine.schema))
        require_room(count, [size], self._checkpoints.folder, f"{count:,} checkpoints")
        self._checkpoints[0] = Checkpoint.take(self.engine.state)
        yield from Loader(self.recipe, self.engine.seed, 1, self.steps)

    def commit(self, batch: FetchedBatch, result: StepResult) -> None:
        """A batch without `contents` leads to no samples of the data set, and is sent along with the log."""
        step = len(self._steps) + 1
        if not self._checkpoints:
            raise UsageError("a step was committed before the first batch was asked for: W_0 is not known")
        if (batch.step, result.step) != (step, step):
            raise UsageError(f"step {step} is due, but what is committed is of {batch.step} and {result.step}")
        if not batch.contents:
            self._supplied[step] = batch
        self._steps.append(
            LoggedStep(
                step=step, indices=batch.indices, digest=batch.digest, learning_rate=result.learning_rate
            )
        )
        if step % self.terms.interval == 0 or step == self.steps:
            self._checkpoints[step] = Checkpoint.take(self.engine.state)

    def log(self) -> Log:
        """The submission.

        Raises:
            UsageError: not every step was committed.
        """
        if len(self._steps) != self.steps:
            raise UsageError(f"{len(self._steps)} of {self.steps} steps were committed")
        return Log(
            seed=self.engine.seed, interval=self.terms.interval, steps=tuple(self._steps),
            checkpoints=self._checkpoints, supplied=self._supplied,
        )  # fmt: skip


def _tree(batch: FetchedBatch) -> object:
    return batch.step, batch.indices, batch.micro_batches, batch.digest


def _batch(tree: Any) -> FetchedBatch:
    step, indices, micro_batches, digest = tree
    return FetchedBatch(step=step, indices=indices, contents=(), micro_batches=micro_batches, digest=digest)


def open_stage(
    recipe: Recipe, seed: bytes, stolen: Mapping[str, torch.Tensor], terms: Terms, choices: int,
    delta: float = 0.0,
) -> PlainStage:
    """A stage with an engine at W_0 under `seed` (32 bytes); `choices` seeds the forger's own random choices.

    `delta` is the L2 distance that is tolerated, which a forger who knows δ and d_ref can work out; 0 if it cannot.
    """
    engine = Engine(recipe, seed)
    engine.initial()
    known = {"delta": delta, "k": float(terms.interval)}
    if terms.top is not None:
        known["Q"] = float(terms.top)
    return PlainStage(
        recipe=recipe, engine=engine, stolen=stolen, steps=recipe.steps, meter=Meter(), seed=choices, free=FREE,
        known=known, losses=False, terms=terms,
    )  # fmt: skip
