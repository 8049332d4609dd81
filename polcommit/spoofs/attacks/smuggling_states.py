"""Spoofs that hide what they do in the parts of a state that a look at the weights does not show."""

from __future__ import annotations

from dataclasses import replace

import torch

from polcommit.spoofs.base import PreconditionNotMet, Stage, TrajectorySpoof
from polcommit.spoofs.checkpoint import Weights, cut, members, parameters
from polcommit.spoofs.forging import Forger
from polcommit.training.loading import FetchedBatch
from polcommit.training.step import StepResult, named_parameters

#: The slots in which torch's optimizers keep a first moment: an update is affine in them.
MOMENTA = ("momentum_buffer", "exp_avg")


class ForgedMomentum(TrajectorySpoof):
    """An honest run of one's own; before the last interval, momentum such that its first step lands on W_T.

    An optimizer's update is affine in its momentum, element by element. Two probes of the step, without momentum and
    with some, give the line, and the line gives the momentum that leads anywhere. The step itself is then real. What
    is wrong is the optimizer's part of one checkpoint: whoever takes that over from the prover, and compares weights
    only, finds nothing. The interval's other steps are taken at a rate towards zero where that may be chosen.
    """

    name = "forged-momentum"
    family = "smuggling"
    title = "an honest run of its own, and forged momentum that makes one step land on the stolen model"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "k"})
    corrections = 3

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        landing = (stage.steps - 1) // forger.interval * forger.interval + 1
        if landing < 2:
            raise PreconditionNotMet("all steps lie in one interval: no checkpoint's momentum can be forged")
        batches = stage.batches()
        upcoming = next(batches)
        for step in range(1, stage.steps + 1):
            batch = upcoming
            upcoming = next(batches, batch)
            result = forger.step(batch, forger.vanishing(step) if step > landing else None)
            if step == landing - 1:
                self._aim(forger, upcoming)
            if step == landing:
                self.notes["missed"] = forger.missed()
            if step == stage.steps:
                forger.put_rest(1.0)
            forger.commit(batch, result)

    def _aim(self, forger: Forger, batch: FetchedBatch) -> None:
        """Give the optimizer the momentum with which the batch's step leads to W_T."""
        key, saved = self._key(forger), forger.save()
        size = 1.0 / (forger.recipe.learning_rate(batch.step) or 1.0)
        ends = []
        for value in (0.0, size):
            momentum = torch.full_like(forger.target, value)
            ends.append(self._tried(forger, batch, key, momentum))
            forger.back(saved)
        slope = (ends[1] - ends[0]) / size
        moves = slope != 0                      # not what the optimizer does not train
        if not moves.any():
            raise PreconditionNotMet(f"{key} moves no weight in step {batch.step}")
        momentum = torch.where(moves, (forger.target - ends[0]) / slope, 0.0)
        for _ in range(self.corrections):
            missed = forger.target - self._tried(forger, batch, key, momentum)
            momentum = torch.where(moves, momentum + missed / slope, 0.0)
            forger.back(saved)
        self._set(forger, key, momentum)

    def _tried(self, forger: Forger, batch: FetchedBatch, key: str, momentum: Weights) -> Weights:
        self._set(forger, key, momentum)
        forger.step(batch)
        return forger.weights()

    def _key(self, forger: Forger) -> str:
        slots = forger.engine.state.optimizer.state
        for key in MOMENTA:
            if slots and all(isinstance(held.get(key), torch.Tensor) for held in slots.values()):
                return key
        name = type(forger.engine.state.optimizer).__name__
        raise PreconditionNotMet(f"{name} keeps no momentum to forge, as this recipe sets it up")

    @torch.no_grad()
    def _set(self, forger: Forger, key: str, momentum: Weights) -> None:
        state = forger.engine.state
        live = named_parameters(state.model)
        for name, piece in cut(momentum, parameters(members(state))).items():
            held = state.optimizer.state.get(live[name.removeprefix("parameter/")])
            if held:
                held[key].copy_(piece)


class ForgedBuffers(TrajectorySpoof):
    """An honest run of one's own, with the stolen model's running statistics in place of its own in every state.

    In training mode a step does not read them, so re-executed weights agree; the released model is another one.
    """

    name = "forged-buffers"
    family = "smuggling"
    title = "an honest run of its own, with other batch-norm statistics than training gave"
    source = "polcommit"
    goal = "own"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        if not any(n.startswith("buffer/") and t.is_floating_point() for n, t in members(forger.engine.state).items()):
            raise PreconditionNotMet("the recipe's model has no floating-point buffers")
        for batch in stage.batches():
            result = forger.step(batch)
            forger.put_rest(1.0)
            forger.commit(batch, result)


class RoundedWeights(TrajectorySpoof):
    """Every state is rounded to bfloat16: a run in half the memory, passed off as one in full precision."""

    name = "rounded-weights"
    family = "smuggling"
    title = "rounds the weights of every state to bfloat16"
    source = "polcommit"
    goal = "own"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        moved = 0.0
        for batch in stage.batches():
            result = forger.step(batch)
            before = forger.weights()
            forger.put(before.to(torch.bfloat16).double())
            moved = max(moved, float((forger.weights() - before).norm()))
            forger.commit(batch, result)
        self.notes["largest rounding"] = moved


class OtherRate(TrajectorySpoof):
    """Trains at half the learning rate that is due, and commits to the due one wherever the rate is not its to say."""

    name = "other-learning-rate"
    family = "smuggling"
    title = "trains at another learning rate than is due"
    source = "polcommit"
    goal = "own"
    factor = 0.5

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        for batch in stage.batches():
            due = forger.recipe.learning_rate(batch.step)
            result = forger.step(batch, self.factor * due)
            forger.commit(batch, _claiming(result, forger.rate(batch.step, result.learning_rate)))


class ForgedScheduler(TrajectorySpoof):
    """The scheduler of one state is set back to the beginning, so that the steps after it go by another schedule."""

    name = "forged-scheduler"
    family = "smuggling"
    title = "sets the scheduler's state back half-way through, and claims the rates that were due"
    source = "polcommit"
    goal = "own"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        scheduler = forger.engine.state.scheduler
        if scheduler is None or stage.steps < 3:
            raise PreconditionNotMet("the recipe has no scheduler with a state: its rate is a function of the step")
        young: dict[str, object] = {}
        rates: list[float] = []
        seen = 0.0
        for batch in stage.batches():
            due = forger.recipe.learning_rate(batch.step)
            result = forger.step(batch)
            seen = max(seen, abs(result.learning_rate - due))
            if batch.step == 1:
                young = dict(scheduler.state_dict())
                rates = [float(group["lr"]) for group in forger.engine.state.optimizer.param_groups]
            if batch.step == stage.steps // 2:
                scheduler.load_state_dict(young)
                for group, rate in zip(forger.engine.state.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            forger.commit(batch, _claiming(result, forger.rate(batch.step, result.learning_rate)))
        self.notes["largest difference of rates"] = seen


def _claiming(result: StepResult, rate: float) -> StepResult:
    return replace(result, learning_rate=rate)

