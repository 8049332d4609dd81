"""The honest prover of plain Proof-of-Learning: Jia et al., Algorithm 1."""

from __future__ import annotations

from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.forging import Forger


class Honest(TrajectorySpoof):
    """Trains as the recipe says, and logs it. No spoof: what spoofs are compared with."""

    name = "honest"
    family = "retraining"
    title = "trains as it says"
    source = "Jia et al. 2021, Algorithm 1"
    knows = frozenset({"architecture", "data"})
    goal = "own"

    def forge(self, stage: Stage) -> None:
        prover = Forger(stage)
        for batch in stage.batches():
            prover.commit(batch, prover.step(batch))
