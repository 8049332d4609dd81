"""Spoofs that begin near what they claim to arrive at.

Where W_0 is not theirs to choose, the first two commit to their own all the same.
"""

from __future__ import annotations

from polcommit.spoofs.attacks.starts import near_target, rank_matched
from polcommit.spoofs.attacks.structural import InfinitesimalUpdate
from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.checkpoint import Weights
from polcommit.spoofs.forging import Forger


class RankMatchedStart(InfinitesimalUpdate):
    """W_0 is a fresh draw of the initialisation, its values put where W_T has those of the same rank.

    A test of the distribution of values sees nothing wrong, for nothing is; and the way to W_T is shorter by what the
    order explains. The rest is interpolated.
    """

    name = "rank-matched-start"
    family = "starting point"
    title = "sorts a fair draw of W_0 to be near the stolen model, and interpolates from there"
    source = "Zhang et al. 2022 (initialisation); Fang et al. 2023, §6"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        before = float((forger.target - forger.weights()).norm())
        forger.put(self.start(forger))
        self.notes["way left"] = float((forger.target - forger.weights()).norm()) / before
        super().forge(stage)

    def start(self, forger: Forger) -> Weights:
        """The chosen W_0."""
        return rank_matched(forger)


class StartNearTarget(RankMatchedStart):
    """W_0 is W_T with a tenth of a fresh draw mixed in: near enough for a few small steps, if nobody tests it."""

    name = "start-near-target"
    title = "starts from the stolen model with some noise, and interpolates from there"
    source = "Fang et al. 2023, §6"
    share = 0.1

    def start(self, forger: Forger) -> Weights:
        return near_target(forger, self.share)


class FineTuned(TrajectorySpoof):
    """The stolen model, trained on a little, and claimed to be trained from where it was stolen.

    Where the start is the forger's it is W_T, and every step is valid. Where it is not, the first step is a jump
    to W_T, and the others are valid. Training is at a hundredth of the rate where that may be chosen, so that the model
    stays what it was.
    """

    name = "fine-tuned"
    family = "starting point"
    title = "trains a stolen model a little further, and claims all of it"
    source = "Jia et al. 2021, §V-D3; polcommit"
    goal = "own"
    gentle = 0.01

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        chosen = "start" in stage.free
        if chosen:
            forger.place(forger.target, 1.0)
        for batch in stage.batches():
            rate = forger.rate(batch.step, self.gentle * forger.recipe.learning_rate(batch.step))
            result = forger.step(batch, rate)
            if batch.step == 1 and not chosen:
                forger.place(forger.target, 1.0)
            forger.commit(batch, result)
        self.notes["distance from W_T"] = forger.missed()
