"""The recipe that steering is measured on: `digits`, as small as it gets, with everything that a forger would choose.

Labels may be clean, noisy (two in five are random, and so are the pixels' low bits) or random altogether: noise for
data makes gradients long and their mean short, and it is the length that a tolerance is a share of. Nothing is random
about a step (no shifts, no dropout), there is neither momentum nor weight decay, and the rate is constant for most of
the run: a forger registers what serves it, and a verifier who reads the configuration sees all of it.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polcommit.errors import UsageError
from polcommit.recipes.digits import Digits, Net
from polcommit.training.recipe import Applied, Source
from polcommit.training.state import TrainingState

LABELS = ("clean", "noisy", "random")
OPTIMIZERS = ("sgd", "adamw")
SHARE = 0.4         # of noisy labels that are random
PIXELS = 4          # of 16 grey levels, that noise adds at most
BEND = 0.7          # share of the run with a constant rate; from there a line to nothing


@dataclass(frozen=True, kw_only=True)
class SteeredDigits(Digits):
    """About 700 weights; a step takes a millisecond or two."""

    steps: int = 1000
    batch: int = 8
    width: int = 4
    dropout: float = 0.0
    shift: int = 0
    peak: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    labels: str = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("optimizer", OPTIMIZERS), ("labels", LABELS)):
            if getattr(self, name) not in values:
                raise UsageError(f"{name} {getattr(self, name)!r}", hint=f"one of {', '.join(values)}")

    def source(self) -> Source:
        """1,500 samples, as `digits` has them, or with noise."""
        return _noisy(self.labels)

    def build(self) -> TrainingState:
        """The net of `digits`, and the optimizer."""
        model = Net(self.width, self.dropout).to(self.device)
        kind: Any = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.SGD
        more = {} if self.optimizer == "adamw" else {"momentum": self.momentum}
        optimizer = kind(model.parameters(), lr=self.peak, weight_decay=self.weight_decay, **more)
        return TrainingState(model=model, optimizer=optimizer)

    def apply(self, state: TrainingState, t: int) -> Applied:
        """Set the rate and step."""
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(t)
        state.optimizer.step()
        return Applied()

    def learning_rate(self, t: int) -> float:
        """`peak` for `BEND` of the run, and a line to nothing after that."""
        return self.peak * share_of_peak(t, self.steps)


def share_of_peak(t: int, steps: int) -> float:
    """Rate of step t, from 1, as a share of the peak."""
    return min(1.0, (steps - t + 1) / ((1.0 - BEND) * steps))


@functools.cache
def _noisy(labels: str) -> list[tuple[np.ndarray[Any, Any], int]]:
    clean = Digits().source()
    chance = random.Random(f"polcommit steering {labels}")  # noqa: S311  # repeatable, no secret
    found = []
    for index in range(len(clean)):
        image, label = clean[index]
        if labels == "random" or (labels == "noisy" and chance.random() < SHARE):
            label = chance.randrange(10)
        if labels == "noisy":
            added = np.array([chance.randint(0, PIXELS) for _ in range(image.size)], dtype=np.uint8)
            image = np.minimum(image + added.reshape(image.shape), 16).astype(np.uint8)
        found.append((image, label))
    return found
