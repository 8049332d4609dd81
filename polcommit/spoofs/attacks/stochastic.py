"""Spoofs that take valid steps only, and choose what is random about them (Fang et al. 2023, §7 and appendix C).

Every step but the last is one that the recipe would take. The last is a jump to W_T, for that is what is claimed: how
long it is says how far knowing W_T led. The paper found that it does not lead there; `left` says how it went here.
Where order or data are not the forger's to choose, the choice is committed to all the same.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from polcommit.spoofs.attacks.inputs import Inputs, Tensors, minimised, per_weight
from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.checkpoint import Weights
from polcommit.spoofs.forging import Forger
from polcommit.training.loading import FetchedBatch
from polcommit.training.step import StepResult


class ValidSteps(TrajectorySpoof):
    """Steps of a subclass's choice, and a jump at the end."""

    family = "stochastic"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        first = float((forger.target - forger.weights()).norm())
        nearest, left = first, first
        self.begin(forger)
        for due in stage.batches():
            batch, result = self.take(forger, due)
            left = float((forger.target - forger.weights()).norm())
            nearest = min(nearest, left)
            if due.step == stage.steps:
                forger.place(forger.target, 1.0)
            forger.commit(batch, result)
        self.notes |= {"left": left / first, "nearest": nearest / first, "converged": left < 0.01 * first}

    def begin(self, forger: Forger) -> None:
        """Before the first step."""

    @abstractmethod
    def take(self, forger: Forger, due: FetchedBatch) -> tuple[FetchedBatch, StepResult]:
        """Take a step; returns what it was taken on."""


class DataOrdering(ValidSteps):
    """Takes, of a few batches that the epoch still holds, the one whose step leads nearest to W_T.

    All samples are real and each is used once an epoch; only their order is chosen, batch by batch.
    """

    name = "data-ordering"
    title = "chooses the order of the data so that each step leads towards the stolen model"
    source = "Fang et al. 2023, §7.1"
    pool = 3

    def begin(self, forger: Forger) -> None:
        self._open: list[tuple[int, ...]] = []
        self._ahead = forger.due()

    def take(self, forger: Forger, due: FetchedBatch) -> tuple[FetchedBatch, StepResult]:
        remaining = forger.epoch - (due.step - 1) % forger.epoch
        remaining = min(remaining, forger.stage.steps - due.step + 1)
        while len(self._open) < min(self.pool, remaining):
            self._open.append(next(self._ahead).indices)
        saved = forger.save()
        best: tuple[float, int, Any] | None = None
        for place, indices in enumerate(self._open):
            forger.back(saved)
            batch = forger.batch(due.step, indices)
            result = forger.step(batch)
            left = float((forger.target - forger.weights()).norm())
            if best is None or left < best[0]:
                best = (left, place, (batch, result, forger.save()))
        assert best is not None
        self._open.pop(best[1])
        batch, result, state = best[2]
        forger.back(state)
        return batch, result


class SyntheticData(ValidSteps):
    """Makes up the inputs of each step so that its gradient points away from W_T as straight as it can be made to.

    Data and weights take turns: noise on the inputs is searched for at the weights of the moment, then the step is
    taken, at the recipe's rate, and the next search starts from the noise of the last.
    """

    name = "synthetic-data"
    title = "makes up data, step by step, so that training leads towards the stolen model"
    source = "Fang et al. 2023, §7.2"
    evaluations = 4

    def begin(self, forger: Forger) -> None:
        self._noise: Tensors | None = None
        self._cosines: list[float] = []

    def take(self, forger: Forger, due: FetchedBatch) -> tuple[FetchedBatch, StepResult]:
        wanted = per_weight(forger, forger.weights() - forger.target)
        length = sum(float(w.double().square().sum()) for w in wanted) ** 0.5 or 1.0

        def objective(found: Tensors) -> torch.Tensor:
            along = torch.stack([(g * w).sum() for g, w in zip(found, wanted, strict=True)]).sum()
            norm = torch.stack([g.square().sum() for g in found]).sum().clamp_min(1e-24).sqrt()
            return 1.0 - along / (norm * length)

        inputs = Inputs(forger, due)
        self._noise, value = minimised(forger, inputs, objective, self._noise, self.evaluations)
        self._cosines.append(1.0 - value)
        self.notes["mean cosine"] = sum(self._cosines) / len(self._cosines)
        batch = inputs.batch(self._noise)
        return batch, forger.step(batch)


class AdversarialRna(ValidSteps):
    """Every `window` steps, the combination of the last iterates that lies nearest to W_T, claimed as an acceleration.

    Regularised nonlinear acceleration takes weighted sums of iterates, with weights that sum to 1, as a step of its
    own. Here the weights are fitted to the stolen model instead. Iterates of one run span few directions of many, so
    what they can be combined to stays far from W_T.
    """

    name = "adversarial-rna"
    title = "combines its iterates to lie near the stolen model, and calls it an acceleration step"
    source = "Fang et al. 2023, appendix C"
    window = 10
    ridge = 1e-6

    def begin(self, forger: Forger) -> None:
        self._iterates: list[Weights] = [forger.weights()]

    def take(self, forger: Forger, due: FetchedBatch) -> tuple[FetchedBatch, StepResult]:
        result = forger.step(due)
        self._iterates.append(forger.weights())
        if due.step % self.window == 0:
            forger.put(self._combined(forger.target))
            forger.meter.weights(len(self._iterates) ** 2)
            self._iterates = [forger.weights()]
        return due, result

    def _combined(self, target: Weights) -> Weights:
        base = self._iterates[-1]
        directions = torch.stack([iterate - base for iterate in self._iterates[:-1]])
        products = directions @ directions.T
        products += self.ridge * products.diagonal().mean() * torch.eye(len(products), dtype=products.dtype)
        coefficients = torch.linalg.solve(products, directions @ (target - base))
        return base + coefficients @ directions
