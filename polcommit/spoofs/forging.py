"""The tools that trajectory spoofs share: weights as a vector, steps with their cost, states to try and to put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

import torch

from polcommit.errors import UsageError
from polcommit.spoofs.base import PreconditionNotMet, Stage
from polcommit.spoofs.checkpoint import Checkpoint, Weights, cut, flat, members, parameters, relative_distance
from polcommit.spoofs.rates import step_at
from polcommit.training.loading import FetchedBatch, Loader, batch_from_encoded, encoded_sample
from polcommit.training.recipe import Source
from polcommit.training.step import StepResult

#: A learning rate 'towards zero', as a share of what the recipe says (Fang et al., §6.1).
VANISHING = 1e-9


class Forger:
    """What a forger does on a stage. Counts what it costs.

    Raises:
        PreconditionNotMet: the stolen model is not one of this recipe.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.engine = stage.engine
        self.recipe = stage.recipe
        self.meter = stage.meter
        self.random = torch.Generator().manual_seed(stage.seed)
        live = members(self.engine.state)
        for name, tensor in live.items():
            if name not in stage.stolen or stage.stolen[name].shape != tensor.shape:
                raise PreconditionNotMet(f"the stolen model has no {name} of this recipe's form")
        self._first = {name: tensor.clone() for name, tensor in live.items()}
        self._encoded: dict[int, bytes] = {}

    # weights

    @cached_property
    def target(self) -> Weights:
        """W_T."""
        return flat(self.stage.stolen)

    def weights(self) -> Weights:
        """Of the model as it is."""
        return flat(members(self.engine.state))

    def missed(self) -> float:
        """How far the model as it is lies from the stolen one, as a share of that one's norm."""
        return relative_distance(self.weights(), self.target)

    @torch.no_grad()
    def put(self, weights: Weights) -> None:
        """Set the model's weights; costs an operation on each."""
        self.meter.weights()
        live = parameters(members(self.engine.state))
        for name, piece in cut(weights, live).items():
            live[name].copy_(piece)

    @torch.no_grad()
    def put_rest(self, share: float) -> None:
        """Set whatever the model holds besides weights: buffers, `share` of the way from the first state to W_T."""
        for name, tensor in members(self.engine.state).items():
            end, first = self.stage.stolen[name].to(tensor.device), self._first[name]
            if tensor.is_floating_point() and not name.startswith("parameter/"):
                tensor.copy_(end if share >= 1.0 else torch.lerp(first, end, share))
            elif not tensor.is_floating_point() and share >= 1.0:
                tensor.copy_(end)

    def place(self, start: Weights, share: float) -> None:
        """The model `share` of the way from `start` to the stolen one, buffers and all."""
        self.put(self.target if share >= 1.0 else torch.lerp(start, self.target, share))
        self.put_rest(share)

    def noise(self, like: Weights) -> Weights:
        """A random vector of length 1 with entries in proportion to those of `like`, and signs of its own."""
        signs = torch.randint(0, 2, like.shape, generator=self.random).to(like.dtype) * 2 - 1
        vector = signs * like.abs()
        return vector / vector.norm().clamp_min(1e-300)

    # steps

    def rate(self, step: int, wanted: float) -> float:
        """The rate to claim: the wanted one, where the forger may choose it."""
        return wanted if "rate" in self.stage.free else self.recipe.learning_rate(step)

    def vanishing(self, step: int) -> float:
        """A rate towards zero, where the forger may choose it."""
        return self.rate(step, VANISHING * (self.recipe.learning_rate(step) or 1.0))

    def step(self, batch: FetchedBatch, rate: float | None = None) -> StepResult:
        """Train one step on a batch, at the recipe's rate or another."""
        self.meter.step(self.recipe.batch)
        return step_at(self.engine, batch, rate)

    def pretend(self, batch: FetchedBatch, rate: float | None = None) -> StepResult:
        """What a step's record would say, for a state that is then overwritten.

        Where losses are submitted the step is run, for its loss and for an optimizer state of the right form.
        """
        due = self.recipe.learning_rate(batch.step) if rate is None else rate
        if self.stage.losses:
            return self.step(batch, rate)
        return StepResult(step=batch.step, loss=0.0, learning_rate=due, clipped=False, skipped=False)

    def commit(self, batch: FetchedBatch, result: StepResult) -> None:
        """Say that this is the state after the step, trained on this batch."""
        self.stage.commit(batch, result)

    # what else a forger has

    def due(self, first: int = 1, last: int | None = None) -> Iterator[FetchedBatch]:
        """The batches that the order demands of steps `first` to `last`, to look at before the stage is asked."""
        last = self.stage.steps if last is None else last
        return iter(Loader(self.recipe, self.engine.seed, first, last, source=self.source))

    def batch(self, step: int, indices: Sequence[int]) -> FetchedBatch:
        """These samples as the batch of a step, whatever the order demands."""
        for index in indices:
            if index not in self._encoded:
                self._encoded[index] = encoded_sample(self.source, index)
        encoded = [self._encoded[index] for index in indices]
        return batch_from_encoded(self.recipe, self.engine.seed, step, encoded, indices)

    @cached_property
    def source(self) -> Source:
        """The data set."""
        return self.recipe.source()

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return max(len(self.source) // self.recipe.batch, 1)

    @property
    def interval(self) -> int:
        """k: steps between the checkpoints that are looked at; 1 where every step is."""
        return int(self.stage.known.get("k", 1))

    @property
    def top(self) -> int:
        """Q: intervals that are looked at in each epoch; 5, as in the papers, where nobody says."""
        return int(self.stage.known.get("Q", 5))

    def save(self) -> Checkpoint:
        """The state, to go back to."""
        return Checkpoint.take(self.engine.state)

    def back(self, checkpoint: Checkpoint) -> None:
        """Go back to it."""
        checkpoint.load(self.engine.state)


def take(batches: Iterator[FetchedBatch], count: int) -> list[FetchedBatch]:
    """The next batches, exactly this many.

    Raises:
        UsageError: there are fewer: the stage's `steps` and its batches disagree.
    """
    taken = list(islice(batches, count))
    if len(taken) != count:
        raise UsageError(f"the stage has {len(taken)} more batches, not {count}")
    return taken
