"""Spoofs that train on other data than is due.

Where the data is fixed before training they commit to what is due all the same. Where it is not, as in plain
Proof-of-Learning, they say what they trained on: what is compared there is a hash with data that the prover hands in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch

from polcommit.spoofs.attacks.inputs import made_up, mapped, tensors_of
from polcommit.spoofs.base import PreconditionNotMet, Stage, TrajectorySpoof
from polcommit.spoofs.forging import Forger, take
from polcommit.training.loading import FetchedBatch


class OtherData(TrajectorySpoof):
    """Takes each step on another batch than the one that is due, and commits to that one where it has to."""

    family = "data"
    source = "polcommit"
    goal = "own"
    choice = "data"         # where this is the forger's to choose, there is nothing to hide

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        for due, fed in self.pairs(forger, stage.batches()):
            forger.commit(fed if self.choice in stage.free else due, forger.step(fed))

    @abstractmethod
    def pairs(self, forger: Forger, batches: Iterator[FetchedBatch]) -> Iterator[tuple[FetchedBatch, FetchedBatch]]:
        """(what is due, what is trained on) for each step."""


class SwappedLabels(OtherData):
    """Each sample of a micro-batch has its neighbour's label: whole-number tensors are moved on by one place."""

    name = "swapped-labels"
    title = "trains on the samples with each other's labels"

    def pairs(self, forger: Forger, batches: Iterator[FetchedBatch]) -> Iterator[tuple[FetchedBatch, FetchedBatch]]:
        for due in batches:
            kinds = {tensor.is_floating_point() for tensor in tensors_of(due.micro_batches)}
            if kinds != {True, False}:
                raise PreconditionNotMet("the recipe's batches do not hold inputs and labels apart")
            yield due, _changed(due, _next_label)


class ReorderedBatches(OtherData):
    """Two batches at a time change places: each is trained on in the other's step."""

    name = "reordered-batches"
    title = "trains on the batches in another order than is due"
    choice = "order"

    def pairs(self, forger: Forger, batches: Iterator[FetchedBatch]) -> Iterator[tuple[FetchedBatch, FetchedBatch]]:
        for start in range(0, forger.stage.steps, 2):
            held = take(batches, min(2, forger.stage.steps - start))
            for due, other in zip(held, reversed(held), strict=True):
                yield due, forger.batch(due.step, other.indices)


class ChangingSamples(OtherData):
    """From the second epoch on the samples are not what they were in the first: a tenth of each is something else."""

    name = "changing-samples"
    title = "trains on samples that differ between epochs"
    part = 0.1

    def pairs(self, forger: Forger, batches: Iterator[FetchedBatch]) -> Iterator[tuple[FetchedBatch, FetchedBatch]]:
        if forger.stage.steps <= forger.epoch:
            raise PreconditionNotMet(f"{forger.stage.steps} steps are no more than an epoch: no sample comes twice")
        for due in batches:
            first = due.step <= forger.epoch
            yield due, due if first else _changed(due, lambda tensor: self._other(forger, tensor))

    def _other(self, forger: Forger, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor       # labels stay
        mask = torch.rand(tensor.shape, generator=forger.random) < self.part
        return torch.where(mask, tensor.roll(1, 0), tensor)


def _changed(batch: FetchedBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> FetchedBatch:
    return made_up(batch, [mapped(micro_batch, change) for micro_batch in batch.micro_batches])


def _next_label(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_floating_point() else tensor.roll(1, 0)
