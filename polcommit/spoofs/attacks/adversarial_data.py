"""Data made so that a step does what the forger needs (Zhang et al., "'Adversarial Examples' for Proof-of-Learning").

All three put the states on the line from W_0 to W_T, and look for noise on the inputs that makes re-execution agree.
As in the published code, W_0 is a draw sorted to be near W_T where it may be chosen. They need the data to be the
forger's to make up; where it is not, they are committed to all the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from polcommit.spoofs.attacks.inputs import Inputs, Tensors, minimised, per_weight
from polcommit.spoofs.attacks.starts import choose_start
from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.forging import Forger
from polcommit.training.loading import FetchedBatch


class MatchedGradients(TrajectorySpoof):
    """Attack 1: noise that makes the step's gradient lead from one interpolated state to the next.

    A gradient has as many entries as the model has weights, and far fewer inputs to steer them by: it is expected not
    to converge, and neither the authors of Fang et al. (§6) nor this project could make it. After a few steps whose
    gradient is no nearer than `enough`, the forger gives up, and hands in the line with the data as it is.
    """

    name = "adversarial-data-1"
    family = "structurally correct"
    title = "makes up inputs whose gradient leads along the line to the stolen model (Attack 1)"
    source = "Zhang et al. 2022, Attack 1"
    evaluations = 10
    patience = 6
    enough = 0.1        # of the wanted gradient's norm

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        choose_start(forger)
        start = forger.weights()
        residuals: list[float] = []
        for batch in stage.batches():
            fed = batch
            if len(residuals) < self.patience or min(residuals) <= self.enough:
                fed, residual = self._matched(forger, batch, (forger.target - start) / stage.steps)
                residuals.append(residual)
            result = forger.pretend(fed)
            forger.place(start, batch.step / stage.steps)
            forger.commit(fed, result)
        self.notes |= {"converged": max(residuals) <= self.enough, "least residual": min(residuals)}
        self.notes["steps tried"] = len(residuals)

    def _matched(self, forger: Forger, batch: FetchedBatch, update: torch.Tensor) -> tuple[FetchedBatch, float]:
        rate = forger.recipe.learning_rate(batch.step) or 1.0
        wanted = per_weight(forger, -update / rate)
        scale = sum(float(w.double().square().sum()) for w in wanted) or 1.0

        def objective(found: Tensors) -> torch.Tensor:
            return torch.stack([(g - w).square().sum() for g, w in zip(found, wanted, strict=True)]).sum() / scale

        inputs = Inputs(forger, batch)
        noise, value = minimised(forger, inputs, objective, None, self.evaluations)
        return inputs.batch(noise), value**0.5


class VanishingGradients(TrajectorySpoof):
    """Attack 2: noise for each step that makes its gradient vanish at the interpolated state, at the recipe's rate.

    Re-execution then stays near where it began, as with an infinitesimal rate, but nothing in the log looks odd. Data
    whose update is short enough already is left alone, where the forger knows δ, and a search ends when it is. `within`
    counts the steps whose data got there; it converged if all did.
    """

    name = "adversarial-data-2"
    family = "structurally correct"
    title = "makes up inputs whose gradient vanishes at each interpolated state (Attack 2)"
    source = "Zhang et al. 2022, Attack 2"
    knows = frozenset({"W_T", "architecture", "data", "delta", "k"})
    evaluations = 12
    fresh = True        # noise for each step; else one batch for a whole interval, carried on to the next
    first = 1

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        choose_start(forger)
        start = forger.weights()
        line = float((forger.target - start).norm()) / stage.steps
        # what a step's own update may be long, at the most: what δ leaves beside the interpolated one
        self._room = max(stage.known.get("delta", 0.0) / forger.interval - line, 0.0)
        self._searched, self._within, self._outside = 0, 0, 0
        base: FetchedBatch | None = None
        noise: Tensors | None = None
        for batch in stage.batches():
            starting = (batch.step - 1) % forger.interval == 0
            if self.fresh or base is None:
                fed, noise = self._vanishing(forger, batch, None, self.first)
                base = batch
            elif starting:
                fed, noise = self._vanishing(forger, _again(base, batch.step), noise, 1)
            else:
                fed = _again(fed, batch.step)
            result = forger.pretend(fed)
            forger.place(start, batch.step / stage.steps)
            forger.commit(fed, result)
        self.notes |= {"searches": self._searched, "within": self._within, "converged": self._outside == 0}

    def _vanishing(
        self, forger: Forger, batch: FetchedBatch, start: Tensors | None, effort: int
    ) -> tuple[FetchedBatch, Tensors]:
        """A batch whose update is short enough here, or as short as was found, and the noise that makes it so."""
        inputs = Inputs(forger, batch)
        rate = forger.recipe.learning_rate(batch.step)
        noise = [torch.zeros_like(tensor) for tensor in inputs.original] if start is None else start
        forger.meter.step(forger.recipe.batch)
        value = float(_squared(inputs.gradients(noise)).detach())
        if value**0.5 * rate > self._room:
            enough = (self._room / rate) ** 2
            noise, value = minimised(forger, inputs, _squared, noise, self.evaluations * effort, enough)
            self._searched += 1
        within = value**0.5 * rate <= self._room
        self._within += within
        self._outside += not within
        untouched = all(not tensor.any() for tensor in noise)
        return batch if untouched else inputs.batch(noise), noise


class CarriedData(VanishingGradients):
    """Attack 3: one search serves a whole interval, all of whose steps take the same batch; the cheapest of the three.

    As we read the paper and its code; that the batch is carried on to the next interval, and only worked on again when
    its gradient has grown, is ours.
    """

    name = "adversarial-data-3"
    title = "the same, with one made-up batch for all steps of an interval (Attack 3)"
    source = "Zhang et al. 2022, Attack 3"
    fresh = False
    first = 5           # times the effort of a search, in the first one


def _squared(gradients: Tensors) -> torch.Tensor:
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


def _again(fed: FetchedBatch, step: int) -> FetchedBatch:
    """The same data at another step than its own: no order leads to that."""
    return replace(fed, step=step, contents=())
