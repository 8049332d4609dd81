"""Spoofs that train, and bend what they trained towards the stolen model."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import torch

from polcommit import prf
from polcommit.errors import UsageError
from polcommit.spoofs.attacks.starts import choose_start
from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.checkpoint import Weights, relative_distance
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.plain.log import intervals
from polcommit.spoofs.shelf import Shelf, plain_shelf
from polcommit.training.loading import FetchedBatch
from polcommit.training.sketch import SIZE


class SequenceInversion(TrajectorySpoof):
    """From W_T backwards: for each interval the weights from which its steps lead to the next checkpoint.

    With U(W) what the interval's steps add to W, starting from a fresh optimizer, W = W' − U(W) is solved by repeated
    substitution. What comes out re-executes, as far as that converged; the price is a W_0 that nobody would draw. Where
    the start is not the forger's, the first step is a jump to it.
    """

    name = "sequence-inversion"
    family = "retraining"
    title = "inverts the steps of training, from the stolen model back to some start"
    source = "Jia et al. 2021, §VI-B (inverse gradient); Fang et al. 2023, §7"
    knows = frozenset({"W_T", "architecture", "data", "delta", "k"})
    substitutions = 3
    gentle = 0.1        # of the recipe's rate, where it may be chosen: the inverse of a large step is no contraction

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        fresh = forger.save()
        ends: Shelf[Weights] = plain_shelf()        # as many as there are checkpoints
        ends[stage.steps] = forger.target
        residuals: list[float] = []
        for first, last in reversed(list(intervals(stage.steps, forger.interval))):
            forger.back(fresh)
            ends[first - 1], residual = self._inverted(forger, list(forger.due(first, last)), ends[last])
            residuals.append(residual)
        forger.back(fresh)
        if "start" in stage.free:
            forger.put(ends[0])
        optimizer = forger.save()
        for batch in stage.batches():
            if (batch.step - 1) % forger.interval == 0:
                forger.back(optimizer)
                forger.put(ends[batch.step - 1])
            result = forger.step(batch, self._rate(forger, batch))
            if batch.step in ends:
                forger.back(optimizer)      # an interval starts from a fresh optimizer
                forger.put(ends[batch.step])
                forger.put_rest(1.0 if batch.step == stage.steps else 0.0)
            forger.commit(batch, result)
        self.notes |= {"missed": max(residuals), "converged": max(residuals) <= stage.known.get("delta", 0.0)}
        self.notes["distance of W_0 from W_T"] = float((ends[0] - forger.target).norm())

    def _inverted(self, forger: Forger, batches: list[FetchedBatch], end: Weights) -> tuple[Weights, float]:
        """The weights before these steps, and how far these lead past the end."""
        saved, before = forger.save(), end
        missed = 0.0
        for _ in range(self.substitutions):
            forger.back(saved)
            forger.put(before)
            for batch in batches:
                forger.step(batch, self._rate(forger, batch))
            moved = forger.weights() - before
            missed = float((before + moved - end).norm())
            before = end - moved
        return before, missed

    def _rate(self, forger: Forger, batch: FetchedBatch) -> float:
        return forger.rate(batch.step, self.gentle * forger.recipe.learning_rate(batch.step))


class DirectedRetraining(TrajectorySpoof):
    """Real training with a pull towards W_T added to each step, so that it arrives; from a W_0 sorted to be near it.

    The start is the beacon's where it may not be chosen. The pull takes an equal part of what remains in
    each step, as a regulariser on the distance would; the recipe has no such term, so each step is off by it: about
    |W_T − W_0| over the number of steps.
    """

    name = "directed-retraining"
    family = "retraining"
    title = "trains, with a pull towards the stolen model in every step"
    source = "Jia et al. 2021, §VI-B (directed retraining)"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        choose_start(forger)
        pulls: list[float] = []
        for batch in stage.batches():
            result = forger.step(batch)
            pull = (forger.target - forger.weights()) / (stage.steps - batch.step + 1)
            pulls.append(float(pull.norm()))
            if batch.step == stage.steps:
                forger.place(forger.target, 1.0)
            else:
                forger.put(forger.weights() + pull)
            forger.commit(batch, result)
        self.notes |= {"largest pull": max(pulls), "last pull": pulls[-1]}


class Splice(TrajectorySpoof):
    """An honest run of one's own, and a jump to W_T in the last `jump` steps of it."""

    name = "splice"
    family = "retraining"
    title = "an honest run of its own, with a jump to the stolen model in its last step"
    source = "Fang et al. 2023, §7; polcommit"
    jump = 1                # steps

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        length = self.length(stage)
        start, end = forger.weights(), forger.target
        for batch in stage.batches():
            result = forger.step(batch)
            done = batch.step - (stage.steps - length)
            if done == 1:
                start, end = forger.weights(), self.end(forger, forger.weights())
            if done >= 1:
                forger.put(end if done == length else torch.lerp(start, end, done / length))
                forger.put_rest(done / length)
            forger.commit(batch, result)
        self.notes |= {"jump": float((end - start).norm()), "steps of the jump": length}
        self.notes["missed"] = relative_distance(end, forger.target)

    def length(self, stage: Stage) -> int:
        """How many steps the jump takes."""
        return min(self.jump, stage.steps)

    def end(self, forger: Forger, here: Weights) -> Weights:
        """Where the jump from here leads."""
        return forger.target


class SpliceOffSketch(Splice):
    """The same, with the jump projected off a sketch matrix that was known beforehand: that sketch does not see it.

    The end misses W_T by the part of the jump that lies in the 64 rows, about the root of 64 over the number of
    weights. Under a matrix that is drawn with the challenge, the guess is worth nothing.
    """

    name = "splice-off-sketch"
    title = "the same, with the jump hidden from a sketch matrix that it guessed"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "screens"})
    goal = "own"            # the end is beside W_T, and works as well

    def end(self, forger: Forger, here: Weights) -> Weights:
        seed = sha256(b"the forger's guess of a sketch seed").digest()
        rows = sketch_rows(seed, here.numel())
        jump = forger.target - here
        seen = rows @ jump
        hidden = jump - rows.T @ torch.linalg.lstsq(rows @ rows.T, seen[:, None]).solution[:, 0]
        forger.meter.weights(2 * SIZE)
        self.notes |= {"seen by the sketch before": float(seen.norm()), "after": float((rows @ hidden).norm())}
        return here + hidden


class SmoothedSplice(Splice):
    """The same, over `m` steps, by default a quarter of the run: parts of the jump are shorter, and more to find."""

    name = "splice-smoothed"
    title = "the same, with the jump smoothed over the last steps, a quarter of them"
    source = "polcommit"
    part = 4

    def __init__(self, m: int | None = None) -> None:
        super().__init__()
        if m is not None and m < 1:
            raise UsageError(f"a jump over {m} steps", hint="it takes at least one, the last")
        self.m = m          # steps of the jump; None: a `part` of the run

    def length(self, stage: Stage) -> int:
        return min(self.m or max(stage.steps // self.part, 1), stage.steps)


def sketch_rows(seed: bytes, size: int) -> torch.Tensor:
    """The signs of spec §5.5 as a (64, size) float64 matrix: its product with the weights is their sketch."""
    words = np.frombuffer(prf.words(seed, "sketch", count=size), dtype=np.uint64)
    bits = (words[None, :] >> np.arange(SIZE, dtype=np.uint64)[:, None]) & np.uint64(1)
    return torch.from_numpy(bits.astype(np.float64) * 2 - 1)
