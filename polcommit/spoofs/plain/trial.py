"""A spoof against plain Proof-of-Learning, and an honest prover beside it.

The victim is an honest run of the same recipe under another seed; its final model is what the forger has stolen. δ is
a share of d_ref, the mean distance between final weights of independent trainings of the recipe, which is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import torch

from polcommit.spoofs.base import TrajectorySpoof
from polcommit.spoofs.checkpoint import Checkpoint, flat
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.plain.distances import Distances, distances, mean_distances
from polcommit.spoofs.plain.log import Log
from polcommit.spoofs.plain.prover import Honest
from polcommit.spoofs.plain.stage import open_stage
from polcommit.spoofs.plain.verifier import Report, Terms, verify
from polcommit.training.loading import Loader
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine

REFERENCES = 4      # independent trainings, so six distances


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainResult:
    """What came of one submission."""

    spoof: str
    seed: int
    report: Report
    reached: Distances          # final weights of the submission from the stolen ones, as shares of d_ref
    fooled: bool                # accepted, and what the spoof is for was reached
    cost: float                 # forward-pass equivalents, as a share of honest training
    seconds: float              # of making the submission
    notes: Mapping[str, float | bool | str]

    @property
    def accepted(self) -> bool:
        """The verifier found nothing."""
        return self.report.accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A log that a spoof made, and what it cost."""

    spoof: TrajectorySpoof
    recipe: Recipe
    seed: int
    log: Log
    cost: float
    seconds: float


def run_plain(spoof: TrajectorySpoof, recipe: Recipe, seed: int, terms: Terms) -> PlainResult:
    """Let a spoof forge a log, and the verifier check it. Determinism is the caller's (`set_determinism`).

    Raises:
        PreconditionNotMet: the recipe or the terms lack what the spoof needs.
    """
    return judge(submit(spoof, recipe, seed, terms), terms)


def submit(spoof: TrajectorySpoof, recipe: Recipe, seed: int, terms: Terms) -> Submission:
    """Let a spoof forge a log under terms that it knows. Raises PreconditionNotMet as `run_plain`."""
    stolen, _ = victim(recipe, seed)
    reference = reference_distances(recipe)
    stage = open_stage(recipe, _seed("forger", seed), stolen, terms, seed, terms.delta * reference.l2)
    with stage.meter.timed():
        spoof.forge(stage)
        log = stage.log()
    return Submission(
        spoof=spoof, recipe=recipe, seed=seed, log=log, cost=stage.meter.share(recipe), seconds=stage.meter.seconds
    )


def judge(made: Submission, terms: Terms, report: Report | None = None) -> PlainResult:
    """Have a log checked, under the terms that it was made for or others with the same interval.

    `report` is the verifier's under these terms, if there is one already.
    """
    reference = reference_distances(made.recipe)
    if report is None:
        report = verify(made.log, made.recipe, terms, reference)
    stolen, _ = victim(made.recipe, made.seed)
    reached = distances(made.log.checkpoints[made.recipe.steps].weights(), flat(stolen)) / reference
    there = made.spoof.goal == "own" or not reached.above(terms.delta, terms.metrics)
    return PlainResult(
        spoof=made.spoof.name,
        seed=made.seed,
        report=report,
        reached=reached,
        fooled=report.accepted and there,
        cost=made.cost,
        seconds=made.seconds,
        notes=dict(made.spoof.notes),
    )


def run_honest(recipe: Recipe, seed: int, terms: Terms) -> PlainResult:
    """An honest prover under the same terms; `reached` is how far an independent training ends from the victim's."""
    return run_plain(Honest(), recipe, seed, terms)


@lru_cache(maxsize=8)
def reference_distances(recipe: Recipe) -> Distances:
    """d_ref of a recipe: REFERENCES trainings, compared in pairs."""
    finals = (_train(recipe, _seed("reference", number)) for number in range(REFERENCES))
    return mean_distances([final.weights() for final, _ in finals])


@lru_cache(maxsize=8)
def victim(recipe: Recipe, seed: int) -> tuple[Mapping[str, torch.Tensor], float]:
    """The stolen model, by entry name, and the seconds that training it took."""
    final, seconds = _train(recipe, _seed("victim", seed))
    return final.tensors, seconds


def _train(recipe: Recipe, seed: bytes) -> tuple[Checkpoint, float]:
    meter = Meter()
    with meter.timed():
        engine = Engine(recipe, seed)
        engine.initial()
        for batch in Loader(recipe, seed, 1, recipe.steps):
            engine.step(batch)
    return Checkpoint.take(engine.state), meter.seconds


def _seed(role: str, number: int) -> bytes:
    return sha256(f"{role} {number}".encode()).digest()
