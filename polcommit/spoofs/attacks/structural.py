"""Spoofs whose logs are structurally correct, and empty: states on a line, and learning rates that explain nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from polcommit.spoofs.base import PreconditionNotMet, Stage, TrajectorySpoof
from polcommit.spoofs.checkpoint import Checkpoint, Weights
from polcommit.spoofs.forging import Forger, take
from polcommit.spoofs.plain.log import by_epoch
from polcommit.training.loading import FetchedBatch
from polcommit.training.step import StepResult


class InfinitesimalUpdate(TrajectorySpoof):
    """States on the straight line from W_0 to W_T, with a learning rate towards zero.

    Nothing is trained. A verifier who re-executes an interval at that rate stays where the interval began, so what it
    measures is the distance between two checkpoints: below δ as soon as there are enough of them, even when every
    interval is checked. Costs one operation on each weight a step. Where the rate is not the forger's, the recipe's
    is claimed, and the re-executed update shows.
    """

    name = "infinitesimal-update"
    family = "structurally correct"
    title = "interpolates from W_0 to the stolen model, at a learning rate towards zero"
    source = "Fang et al. 2023, §6.1"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        start = forger.weights()
        for batch in stage.batches():
            result = forger.pretend(batch, forger.vanishing(batch.step))
            forger.place(start, batch.step / stage.steps)
            forger.commit(batch, result)
        self.notes["distance a step"] = float((forger.target - start).norm()) / stage.steps


class MatchedNorms(TrajectorySpoof):
    """The same line, with a jitter around it, so that updates are as long as an honest run's.

    A few honest steps from W_0 show how long an update is for its learning rate, and which weights move. The jitter
    is random in sign, as large in each weight as honest updates are, and gone in the last step. What hides the line
    from a look at update norms makes the distance that a re-execution measures larger: against a small δ this is the
    weaker attack.
    """

    name = "infinitesimal-matched-norms"
    family = "structurally correct"
    title = "the same, jittered so that update norms are an honest run's"
    source = "Fang et al. 2023, §6.1; the norms: polcommit"
    probes = 5

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        start = forger.weights()
        batches = stage.batches()
        held = take(batches, min(self.probes, stage.steps))
        shape, scale = self._probe(forger, held)
        line = float((forger.target - start).norm()) / stage.steps
        for batch in _chain(held, batches):
            result = forger.pretend(batch, forger.vanishing(batch.step))
            forger.place(start, batch.step / stage.steps)
            norm = scale * forger.recipe.learning_rate(batch.step)
            if batch.step < stage.steps and norm > line:
                # two jitters of this length, one after the other, are as far apart as the update has to be long
                radius = ((norm**2 - line**2) / 2) ** 0.5
                forger.put(forger.weights() + radius * forger.noise(shape))
            forger.commit(batch, result)
        self.notes["update norm per learning rate"] = scale

    def _probe(self, forger: Forger, batches: list[FetchedBatch]) -> tuple[Weights, float]:
        """How the last of a few honest steps moved each weight, and how far for its rate; the state is put back."""
        saved = forger.save()
        before = forger.weights()
        rate = 0.0
        for batch in batches:
            before = forger.weights()
            rate = forger.step(batch).learning_rate
        moved = forger.weights() - before
        forger.back(saved)
        return moved, float(moved.norm()) / rate if rate else 0.0


class BlindfoldTopQ(TrajectorySpoof):
    """Q honest intervals in each epoch, with the largest updates by construction; the rest is made up.

    The verifier checks the Q largest updates of an epoch, so it is given Q real ones, at whatever learning rate makes
    them the largest. The others lead in equal parts to the epoch's waypoint on the line to W_T, each shorter than the
    shortest real one; how much of the line an epoch takes goes by how many intervals are left to make up. An epoch
    with too few of them stays where it is, at a rate towards zero. Costs Q·k of an epoch's steps, and as much again
    whenever the rate has to be raised. Where the rate is not the forger's, the made-up intervals may be the larger
    ones; `hidden` says in how many of the epochs that were forged they are not.
    """

    name = "blindfold-top-q"
    family = "structurally correct"
    title = "trains the Q intervals that will be checked, and makes up the rest"
    source = "Fang et al. 2023, §6.2"
    knows = frozenset({"W_T", "architecture", "data", "Q", "k"})
    tries = 12
    margin = 0.9        # of the shortest real update: what a made-up one may be long
    room = 1.5          # made-up intervals for each real one: fewer are used up on the way back from the real ones

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        start = forger.weights()
        epochs = by_epoch(stage.steps, forger.interval, forger.epoch)
        parts = self._parts(forger, [len(stretches) for stretches in epochs])
        batches = stage.batches()
        factor, hidden, done = 1.0, 0, 0.0
        for stretches, part in zip(epochs, parts, strict=True):
            held = take(batches, stretches[-1][1] - stretches[0][0] + 1)
            if part == 0.0:
                self._idle(forger, held)
                continue
            done += part
            share = 1.0 if done > 1.0 - 1e-9 else done
            waypoint = forger.target if share == 1.0 else torch.lerp(start, forger.target, share)
            factor, kept = self._epoch(forger, stretches, held, waypoint, factor, share)
            hidden += kept
        self.notes |= {"hidden": hidden, "forged epochs": sum(part > 0 for part in parts), "rate factor": factor}

    def _parts(self, forger: Forger, sizes: list[int]) -> list[float]:
        """The share of the way that each epoch of so many intervals takes."""
        spare = [max(size - forger.top, 0) for size in sizes]
        if not any(spare):
            raise PreconditionNotMet(f"no epoch has more than {forger.top} intervals: every one of them is checked")
        roomy = [max(count - self.room * forger.top, 0.0) for count in spare]
        chosen = roomy if any(roomy) and "rate" in forger.stage.free else [float(count) for count in spare]
        return [count / sum(chosen) for count in chosen]

    def _epoch(
        self, forger: Forger, stretches: list[tuple[int, int]], batches: list[FetchedBatch], waypoint: Weights,
        factor: float, share: float,
    ) -> tuple[float, bool]:  # fmt: skip
        """Commit an epoch that ends at `waypoint`; returns the factor on the rate, and whether the rest is hidden."""
        genuine, made_up = stretches[: forger.top], stretches[forger.top :]
        real = batches[: genuine[-1][1] - genuine[0][0] + 1]
        saved = forger.save()
        for _ in range(self.tries):
            forger.back(saved)
            trained, shortest = self._train(forger, real, genuine, factor)
            needed = float((waypoint - forger.weights()).norm()) / len(made_up)
            hidden = needed <= self.margin * shortest
            if hidden or "rate" not in forger.stage.free or not math.isfinite(needed):
                break
            factor *= min(max(2.0 * needed / (self.margin * shortest), 1.5), 100.0) if shortest else 100.0
        for batch, (result, checkpoint) in zip(real, trained, strict=True):
            forger.back(checkpoint)
            forger.commit(batch, result)
        self._lead(forger, batches[len(real) :], made_up, waypoint, share)
        return factor, hidden

    def _train(
        self, forger: Forger, batches: list[FetchedBatch], genuine: list[tuple[int, int]], factor: float
    ) -> tuple[list[tuple[StepResult, Checkpoint]], float]:
        """The real steps with the states after them, and the length of the shortest interval's update."""
        trained: list[tuple[StepResult, Checkpoint]] = []
        lengths: list[float] = []
        steps = iter(batches)
        for first, last in genuine:
            before = forger.weights()
            for batch in take(steps, last - first + 1):
                rate = forger.rate(batch.step, factor * forger.recipe.learning_rate(batch.step))
                trained.append((forger.step(batch, rate), forger.save()))
            lengths.append(float((forger.weights() - before).norm()))
        return trained, min(lengths)

    def _lead(
        self, forger: Forger, batches: list[FetchedBatch], made_up: list[tuple[int, int]], waypoint: Weights,
        reached: float,
    ) -> None:  # fmt: skip
        """Commit the made-up intervals: equal parts of the way to the waypoint, which lies at `reached` of the line."""
        origin, steps = forger.weights(), iter(batches)
        for number, (first, end) in enumerate(made_up, 1):
            for batch in take(steps, end - first + 1):
                result = forger.pretend(batch)
                inside = (batch.step - first + 1) / (end - first + 1)
                share = (number - 1 + inside) / len(made_up)
                forger.put(waypoint if share >= 1.0 else torch.lerp(origin, waypoint, share))
                forger.put_rest(reached if share >= 1.0 else min(reached, 0.999))
                forger.commit(batch, result)

    def _idle(self, forger: Forger, batches: list[FetchedBatch]) -> None:
        """Commit an epoch that stays where it is, at a rate that leads nowhere."""
        saved = forger.save()
        for batch in batches:
            result = forger.pretend(batch, forger.vanishing(batch.step))
            forger.back(saved)
            forger.commit(batch, result)


def _chain(held: list[FetchedBatch], rest: Iterator[FetchedBatch]) -> Iterator[FetchedBatch]:
    yield from held
    yield from rest
